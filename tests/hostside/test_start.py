"""The start protocol: what a run is given, what is recorded of it, and every way in which it cannot be."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.nvml import FakeGpus
from tests.hostside.driver import PY, Host, Link, importable, marked, read, sabotaged, sockets_named, stat, wait_for

SHOW = (
    "import json,os,resource,signal,sys;"
    "fds={n:os.readlink('/proc/self/fd/'+n) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/'+n)};"
    "print(json.dumps(dict(fds=fds, cwd=os.getcwd(), sid=os.getsid(0), pgid=os.getpgid(0), pid=os.getpid(),"
    "nofile=resource.getrlimit(resource.RLIMIT_NOFILE), env=dict(os.environ), argv=sys.argv,"
    "status=open('/proc/self/status').read(), oom=int(open('/proc/self/oom_score_adj').read()))), flush=True);"
    "import time; time.sleep(1000)"
)

SLOW_BIRTH = """\
        import time
        root = os.path.dirname(base)
        open(root + "/forked", "w").close()
        while not os.path.exists(root + "/go"):
            time.sleep(0.01)
        lock = run.create_locked(spec)
"""


def shown(link: Link, run: str = "r1") -> dict:
    return json.loads(wait_for(lambda: text if (text := link.tail(run, 1 << 16)).endswith("\n") else None))


def test_records_of_a_life(gpus: FakeGpus, any_host: Host, any_link: Link) -> None:
    before = time.time() * 1000
    state = any_link.started(argv=["sleep", "1000"], gpus=[1], argv_digest="d1", about={"x": 1})
    fields = stat(state["pid"])
    assert fields is not None
    born = any_host.record("w-0", "r1", "run.json")
    assert born is not None
    assert (born["pid"], born["start"], born["sid"]) == (state["pid"], int(fields[19]), state["pid"])
    assert born["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert born["pidns"] == os.readlink("/proc/self/ns/pid")
    assert (born["gpus"], born["argv_digest"], born["v"]) == (
        [{"index": 1, "uuid": gpus.uuid(1), "before_mib": 615, "ecc_errors": 0}],
        "d1",
        1,
    )
    assert before - 1000 <= born["at"] <= time.time() * 1000 + 1000
    assert state["about"] == {"x": 1}
    asked = any_host.record("w-0", "r1", "spec.json")
    assert asked is not None
    assert "env" not in asked  # it may hold secrets
    any_link.stopped()
    ended, gone = any_host.record("w-0", "r1", "exit.json"), any_host.record("w-0", "r1", "gone.json")
    assert ended is not None
    assert gone is not None
    assert (ended["code"], ended["signal"], ended["asked"], ended["v"]) == (None, 15, True, 1)
    assert gone["at"] >= ended["at"] >= born["at"]
    any_host.assert_nothing_left()


@pytest.mark.parametrize(("argv", "code", "number"), [(["sh", "-c", "exit 7"], 7, None), (["sh", "-c", "kill -9 $$"], None, 9),
                                                      (["true"], 0, None)])  # fmt: skip
def test_the_true_exit_code(link: Link, argv: list[str], code: int | None, number: int | None) -> None:
    link.start(argv=argv)
    ended = link.gone()["exit"]
    assert (ended["code"], ended["signal"], ended["asked"], ended["cause"]) == (code, number, False, "")


def test_what_a_leader_is_given(any_host: Host, any_link: Link) -> None:
    odd = " a  b\t'c' \"d\" $(id) `id` ${HOME} \\ é\n-- second line "
    env = {"ASKED": "ä ${port.system}", "PORT": "${port.system}", "ODD": odd}
    state = any_link.started(argv=[*PY, SHOW, "--port=${port.system}", odd], env=env, ports={"system": [0, "127.0.0.1"]})
    given, port = shown(any_link), state["ports"]["system"]
    assert set(given["fds"]) == {"0", "1", "2"}
    out = str(any_host.run_dir("w-0", "r1") / "out")
    assert given["fds"] == {"0": "/dev/null", "1": out, "2": out}
    assert given["argv"][1:] == [f"--port={port}", odd]
    assert {k: given["env"].get(k) for k in env} == {"ASKED": f"ä {port}", "PORT": str(port), "ODD": odd}
    assert set(given["env"]) <= {"PATH", *env, "LC_CTYPE"}  # nothing of ours; LC_CTYPE is Python's own doing
    assert given["sid"] == given["pgid"] == given["pid"] == state["pid"]
    assert given["cwd"] == str(any_host.base / "data" / any_host.deployment / "w-0")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert given["nofile"] == [hard, hard]
    keepers = int(read(any_host.helper("keeper", "r1"), "oom_score_adj"))  # protected only where we have the capability
    assert given["oom"] == (0 if keepers < 0 else keepers + 200)


def test_signals_of_a_leader_are_reset(any_link: Link) -> None:
    state = any_link.started()
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in read(state["pid"], "status").decode().splitlines()
             if line.startswith(("SigBlk", "SigIgn", "SigCgt"))}  # fmt: skip
    masks["SigIgn"] &= ~(3 << 31)  # 32 and 33 are the C library's own: nobody can set them by its functions
    assert masks == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def test_a_port_is_chosen_in_range_and_claimed(host: Host, link: Link) -> None:
    ports = {"a": [0, "127.0.0.1"], "b": [0, "127.0.0.1"]}
    chosen = link.started(ports=ports, port_range=[23450, 23459])["ports"]
    assert len(set(chosen.values())) == 2
    assert all(23450 <= number <= 23459 for number in chosen.values())
    claims = Path("/proc/net/unix").read_text()
    assert all(f"@noray/port-{number}\n" in claims for number in chosen.values())
    link.start("r2", process="w-1", ports={"c": [chosen["a"], "127.0.0.1"]})
    refused = link.gone("r2")["exit"]
    assert refused["cause"] == "held"
    assert f"port-{chosen['a']} is held by w-0" in refused["message"]


def test_blocks_of_ports_are_disjoint_claimed_whole_and_refused_by_name(host: Host, link: Link) -> None:
    """And the heir of a run that lost keeper and pump holds all of them again."""
    eight = {"ports": {"kv": [0, "127.0.0.1", 3]}, "port_range": [23440, 23447]}
    firsts = [link.started(f"r{n}", process=f"w-{n}", **eight)["ports"]["kv"] for n in (1, 2)]
    assert abs(firsts[0] - firsts[1]) >= 3
    link.start("r3", process="w-3", **eight)
    assert "no 3 free ports in a row for kv on 127.0.0.1 in 23440-23447" in link.gone("r3")["exit"]["message"]
    helpers = [host.helper(role, "r1") for role in ("keeper", "pump")]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for helper in helpers:
            os.kill(helper, number)
    host.helper("heir", "r1")
    wait_for(lambda: all(sockets_named(f"@noray/port-{number}") for number in range(firsts[0], firsts[0] + 3)))
    link.stopped("r1")
    link.started("r4", process="w-4", **eight)
    link.stopped("r2")
    link.stopped("r4")


def test_a_taken_port_names_its_owner(link: Link) -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        number = mine.getsockname()[1]
        link.start(ports={"http": [number, "127.0.0.1"]})
        refused = link.gone()["exit"]
    assert refused["cause"] == "port"
    assert f"port {number} (http) on 127.0.0.1 is taken by pid {os.getpid()} (" in refused["message"]


@pytest.mark.parametrize(
    ("spec", "cause", "words"),
    [
        ({"argv": ["no-such-program"]}, "missing", "cannot find no-such-program; looked in /"),
        ({"argv": ["/no/such/program"]}, "exec", "cannot execute /no/such/program"),
        ({"argv": ["/"]}, "exec", "cannot execute /"),
        ({"needs": ["/etc/passwd", "/no/such/model"]}, "missing", "/no/such/model does not exist on this host"),
        ({"fence": {"kind": "file"}}, "start", "address"),
        ({"ports": {"a": [0, "127.0.0.1"]}, "port_range": [5, 4]}, "port", "no free port for a on 127.0.0.1 in 5-4"),
    ],
)
def test_a_start_that_cannot_be_says_why(any_host: Host, any_link: Link, spec: dict, cause: str, words: str) -> None:
    any_link.start(**{"argv": ["sleep", "1000"], **spec})
    state = any_link.gone()
    assert state["exit"]["cause"] == cause
    assert words in state["exit"]["message"]
    assert state["exit"]["code"] is None
    any_host.assert_nothing_left()
    any_link.started("r2")  # and nothing stands in the way of the next


def test_a_repeated_start_is_one_start(host: Host, link: Link) -> None:
    link.start(env={"MARK": host.deployment})
    link.start(env={"MARK": host.deployment})
    pid = link.state("r1")["pid"]
    other = host.link()
    other.start(env={"MARK": host.deployment})
    link.send(op="ping", n=1)
    link.until(lambda m: m.get("pong") == 1)
    other.stopped()
    assert {m["state"]["pid"] for m in link.said + other.said if "state" in m} == {pid}
    link.start()
    assert link.gone()["pid"] == pid  # the start of a run that is over starts nothing
    host.assert_nothing_left()


def test_two_links_ask_for_one_run_at_once(host: Host) -> None:
    links = [host.link() for _ in range(6)]
    for link in links:
        link.start(env={"MARK": host.deployment})
    states = [link.state("r1", lambda s: s["phase"] == "running") for link in links]
    assert len({state["pid"] for state in states}) == 1
    assert marked(host.deployment + "\0") == [states[0]["pid"]]


def test_a_run_that_a_link_overlooked_when_it_greeted_is_told_of_by_the_next(host: Host) -> None:
    """It was killed when it had forked a keeper that had written nothing yet."""
    package = sabotaged(host.root, birth=("        lock = run.create_locked(spec)\n", SLOW_BIRTH))
    killed = host.link(package)
    killed.start("r1")
    wait_for(lambda: (host.root / "forked").exists(), "its keeper")
    killed.kill()
    killed.ended()
    link = host.link()
    assert link.runs == {}
    (host.root / "go").touch()
    wait_for(lambda: host.record("w-0", "r1", "run.json"), "that it is born")
    link.start("r2")
    assert link.ended() == 0
    after = host.link()
    assert (after.runs["r1"]["phase"], after.runs["r2"]["phase"]) == ("running", "gone")
    after.stopped("r1")


def test_a_stop_that_comes_with_the_start_is_obeyed(host: Host, link: Link) -> None:
    link.start()
    link.stop(term_s=5)
    assert link.gone()["exit"]["asked"]
    host.assert_nothing_left()


def test_the_disk_is_full(host: Host, link: Link) -> None:
    (host.base / "runs" / host.deployment / "w-1").write_text("")  # in the way of a directory: as any OSError there
    link.start(process="w-1")
    refused = link.gone()["exit"]
    assert refused["cause"] == "start"
    assert "cannot make the run's directory" in refused["message"]


def test_the_keeper_imports_little(any_host: Host, any_link: Link) -> None:
    """Asyncio alone would cost 6 MB of each keeper. A keeper is a fork of its link: what that has imported, it has."""
    folder = importable(any_host.package)
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import noray_host.main; print(*sorted(sys.modules), flush=True)"
    any_link.start(argv=[any_host.python, "-I", "-S", "-B", "-c", code])
    any_link.gone()
    modules = any_host.log("w-0", "r1").decode().split()
    assert "noray_host.keeper" in modules
    assert not {"asyncio", "http.client", "ssl", "email", "multiprocessing"} & set(modules)
    foreign = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"noray_host", "__main__"}
    assert not {name for name in foreign if not name.startswith("_")}
