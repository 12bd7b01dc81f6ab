"""Stopping real trees: in the right order, whatever they do, and never somebody else."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hostside.driver import PY, TERM_DEAF, Host, Link, marked, sabotaged, stat, wait_for

# A child that tells when it hears SIGTERM, a leader that tells when it hears it and then takes a moment.
ORDER_CHILD = (
    "import signal,sys,time\n"
    "def term(*_): print('child', time.monotonic(), flush=True); sys.exit()\n"
    "signal.signal(15, term)\nprint('ready', flush=True)\ntime.sleep(1000)\n"
)
ORDER_LEADER = (
    "import signal,subprocess,sys,time\n"
    f"child = subprocess.Popen([sys.executable, '-I', '-S', '-c', {ORDER_CHILD!r}])\n"
    "def term(*_):\n"
    "    print('leader', time.monotonic(), flush=True); time.sleep(0.4)\n"
    "    print('end', time.monotonic(), flush=True); sys.exit()\n"
    "signal.signal(15, term)\ntime.sleep(1000)\n"
)


def told(link: Link, word: str, count: int = 1) -> str:
    return str(wait_for(lambda: text if (text := link.tail("r1", 1 << 16)).count(word) >= count else None, word))


def test_the_leader_first_and_only_then_the_rest(any_host: Host, any_link: Link) -> None:
    any_link.started(argv=[*PY, ORDER_LEADER])
    told(any_link, "ready")
    any_link.stopped(term_s=5)
    times = {line.split()[0]: float(line.split()[1]) for line in any_host.log("w-0", "r1").decode().split("\n")[1:-1]}
    assert times["leader"] < times["end"] <= times["child"]
    any_host.assert_nothing_left()


TREES = {
    "deaf-leader": [*PY, TERM_DEAF],
    "setsid": ["sh", "-c", "setsid sleep 1000 & echo deaf; exec sleep 1001"],
    "double-fork": ["sh", "-c", "(setsid sh -c 'sleep 1000 & sleep 1002 &' &) ; echo deaf; exec sleep 1001"],
    "env-i": ["sh", "-c", "(env -i setsid sleep 1000 &); echo deaf; exec sleep 1001"],
    "stopped-child": ["sh", "-c", "sleep 1000 & kill -STOP $!; echo deaf; exec sleep 1001"],
    "stopped-leader": ["sh", "-c", "sleep 1000 & echo deaf; kill -STOP $$; sleep 1001"],
    "deaf-everywhere": [
        "sh",
        "-c",
        "trap '' TERM; (setsid sh -c 'while :; do sleep 0.1; done' &); echo deaf; while :; do sleep 0.1; done",
    ],
}


@pytest.mark.parametrize("tree", TREES)
def test_nothing_of_it_is_left(host: Host, link: Link, tree: str) -> None:
    link.started(argv=TREES[tree])
    told(link, "deaf")
    state = link.stopped(term_s=0.2)
    assert state["exit"]["asked"]
    host.assert_nothing_left()


@pytest.mark.parametrize("tree", ["setsid", "deaf-everywhere"])
def test_nor_when_the_leader_is_killed(host: Host, link: Link, tree: str) -> None:
    state = link.started(argv=TREES[tree])
    told(link, "deaf")
    os.kill(state["pid"], signal.SIGKILL)
    assert link.gone()["exit"]["signal"] == 9
    assert not link.gone()["exit"]["asked"]
    host.assert_nothing_left()


def test_gone_waits_for_the_tree_not_for_the_leader(host: Host, link: Link) -> None:
    mark = host.deployment + "mark"
    state = link.started(argv=["sh", "-c", f'{sys.executable} -I -S -c "{TERM_DEAF}" {mark} & exec sleep 1001'])
    told(link, "deaf")
    child = [pid for pid in marked(mark) if pid != state["pid"]]
    assert len(child) == 1
    os.kill(state["pid"], signal.SIGKILL)
    ended = link.state("r1", lambda s: s["phase"] == "ended")
    assert stat(child[0]), "its child lives"
    assert host.record("w-0", "r1", "gone.json") is None
    gone = link.gone()
    assert not stat(child[0])
    assert gone["exit"] == ended["exit"]


def test_a_fork_bomb(host: Host, link: Link) -> None:
    """A hundred that each replace themselves all the time, deaf to SIGTERM, in sessions of their own."""
    bomb = (
        "import os,signal,time\nsignal.signal(15, signal.SIG_IGN); signal.signal(17, signal.SIG_IGN)\n"
        "for _ in range(100):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        while True:\n"
        "            time.sleep(0.05)\n"
        "            if os.fork(): os._exit(0)\n"
        "print('deaf', flush=True)\ntime.sleep(1000)\n"
    )
    mark = host.deployment + "mark"
    link.started(argv=[*PY, bomb], env={"MARK": mark})
    told(link, "deaf")
    link.stopped(term_s=0.2)
    assert not marked(mark)
    host.assert_nothing_left()


def test_short_lived_orphans_hide_nobody(host: Host, link: Link) -> None:
    """A chain of daemons, each the child of a process that just ended: at every moment exactly one lives."""
    chain = (
        "import os,time\n"
        "if os.fork(): os._exit(3)\n"
        "end = time.monotonic() + 0.8\n"
        "while time.monotonic() < end:\n"
        "    if os.fork(): os._exit(0)\n"
        "open('chain-ended', 'w').close()\n"
    )
    for n in range(3):
        link.start(f"r{n}", argv=[*PY, chain], env={"MARK": f"{host.deployment}m{n}"})
        link.gone(f"r{n}")
        assert not marked(f"{host.deployment}m{n}")
    host.assert_nothing_left()


def test_asked_twice_is_sooner_never_later(link: Link) -> None:
    link.started(argv=TREES["deaf-leader"])
    told(link, "deaf")
    link.stop(term_s=1000)
    until = link.state("r1", lambda s: s["stop"] is not None)["stop"]["until"]
    link.stop(term_s=2000)
    link.stop(term_s=0.1)
    gone = link.gone()
    assert gone["exit"]["at"] < until - 900_000


def test_sigterm_to_the_keeper_is_an_orderly_stop_that_no_controller_asked_for(host: Host, link: Link) -> None:
    link.started()
    os.kill(host.helper("keeper", "r1"), signal.SIGTERM)
    ended = link.gone()["exit"]
    assert (ended["signal"], ended["asked"], ended["cause"]) == (15, False, "terminated")
    assert ended["message"] == "its keeper was sent SIGTERM"
    host.assert_nothing_left()


def test_sigterm_to_a_keeper_that_stops_its_run_anyway_changes_nothing(host: Host, link: Link) -> None:
    link.started(argv=TREES["deaf-leader"])
    told(link, "deaf")
    link.stop(term_s=1)
    link.state("r1", lambda s: s["stop"] is not None)
    os.kill(host.helper("keeper", "r1"), signal.SIGTERM)
    ended = link.gone()["exit"]
    assert (ended["asked"], ended["cause"]) == (True, "")


def test_hup_and_int_mean_nothing(host: Host, link: Link) -> None:
    state = link.started()
    for role in ("keeper", "pump"):
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            os.kill(host.helper(role, "r1"), number)
    os.kill(host.helper("pump", "r1"), signal.SIGTERM)
    assert link.reply(op="tail", run="r1")["end"] == 0
    assert stat(state["pid"])
    assert host.helper("keeper", "r1")
    assert host.helper("pump", "r1")
    assert link.stopped()["notes"] == []


def test_a_message_that_makes_no_sense_ends_the_line_not_the_keeper(host: Host, link: Link) -> None:
    import hashlib
    import socket

    state = link.started()
    name = hashlib.sha256(f"{host.deployment}/w-0/r1".encode()).hexdigest()[:8]
    for line in (
        b"[]\n",
        b"{\n",
        b"\xff\xff\n",
        b'{"op":"stop","term_s":"x"',
        b'{"op":"nonsense"}\n',
        b'{"op":"fence","lease":[]}\n',
    ):
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(host.base / "s" / name))
            visitor.sendall(line)
            assert json.loads(visitor.makefile().readline())["run"] == "r1"
    assert stat(state["pid"])
    assert host.helpers("keeper", "r1")
    assert link.stopped()["exit"]["signal"] == 15


def test_a_stop_while_keeper_and_pump_are_dead_waits_for_the_heir(host: Host, link: Link) -> None:
    link.started()
    helpers = [host.helper("keeper", "r1"), host.helper("pump", "r1")]
    for pid in helpers:
        os.kill(pid, signal.SIGSTOP)
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    ended = link.stopped()["exit"]
    assert ended["asked"]
    assert ended["code"] is None
    host.assert_nothing_left()


@pytest.mark.parametrize("relation", ["leader", "session"])
def test_an_innocent_bystander_is_never_signalled(host: Host, relation: str) -> None:
    """The records of a dead run name a pid, and a session, that are another's by now."""
    first = host.link()
    first.started(argv=["true"] if relation == "none" else ["sleep", "1000"])
    pid = host.record("w-0", "r1", "run.json")["pid"]  # type: ignore[index]
    helpers = [host.helper("keeper", "r1"), host.helper("pump", "r1")]
    first.kill()
    first.ended()
    for helper in helpers:
        os.kill(helper, signal.SIGSTOP)
    for helper in [*helpers, pid]:
        os.kill(helper, signal.SIGKILL)
    wait_for(lambda: not any(stat(p) for p in [*helpers, pid]))
    # A shell that leads a session, with a child in it; both would write down any signal they could hear.
    heard = host.root / "heard"
    word = f"trap 'echo x >> {heard}' TERM HUP INT CONT USR1; "
    bystander = host.run(
        "sh",
        "-c",
        f'{word} sh -c "{word} while :; do sleep 0.1; done" & echo $! > {host.root}/child; while :; do sleep 0.1; done',
    )
    child = int(wait_for(lambda: (host.root / "child").exists() and (host.root / "child").read_text()))
    file = host.run_dir("w-0", "r1") / "run.json"
    record = json.loads(file.read_text())
    ours = stat(bystander)
    assert ours is not None
    assert int(ours[3]) == bystander, "it leads its session"
    record.update(pid=bystander, sid=bystander, start=record["start"])
    file.write_text(json.dumps(record))
    link = host.link()
    state = link.stopped("r1")
    assert state["exit"]["code"] is None
    assert stat(bystander)
    assert stat(child)
    assert stat(child)[0] != b"T"  # type: ignore[index]
    assert not heard.exists()


# --- the link's own life --------------------------------------------------------------------------------------------------


def test_the_death_of_a_link_changes_nothing(host: Host) -> None:
    for end in ("kill", "hang_up"):
        first = host.link()
        run = f"r-{end}"
        pid = first.started(run, process=run)["pid"]
        getattr(first, end)()
        first.ended()
        link = host.link()
        (state,) = [s for s in link.said[0]["hello"]["runs"] if s["run"] == run]
        assert (state["phase"], state["pid"], state["notes"]) == ("running", pid, [])
        assert host.helper("keeper", run)
        link.send(op="stop", run=run, term_s=1)
        link.gone(run)


def test_a_link_ends_after_silence_and_only_then(host: Host) -> None:
    package = sabotaged(host.root, link=("SILENCE_S = 10.0", "SILENCE_S = 3.0"))
    link = host.link(package)
    pid = link.started()["pid"]
    began = time.monotonic()
    while time.monotonic() < began + 4.0:
        link.send(op="ping", n=1)
        link.until(lambda m: "pong" in m)
        time.sleep(0.1)  # the silence between two words is what is tested
    link.silent = True
    assert link.ended() == 0
    assert time.monotonic() - began > 4.0 + 2.0
    assert stat(pid)


@pytest.mark.parametrize("victim", [9, 15])
def test_the_box_leaves_nothing_when_pytest_is_killed(tmp_path: Path, victim: int) -> None:
    """The tests' own promise: what they start dies with them."""
    code = (
        "import sys,time; sys.path.insert(0, sys.argv[1])\n"
        "from tests.hostside.driver import Host\n"
        "host = Host(); link = host.link(); state = link.started()\n"
        "helpers = host.helper('keeper', 'r1'), host.helper('pump', 'r1')\n"
        "print(host.box.pid, state['pid'], *helpers, link.pid, host.root, flush=True)\n"
        "time.sleep(1000)\n"
    )
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    *started, folder = child.stdout.readline().split()
    child.send_signal(victim)
    child.wait()
    child.stdout.close()
    wait_for(lambda: not any(stat(int(pid)) for pid in started))
    wait_for(lambda: not os.path.exists(folder) and not glob.glob(f"/tmp/ni-{child.pid}-*"))
