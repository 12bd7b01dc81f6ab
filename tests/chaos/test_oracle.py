"""An oracle that cannot fail proves nothing: each wrong that it is there for, planted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import watch
from tests.chaos.oracle import END_STATES, Facts, Ledger, Life, end_states, lost_logs, orphans, wrong
from tests.chaos.watch import Being, Onlooker
from tests.e2e.procs import until


def owned(name: str, life: str, pid: int, run: str) -> tuple[Being, ...]:
    """A life with its child, keeper and pump."""
    return (
        Being(pid, 1, "S", pid, "life", name, life),
        Being(pid + 1, 1, "S", pid, "life", name, life),
        Being(pid + 2, 1, "S", pid + 2, "keeper", name, run=run),
        Being(pid + 3, 1, "S", pid + 2, "pump", name, run=run),
    )


def process(name: str, pid: int, run: str, **more: Any) -> dict[str, Any]:
    found = {"name": name, "host": "b", "kind": "mocker", "state": "ready", "desired": "running", "reason": "", "run": run}
    return {**found, "pid": pid - 1000, "ports": {"system": 30000 + pid}, **more}


BEINGS = (*owned("w-0", "l0", 1000, "r0"), *owned("w-1", "l1", 1010, "r1"))
GOOD = Facts(
    wanted=frozenset({"w-0", "w-1"}),
    beings=BEINGS,
    hosts={being.pid: "b" for being in BEINGS},
    inside={being.pid: being.pid - 1000 for being in BEINGS},
    status={
        "ready": True,
        "verdict": "READY",
        "processes": [process("w-0", 1000, "r0"), process("w-1", 1010, "r1")],
        "hosts": [{"name": "b", "state": "up"}],
    },
    dialled=frozenset({("b", 31000), ("b", 31010)}),
)


def without(facts: Facts, *pids: int) -> Facts:
    return replace(facts, beings=tuple(being for being in facts.beings if being.pid not in pids))


def beside(facts: Facts, *beings: Being) -> Facts:
    hosts = {**facts.hosts, **{being.pid: "b" for being in beings}}
    inside = {**facts.inside, **{being.pid: being.pid - 1000 for being in beings}}
    return replace(facts, beings=(*facts.beings, *beings), hosts=hosts, inside=inside)


def told(facts: Facts, name: str, **other: Any) -> Facts:
    assert facts.status is not None
    processes = [{**p, **other} if p["name"] == name else p for p in facts.status["processes"]]
    return replace(facts, status={**facts.status, "processes": processes})


def test_all_is_well() -> None:
    assert wrong(GOOD) == []


PLANTED: dict[str, tuple[Callable[[Facts], Facts], str]] = {
    "a second life": (lambda f: beside(f, *owned("w-0", "l2", 1020, "r0")), "w-0: 2 lives"),
    "a child of an earlier life": (lambda f: beside(f, Being(1020, 1, "S", 7, "life", "w-0", "old")), "w-0: 2 lives"),
    "an orphan": (lambda f: without(f, 1002, 1003), "w-0: life l0 is an orphan"),
    "an orphan owned on another host": (
        lambda f: replace(f, hosts={**f.hosts, 1002: "c", 1003: "c"}),
        "w-0: life l0 is an orphan",
    ),
    "nobody": (lambda f: without(f, 1000, 1001, 1002, 1003), "w-0: wanted, and nobody lives"),
    "its child only": (lambda f: without(f, 1000), "w-0: wanted, and nobody lives"),
    "alive though stopped": (lambda f: replace(f, wanted=frozenset({"w-1"})), "w-0: lives, though nobody wants it"),
    "a keeper of nothing": (lambda f: without(f, 1000, 1001), "w-0: its keeper keeps nothing"),
    "two keepers": (lambda f: beside(f, Being(1020, 1, "S", 1020, "heir", "w-0", run="r0")), "w-0: 2 keepers"),
    "a stopped pump": (lambda f: beside(without(f, 1003), replace(BEINGS[3], state="T")), "w-0: pump 1003 is stopped"),
    "no controller": (lambda f: replace(f, controllers=0), "0 controllers"),
    "two controllers": (lambda f: replace(f, controllers=2), "2 controllers"),
    "a silent controller": (lambda f: replace(f, status=None), "no controller answers"),
    "another pid told": (lambda f: told(f, "w-0", pid=99), "w-0: told to be pid 99"),
    "another host told": (lambda f: told(f, "w-0", host="c"), "w-0: told to be pid 0 on c"),
    "another run told": (lambda f: told(f, "w-0", run="r9"), "w-0: told to be run r9"),
    "a port nobody listens at": (lambda f: told(f, "w-0", ports={"rpc": 5}), "w-0: nobody listens at its port 5"),
    "not ready": (lambda f: told(f, "w-0", state="backoff"), "w-0: told to be backoff"),
    "wanted, not listed": (lambda f: replace(f, wanted=f.wanted | {"w-2"}), "w-2: wanted, and not in the status"),
    "a host that is not up": (
        lambda f: replace(f, status={**(f.status or {}), "hosts": [{"name": "b", "state": "unreachable"}]}),
        "host b is unreachable",
    ),
    "a verdict that is not so": (lambda f: replace(f, status={**(f.status or {}), "ready": False}), "all is well, and"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_wrong_is_seen(name: str) -> None:
    planted, words = PLANTED[name]
    assert any(line.startswith(words) for line in wrong(planted(GOOD))), wrong(planted(GOOD))


def test_without_a_frontend_nobody_can_be_seen_to_serve() -> None:
    starting = told(GOOD, "w-0", state="starting")
    assert wrong(starting)
    assert starting.status is not None
    frontend = process("frontend-0", 1030, "", state="stopped", desired="stopped")
    dark = replace(starting, status={**starting.status, "processes": [*starting.status["processes"], frontend]})
    assert wrong(dark) == []
    assert wrong(told(dark, "w-0", state="backoff"))


def test_an_end_state_is_named_by_noray_and_excuses_nothing_else() -> None:
    assert len(END_STATES) <= 6
    assert end_states(GOOD) is None
    failed = told(without(GOOD, 1000, 1001, 1002, 1003), "w-0", state="failed", reason="5 restarts did not help", pid=None)
    assert end_states(failed) == {"crash budget spent"}
    assert end_states(told(failed, "w-1", state="backoff")) is None  # that one is not explained
    assert end_states(told(failed, "w-0", reason="no idea")) is None
    assert end_states(without(failed, 1012, 1013)) is None  # an orphan beside it
    assert end_states(beside(failed, *owned("w-1", "l9", 1020, "r1"))) is None  # a second life beside it
    assert end_states(replace(failed, status=None)) is None


def test_an_orphan_has_nobody_and_a_pump_is_somebody() -> None:
    assert orphans(GOOD) == orphans(without(GOOD, 1002)) == orphans(without(GOOD, 1003)) == []
    assert orphans(without(GOOD, 1002, 1003)) == ["w-0: life l0 is an orphan"]


# --- the ledger -----------------------------------------------------------------------------------------------------------


def test_two_lives_at_once_are_seen_whatever_became_of_them() -> None:
    onlooker, here = Onlooker(), lambda _: True
    events = onlooker.see([BEINGS[0]], 1.0, here)
    events += onlooker.see([BEINGS[0], Being(1020, 1, "S", 1020, "life", "w-0", "l2")], 2.0, here)
    events += onlooker.see([], 3.0, here)
    ledger = Ledger.of(events)
    assert ledger.doubles == ["w-0: two lives at once: l0, l2"]
    assert [(life.life, life.born, life.ended) for life in ledger.ended("w-0")] == [("l0", 1.0, 3.0), ("l2", 2.0, 3.0)]


def test_one_after_the_other_is_no_double() -> None:
    onlooker = Onlooker()
    second = Being(1020, 1, "S", 1020, "life", "w-0", "l2")
    onlooker.see([BEINGS[0]], 1.0, lambda _: True)
    events = onlooker.see([BEINGS[0], second], 2.0, lambda being: being is second)  # the first ended within this look
    assert not Ledger.of([{"born": "l0", "name": "w-0", "at": 1.0}, *events]).doubles


def test_the_onlooker_sees_real_processes(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "known", tmp_path / "ledger"
    argv = [sys.executable, "-I", "-S", watch.__file__, str(folder), str(ledger)]
    env = {"CHAOS_FOLDER": str(folder), "CHAOS_NAME": "w-0"}
    lives = [subprocess.Popen(["sleep", "60"], env={**env, "CHAOS_LIFE": life}) for life in ("one", "two")]
    other = subprocess.Popen(["sleep", "60"], env={**env, "CHAOS_FOLDER": "elsewhere", "CHAOS_LIFE": "three"})
    try:
        with subprocess.Popen(argv, stdin=subprocess.PIPE):
            seen = [being.life for being in watch.scan(str(folder)) if being.role == "life"]
            until(lambda: ledger.exists() and "double" in ledger.read_text(), 5.0)
            lives[0].kill()
            lives[0].wait()
            until(lambda: "ended" in ledger.read_text(), 5.0)
    finally:
        for each in (*lives, other):
            each.kill()
            each.wait()
    assert sorted(seen) == ["one", "two"]
    found = Ledger.of([json.loads(line) for line in ledger.read_text().splitlines()])
    assert found.doubles == ["w-0: two lives at once: one, two"]
    assert [life.life for life in found.ended("w-0")] == ["one"]


def lived(*numbers: int) -> list[Life]:
    return [Life("w-0", f"l{number}", float(number), number + 0.5) for number in numbers]


def kept(*numbers: int) -> str:
    return "\n".join(f"life l{number} of w-0\nbeat" for number in numbers)


def test_a_lost_log_is_seen() -> None:
    all_ = lived(1, 2, 3, 4, 5, 6)
    assert lost_logs(all_, kept(1, 4, 5, 6), 0.0) == []
    assert lost_logs(all_, kept(1, 4, 6), 0.0) == ["w-0: the log of l5 is lost"]
    assert lost_logs(all_, kept(4, 5, 6), 0.0) == ["w-0: the log of its first failure, l1, is lost"]
    assert lost_logs(all_, kept(4, 5, 6), 1.2) == ["w-0: the log of its first failure, l2, is lost"]
    assert lost_logs(all_, kept(1, 4, 5, 6), 1.2) == []  # what ended it was a reboot
    assert lost_logs(all_, kept(2, 4, 5, 6), 1.2) == []  # somebody may have asked the first to end
    assert lost_logs(all_, kept(1, 4, 6), 0.0, said=1) == []
    assert len(lost_logs(all_, kept(1, 6), 0.0, said=1)) == 2
    assert lost_logs(all_, kept(1, 6), 0.0, unborn=2) == []  # runs that never lived took two places


def test_keepers_of_others_are_nobody() -> None:
    title = b"noray-keeper w-0@r1 (ours)\0"
    assert watch.identity("f", title, b"", "ours") == ("keeper", "w-0", "", "r1")
    assert watch.identity("f", title, b"", "others") == ("", "", "", "")
