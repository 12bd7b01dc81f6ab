"""A host that goes down and comes up: what ends by it, what its records say afterwards, and whom nobody signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from supervisor.hostside import dbus, leaving, logout, procfs
from supervisor.hostside.rundir import Run
from tests.hostside.driver import PY, Host, Link, sabotaged, stat, wait_for
from tests.hostside.test_drain import Worker, on_files, register
from tests.hostside.test_fence import Etcd, etcd, target  # noqa: F401  # the fixture
from tests.hostside.test_logout import served

# Writes down every signal that it can hear, and so does its child.
LISTENS = """
import os, signal, time
def heard(number, frame): open(os.environ['HEARD'], 'a').write('%d\\n' % number)
for number in (1, 2, 3, 10, 12, 15, 18): signal.signal(number, heard)
os.fork()
print('listens', flush=True)
while True: time.sleep(1000)
"""
UP_AGAIN = {
    "boot": ("reboot", "its host was rebooted, and is up again since 20"),
    "pidns": ("container", "its container was started again, at 20"),
    "init": ("container", "its container was started again, at 20"),
}


def abandon(host: Host, first: Link, run: str = "r1") -> Path:
    """Keeper and pump are killed, what they kept goes on; returns its record."""
    helpers = [host.helper("keeper", run), host.helper("pump", run)]
    first.kill()
    first.ended()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for helper in helpers:
            os.kill(helper, number)
    wait_for(lambda: not any(stat(p) for p in helpers))
    return host.run_dir("w-0", run) / "run.json"


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("field", UP_AGAIN)
def test_a_run_of_another_boot_or_container_is_closed_and_whoever_has_its_pid_hears_nothing(host: Host, field: str) -> None:
    """The bystander has the recorded pid, session, start tick and name: it is told apart by the boot only, or the container.

    `init`: the number of the pid namespace was given anew.
    """
    heard = host.root / "heard"
    first = host.link()
    pid = first.started(argv=[*PY, LISTENS], env={"HEARD": str(heard)})["pid"]
    wait_for(lambda: first.tail("r1").count("listens") == 2)
    (child,) = procfs.children(pid)
    file = abandon(host, first)
    rewrite(file, **{field: 1 if field == "init" else "another"})
    link = host.link()
    (state,) = link.said[0]["hello"]["runs"]
    cause, message = UP_AGAIN[field]
    assert (state["phase"], state["exit"]["cause"], state["exit"]["code"], state["exit"]["asked"]) == (
        "gone",
        cause,
        None,
        False,
    )
    assert state["exit"]["message"].startswith(message)
    link.stop("r1", 0.1)
    link.start("r2")
    assert link.state("r2", lambda s: s["phase"] == "running")
    link.stopped("r2")
    assert stat(pid)
    assert stat(child)
    assert not heard.exists()


def test_what_a_power_cut_left_in_the_routing_goes_before_its_run_is_called_gone(host: Host, etcd: Etcd) -> None:  # noqa: F811
    for number, field in enumerate(UP_AGAIN):
        first, run = host.link(), f"r{number}"
        state = first.started(run, ports={"rp": [0, "127.0.0.1"]}, fence=target(etcd.url))
        etcd.register(f"127.0.0.1:{state['ports']['rp']}", "mine")
        etcd.register("127.0.0.1:9", "another's")
        rewrite(abandon(host, first, run), **{field: 1 if field == "init" else "another"})
        link = host.link()
        assert "revoked lease" in link.gone(run)["fenced"]["did"]
        assert etcd.names() == {"another's"}
        assert link.runs[run]["exit"]["cause"] == UP_AGAIN[field][0]
        assert stat(state["pid"])


def test_where_etcd_is_away_it_is_tried_again_until_a_stop_waits_no_more(host: Host) -> None:
    first = host.link()
    first.started(ports={"rp": [0, "127.0.0.1"]}, fence=target("http://127.0.0.1:1"))
    rewrite(abandon(host, first), boot="another")
    link = host.link()
    (told,) = link.said[0]["hello"]["runs"]
    assert (told["phase"], told["exit"]["cause"]) == ("ended", "reboot")
    link.start("r2")
    assert "is held by w-0" in link.gone("r2")["exit"]["message"], "by whoever fences it"
    host.link(epoch=2).stop("r1")
    assert "error" in host.links[-1].gone("r1")["fenced"]
    host.links[-1].started("r3")


def test_who_has_its_address_by_now_is_not_fenced_for_it(host: Host, etcd: Etcd) -> None:  # noqa: F811
    first = host.link()
    port = first.started(ports={"rp": [0, "127.0.0.1"]}, fence=target(etcd.url))["ports"]["rp"]
    file = abandon(host, first)
    other = host.link(deployment=host.deployment + "o")
    other.started("r1", ports={"rp": [port, "127.0.0.1"]}, process="w-1")
    etcd.register(f"127.0.0.1:{port}", "another's")
    rewrite(file, boot="another")
    assert "another's by now" in host.link().gone("r1")["notes"][0]
    assert etcd.names() == {"another's"}
    other.stopped("r1")


def test_a_start_that_a_reboot_interrupted_ended_with_its_host_too(host: Host) -> None:
    run = Run(str(host.base), host.deployment, "w-0", "r1")
    lock = run.create_locked({"process": "w-0", "run": "r1"})
    assert lock is not None
    os.close(lock)
    assert host.link().said[0]["hello"]["runs"][0]["exit"]["cause"] == "start", "in the same boot it is another matter"
    again = Run(str(host.base), host.deployment, "w-0", "r2")
    lock = again.create_locked({"process": "w-0", "run": "r2"})
    assert lock is not None
    os.close(lock)
    rewrite(host.run_dir("w-0", "r2") / "spec.json", boot="another")
    assert host.link().said[0]["hello"]["runs"][0]["exit"]["cause"] == "reboot"


def test_hello_has_every_run_however_quickly_the_first_of_them_is_closed(host: Host) -> None:
    """Who is told of a run only later takes it for one that nobody has on record."""
    for number, process in enumerate(("w-0", "w-1", "w-2")):
        lock = Run(str(host.base), host.deployment, process, f"r{number}").create_locked({"process": process})
        assert lock is not None
        os.close(lock)
    assert [run["process"] for run in host.link().said[0]["hello"]["runs"]] == ["w-0", "w-1", "w-2"]


def test_an_end_that_was_seen_before_the_host_went_off_stays_as_it_was(host: Host) -> None:
    first = host.link()
    pid = first.started()["pid"]
    file = abandon(host, first)
    os.kill(pid, signal.SIGKILL)
    file.with_name("exit.json").write_text(json.dumps({"code": 3, "signal": None, "at": 1, "asked": False, "cause": ""}))
    rewrite(file, boot="another")
    assert host.link().said[0]["hello"]["runs"][0]["exit"]["code"] == 3


def test_a_lone_sigterm_before_a_reboot_was_the_shutdown(host: Host) -> None:
    """Nobody could know then: no controller was there, and a plain init says nothing."""
    first = host.link()
    first.started()
    os.kill(host.helper("keeper", "r1"), signal.SIGTERM)
    first.gone()
    assert host.link().said[0]["hello"]["runs"][0]["exit"]["cause"] == "terminated"
    rewrite(host.run_dir("w-0", "r1") / "run.json", boot="another")
    assert host.link().said[0]["hello"]["runs"][0]["exit"]["cause"] == "shutdown"


# --- going down -----------------------------------------------------------------------------------------------------------


def told_of_leaving(link: Link) -> list[str]:
    return [message["leaving"] for message in link.said if "leaving" in message]


@pytest.fixture
def going(host: Host) -> Path:
    """While this file is there, the host is asked for as one that is shutting down."""
    sign = host.root / "stopping"
    head = "def sign(signalled: bool) -> Optional[str]:\n"
    body = f"    if True: return 'the test says so' if os.path.exists({str(sign)!r}) else ''\n"
    host.package = sabotaged(host.root, leaving=(head, head + body))
    return sign


def test_what_a_shutdown_ends_says_so_and_is_told_after_it(host: Host, going: Path) -> None:
    link = host.link()
    assert link.said[0]["hello"]["leaving"] == ""
    link.started()
    going.touch()
    os.kill(host.helper("keeper", "r1"), signal.SIGTERM)
    ended = link.gone()["exit"]
    assert (ended["cause"], ended["asked"]) == ("shutdown", False)
    assert ended["message"] == "its host was shutting down: the test says so"
    told = [message for message in link.said if "leaving" in message or message.get("state", {}).get("terminated")]
    assert told[0] == {"leaving": "the test says so"}
    assert host.record("w-0", "r1", "exit.json")["cause"] == "shutdown"  # type: ignore[index]


def test_on_a_host_that_leaves_nothing_is_started_until_that_is_called_off(host: Host, going: Path) -> None:
    going.touch()
    link = host.link()
    assert link.said[0]["hello"]["leaving"] == "the test says so"
    link.start("r1")
    refused = link.state("r1")
    assert (refused["phase"], (refused["exit"] or {}).get("cause")) == ("gone", "shutdown")
    assert host.record("w-0", "r1", "spec.json") is None
    going.unlink()
    assert link.until(lambda m: "leaving" in m)["leaving"] == ""
    link.started("r2")


def test_an_init_without_systemd_that_puts_up_a_nologin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logout, "SYSTEMD", str(tmp_path / "none"))
    monkeypatch.setattr(leaving, "NOLOGIN", (str(tmp_path / "nologin"),))
    assert leaving.sign(signalled=True) is None
    (tmp_path / "nologin").touch()
    assert "nologin" in str(leaving.sign(signalled=True))
    assert leaving.sign(signalled=False) is None, "it is there while a machine boots, too"


@pytest.mark.parametrize(("signalled", "says"), [(True, "its system bus has ended"), (False, None)])
def test_a_systemd_whose_bus_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signalled: bool, says: str | None
) -> None:
    monkeypatch.setattr(logout, "SYSTEMD", str(tmp_path))
    monkeypatch.setattr(dbus, "SYSTEM_BUS", str(tmp_path / "bus"))
    assert leaving.sign(signalled) is None, "there is none, which says nothing"
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
    assert leaving.sign(signalled) == says
    with served(tmp_path / "going", [b"OK 1234\r\n", None]) as path:
        monkeypatch.setattr(dbus, "SYSTEM_BUS", path)
        assert leaving.sign(signalled) == says, "it ends while it is asked"


def test_everybody_hears_sigterm_and_the_link_says_that_the_host_is_leaving(host: Host) -> None:
    link = host.link()
    slow = "import signal,time; signal.signal(15, lambda *_: time.sleep(0.3) or exit()); print('up', flush=True); time.sleep(9)"
    link.started(argv=[*PY, slow])
    wait_for(lambda: b"up" in host.log("w-0", "r1"))
    pids = [link.pid, host.helper("keeper", "r1"), host.helper("pump", "r1"), link.runs["r1"]["pid"]]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert link.until(lambda m: "leaving" in m)["leaving"] == "SIGTERM was sent to everything on it at once"
    assert link.ended() == 0
    wait_for(lambda: host.record("w-0", "r1", "gone.json"))
    assert host.record("w-0", "r1", "exit.json")["cause"] == "terminated"  # type: ignore[index]


@pytest.mark.parametrize("whose", ["link", "keeper"])
def test_one_sigterm_is_somebodys_hand(host: Host, link: Link, whose: str) -> None:
    link.started()
    os.kill(link.pid if whose == "link" else host.helper("keeper", "r1"), signal.SIGTERM)
    if whose == "link":
        assert link.ended() == 0
        assert stat(link.runs["r1"]["pid"])
    else:
        link.gone()
        link.start("r2")
        assert link.state("r2")["phase"] == "running"
    assert told_of_leaving(link) == []


def test_who_is_being_answered_is_answered_first(host: Host, link: Link) -> None:
    store = host.root / "kv"
    worker = Worker(host, link, on_files(store))
    entry = register(store, worker.address)
    worker.inflight = 1
    os.kill(host.helper("keeper", "r1"), signal.SIGTERM)
    assert link.state("r1", lambda s: s["stop"])["stop"]["step"] == "drain"
    assert not entry.exists(), "out of the routing"
    worker.inflight = 0
    assert "heard with 0" in worker.said()


def test_but_not_for_ever(host: Host, link: Link) -> None:
    store = host.root / "kv"
    worker = Worker(host, link, on_files(store), term_s=100)
    register(store, worker.address)
    worker.inflight = 1
    os.kill(host.helper("keeper", "r1"), signal.SIGTERM)
    until_ms = link.state("r1", lambda s: s["stop"])["stop"]["until"]
    assert until_ms < time.time() * 1000 + 10_000
    worker.inflight = 0
    link.gone()
