"""The doctor: whose is what, and the end of what is ours and has nobody. Never anybody else's."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nvml import FakeGpus
from tests.hostside.driver import Host, Link, stat, wait_for


@pytest.fixture
def fake(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "gpus")


@pytest.fixture
def host(fake: FakeGpus) -> Iterator[Host]:
    made = Host(env=fake.env)
    yield made
    made.close()


class Doctor:
    def __init__(self, host: Host) -> None:
        self._link = host.link(program="doctor", hello=False)

    def look(self) -> dict[str, Any]:
        self._link.send(op="look")
        found: dict[str, Any] = self._link.until(lambda m: "ours" in m)
        return found

    def reap(self) -> dict[int, dict[str, Any]]:
        self._link.send(op="reap")
        return {done["pid"]: done for done in self._link.until(lambda m: "did" in m)["did"]}


@pytest.fixture
def doctor(host: Host) -> Doctor:
    return Doctor(host)


def abandon(host: Host, link: Link, run: str) -> None:
    """Its keeper and pump die at once, and there is no link that would start an heir."""
    helpers = [host.helper("keeper", run), host.helper("pump", run)]
    link.kill()
    wait_for(lambda: not stat(link.pid))
    for number in (signal.SIGSTOP, signal.SIGKILL):  # the pump must not become the heir in between
        for pid in helpers:
            os.kill(pid, number)
    wait_for(lambda: not any(map(stat, helpers)))


def test_who_holds_a_gpu(fake: FakeGpus, host: Host, link: Link, doctor: Doctor) -> None:
    state = link.started(argv=["sh", "-c", "sleep 1000 & wait"], gpus=[fake.uuid(0)])
    (child,) = wait_for(lambda: below(state["pid"]))
    fake.hold(0, child, 70000)
    fake.hold(1, os.getpid(), 500)
    seen = doctor.look()
    assert [[h["pid"] for h in gpu["holders"]] for gpu in seen["gpus"]["gpus"]] == [[child], [os.getpid()]]
    assert str(os.getpid()) not in seen["ours"], "a stranger, for all we know"
    mine = seen["ours"][str(child)]
    expected = {"deployment": host.deployment, "process": "w-0", "run": "r1", "care": "keeper", "orphan": False}
    assert {key: mine[key] for key in expected} == expected
    assert seen["claims"][fake.uuid(0)]["deployment"] == host.deployment
    assert fake.uuid(1) not in seen["claims"]
    assert seen["orphans"] == []


def test_what_has_a_keeper_is_left_alone(host: Host, link: Link, doctor: Doctor) -> None:
    state = link.started()
    assert doctor.reap() == {}
    assert stat(state["pid"])
    os.kill(host.helper("keeper", "r1"), signal.SIGKILL)
    host.helper("heir", "r1")
    assert wait_for(lambda: doctor.look()["ours"][str(state["pid"])]["care"] == "heir")
    assert doctor.reap() == {}
    assert stat(state["pid"])
    link.stopped()


HIDING = "setsid sleep 1000 & (setsid sh -c 'sleep 1002 & exec sleep 1003' &) ; exec sleep 1001"


@pytest.mark.parametrize("leader_too", [False, True])
def test_an_abandoned_tree_ends_through_an_heir_wherever_it_hides(
    host: Host, link: Link, doctor: Doctor, leader_too: bool
) -> None:
    state = link.started(argv=["sh", "-c", HIDING])
    tree = wait_for(lambda: found if len(found := sleepers(host)) == 4 else None)
    abandon(host, link, "r1")
    if leader_too:
        os.kill(state["pid"], signal.SIGKILL)
        wait_for(lambda: not stat(state["pid"]))
        tree = [pid for pid in tree if pid != state["pid"]]
    seen = doctor.look()
    assert {orphan["pid"] for orphan in seen["orphans"]} == set(tree)
    assert {orphan["care"] for orphan in seen["orphans"]} == {"abandoned"}
    did = doctor.reap()
    assert {pid: done["ended"] for pid, done in did.items()} == dict.fromkeys(tree, True)
    assert not any(map(stat, tree))
    assert host.record("w-0", "r1", "gone.json")
    host.assert_nothing_left()
    assert doctor.look()["orphans"] == []


def sleepers(host: Host) -> list[int]:
    """The processes of the test's tree: all whose output is this host's."""
    found = []
    for name in os.listdir("/proc"):
        try:
            mine = name.isdigit() and os.readlink(f"/proc/{name}/fd/1").startswith(str(host.base))
        except OSError:
            continue
        if mine and b"sleep" in Path(f"/proc/{name}/comm").read_bytes():
            found.append(int(name))
    return sorted(found)


def finished(host: Host, link: Link) -> Callable[..., None]:
    """A run that is over; returns how to add a line to its tree record."""
    link.started()
    link.stopped()
    record = host.run_dir("w-0", "r1") / "tree.jsonl"

    def add(pid: int, start: int | None = None) -> None:
        fields = stat(pid) or []
        line = {"pid": pid, "start": int(fields[19]) if start is None else start, "sid": int(fields[3])}
        with record.open("a") as file:
            file.write(json.dumps(line) + "\n")

    return add


def test_who_outlived_a_finished_run_is_ended(host: Host, link: Link, doctor: Doctor) -> None:
    add = finished(host, link)
    left = host.run("sh", "-c", "sleep 1000 & setsid sleep 1001 & exec sleep 1002")
    children = wait_for(lambda: found if len(found := below(left)) == 2 else None)
    add(left)
    did = doctor.reap()
    assert {pid: done["ended"] for pid, done in did.items()} == dict.fromkeys([left, *children], True)
    assert {did[left]["proof"], did[children[0]]["proof"]} == {"recorded", "descends"}
    assert not any(map(stat, [left, *children]))


def below(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("whose", ["its pid", "its session's number", "another boot's", "another container's"])
def test_a_bystander_is_never_signalled(host: Host, link: Link, doctor: Doctor, tmp_path: Path, whose: str) -> None:
    """It bears a recorded number, and is somebody else."""
    add = finished(host, link)
    heard = tmp_path / "heard"
    trap = f"trap 'echo $0 >> {heard}' HUP INT QUIT TERM USR1 CONT; echo up > {heard}; while :; do sleep 0.05; done"
    bystander = host.run("sh", "-c", trap)
    wait_for(heard.exists)
    born = int((stat(bystander) or [])[19])
    record = host.run_dir("w-0", "r1") / "run.json"
    run = json.loads(record.read_text())
    if whose == "its pid":
        add(bystander, born - 100)
        run |= {"pid": bystander, "sid": bystander, "start": born - 100}
    elif whose == "its session's number":
        run |= {"pid": 2**22 - 5, "sid": bystander, "start": born - 100}
    else:
        add(bystander)
        run |= {"boot" if "boot" in whose else "pidns": "other", "pid": bystander, "sid": bystander, "start": born}
    record.write_text(json.dumps(run))
    assert doctor.look()["orphans"] == []
    assert doctor.reap() == {}
    assert (stat(bystander) or [b"T"])[0] in b"SRD"
    assert heard.read_text() == "up\n"


def test_a_broken_record_proves_nothing(host: Host, link: Link, doctor: Doctor) -> None:
    add = finished(host, link)
    add(os.getpid(), 1)
    with (host.run_dir("w-0", "r1") / "tree.jsonl").open("a") as file:
        file.write('{"pid": 1\n[]\n{"pid": "x", "start": 1}\n{"pid":')
    assert doctor.look()["ours"] == {}
    assert doctor.reap() == {}
