"""SIGKILL of keeper, pump, both: what they own lives and serves, its end is known as far as it can be, `down` ends all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from supervisor.core.snapshot import ProcessStatus, Status
from tests.e2e.lab import Lab
from tests.e2e.procs import alive, send, until

KINDS = {"etcd": ("etcd-0", "etcd-0", "etcd-0"), "frontend": ("frontend-0",) * 3, "mocker": ("mock-0", "mock-1", "mock-2")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["models"][0]["replicas"] = 3
        lab.write()
        lab.up()
        yield lab
        lab.down()


def settled(lab: Lab, name: str) -> dict[str, list[int]]:
    """Keeper (or heir) and pump are both there, once each."""

    def true() -> bool:
        found = lab.helpers(name)
        return len(found["keeper"]) + len(found["heir"]) == 1 and len(found["pump"]) == 1

    until(true)
    return lab.helpers(name)


def kill(*victims: int) -> None:
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)  # so that neither sees the other die
    for pid in victims:
        send(pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in victims))


def serves(lab: Lab, before: ProcessStatus) -> ProcessStatus:
    """The very same process is there and does its work."""
    now = lab.process(before["name"])
    assert (now["pid"], now["run"], now["restarts"]) == (before["pid"], before["run"], before["restarts"])
    for _ in range(3):
        lab.chat()
    assert len(lab.instances()) == 3
    return now


def ended(lab: Lab, before: ProcessStatus) -> ProcessStatus:
    """SIGKILL the process itself; how that is told once it is healed."""

    def back(status: Status) -> bool:
        mine = next(p for p in status["processes"] if p["name"] == before["name"])
        return status["ready"] and mine["run"] != before["run"]

    assert before["pid"] is not None
    send(before["pid"], signal.SIGKILL)
    lab.wait(back)
    return lab.process(before["name"])


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_pump(lab: Lab, kind: str) -> None:
    before = lab.process(KINDS[kind][0])
    (pump,) = settled(lab, before["name"])["pump"]
    kill(pump)
    after = settled(lab, before["name"])
    assert after["pump"] != [pump]
    assert after["heir"] == []
    assert "pump died" in " ".join(serves(lab, before)["notes"])
    if kind == "mocker":
        last = ended(lab, before)["last_exit"]
        assert last is not None
        assert (last["code"], last["signal"]) == (None, 9)  # its keeper was there to see it


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_keeper(lab: Lab, kind: str) -> None:
    before = lab.process(KINDS[kind][1])
    there = settled(lab, before["name"])
    kill(*there["keeper"])
    until(lambda: lab.helpers(before["name"])["heir"] == there["pump"])  # the pump is the heir now
    settled(lab, before["name"])
    assert "its keeper died" in " ".join(serves(lab, before)["notes"])
    nobody_knows(lab, before)


@pytest.mark.parametrize("kind", KINDS)
def test_without_both(lab: Lab, kind: str) -> None:
    before = lab.process(KINDS[kind][2])
    there = settled(lab, before["name"])
    kill(*there["keeper"], *there["pump"])
    settled(lab, before["name"])
    serves(lab, before)
    nobody_knows(lab, before)


def nobody_knows(lab: Lab, before: ProcessStatus) -> None:
    last = ended(lab, before)["last_exit"]
    assert last is not None
    assert (last["code"], last["signal"]) == (None, None)
    assert "keeper had died" in last["cause"]
    lab.chat()


def test_down_ends_what_heirs_own(lab: Lab) -> None:
    for process in ("etcd-0", "frontend-0", "mock-0"):
        kill(*settled(lab, process)["keeper"])
    lab.down()
