"""A controller's pen: what one puts down, the next one reads, on its own clock."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from supervisor.core.facts import Asked, CordonAsked, HostFound, Phase, RunEvent, Told
from supervisor.core.known import Fleet
from supervisor.core.process import State
from supervisor.core.restart import RestartPolicy
from supervisor.effects.statedir import StateDir
from supervisor.effects.store import Row
from supervisor.recording import Recorder
from tests.core.world import World, exited, run_state, spawns, up, wanted

HOUR_MS = 3600_000
KILLED = exited(None, 9, message="so it was", fenced_ms=7)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "lab")


@pytest.fixture
def pen(state: StateDir) -> Iterator[Recorder]:
    pen = Recorder(state)
    pen.begin(HOUR_MS, 0.0)
    yield pen
    pen.close()


def all_moved(pen: Recorder, world: World) -> None:
    pen.moved({}, world.fleet.processes, world.fleet.processes)


def events(state: StateDir) -> list[Row]:
    with state.reading() as store:
        return store.events()


def run_events(*numbers: int) -> tuple[RunEvent, ...]:
    return tuple(RunEvent(n, 1000 + n, "note", f"number {n}") for n in numbers)


def test_the_next_controller_reads_it_on_its_own_clock(state: StateDir, pen: Recorder) -> None:
    world = up()
    world.ends(KILLED)
    world.due()
    world.runs()
    world.now_s = 50.0
    world.ends(KILLED)
    all_moved(pen, world)
    pen.close()
    after = World(now_s=1000.0)
    after.fleet = Fleet(remembered=Recorder(state).begin(HOUR_MS + 51_000, 1000.0), epoch_ms=HOUR_MS + 51_000, epoch_s=1000.0)
    after.plan(wanted())
    was, now = world["qwen-0"], after["qwen-0"]
    assert now.restarts_s == pytest.approx([949.0, 999.0], abs=0.01)
    assert was.next_attempt_s is not None
    assert now.next_attempt_s == pytest.approx(was.next_attempt_s - 51 + 1000, abs=0.01)
    assert (now.run, now.last_exit, now.restarts, now.was_ready) == (was.run, was.last_exit, 2, False)
    after.found(run_state(was.run, Phase.GONE, exit=KILLED))
    assert (after.state, spawns(after.did)) == (State.BACKOFF, [])


def test_up_tries_again_what_had_failed_and_knows_what_is_left_running(state: StateDir, pen: Recorder) -> None:
    world = up(wanted("qwen-0", restart=RestartPolicy("never")), wanted("qwen-1"))
    world.ends(KILLED)
    all_moved(pen, world)
    pen.close()
    assert state.forget_failures()
    known = Recorder(state).begin(0, 0.0)
    assert {name: was.rest for name, was in known.items()} == {"qwen-0": "stopped", "qwen-1": ""}
    assert known["qwen-0"].served_s is not None, "how long its clients have been without it is not forgotten"
    world.stop()
    world.ends(process="qwen-1")
    pen.begin(0, 0.0)
    all_moved(pen, world)
    pen.close()
    assert not state.forget_failures(), "it was brought down"


def test_what_is_in_the_fleet_no_more_is_forgotten(state: StateDir, pen: Recorder) -> None:
    world = up(wanted("qwen-0"), wanted("qwen-1"))
    all_moved(pen, world)
    before = world.fleet.processes
    world.plan(wanted("qwen-0"))
    world.ends(process="qwen-1")
    pen.moved(before, world.fleet.processes, ())
    pen.close()
    assert list(Recorder(state).begin(0, 0.0)) == ["qwen-0"]


def test_events_of_a_run_are_kept_once_and_missed_ones_are_made_up_for(state: StateDir, pen: Recorder) -> None:
    for told in ((1, 2), (1, 2), (1, 2, 3, 4, 5), (1, 2, 3)):
        pen.heard(Told("gpu01", run_state("r1", events=run_events(*told))), ahead_ms=1000)
    pen.close()
    kept = [Row(n, "note", f"number {n}", "gpu01", "qwen-0", "r1", n, id=n) for n in (1, 2, 3, 4, 5)]
    assert events(state) == kept
    again = Recorder(state)
    again.begin(0, 0.0)
    found = HostFound("gpu01", (run_state("r1", events=run_events(1, 2, 3, 4, 5, 6, 9)),))
    again.heard(found)
    again.close()
    assert [e.n for e in events(state)] == [1, 2, 3, 4, 5, 6, 9], "and what its host did not keep shows as a gap"


def test_an_older_host_side_tells_none(state: StateDir, pen: Recorder) -> None:
    pen.heard(Told("gpu01", run_state("r1")))
    pen.close()
    assert events(state) == []


def test_the_operators_words_are_on_record(state: StateDir, pen: Recorder) -> None:
    pen.heard(Asked(frozenset({"qwen", "etcd-0"}), False, "ann"))
    pen.heard(Asked(frozenset({"qwen"}), True, "", runs=frozenset({"r1"})))
    pen.heard(CordonAsked(frozenset({"gpu01:3"}), True, "ann"))
    pen.close()
    assert [(e.what, e.text) for e in events(state)] == [
        ("ordered", "stop etcd-0 qwen, by ann"), ("ordered", "restart qwen, by nobody knows whom"),
        ("ordered", "cordon gpu01:3, by ann"),
    ]  # fmt: skip


@pytest.mark.anyio
async def test_it_is_written_while_the_controller_lives(state: StateDir, pen: Recorder) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pen.run)
        pen.note("controller", "began")
        with anyio.fail_after(10):
            while not events(state):  # noqa: ASYNC110 - a file tells nobody that it changed
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


def test_a_full_disk_loses_nothing_once_it_has_room_again(state: StateDir, pen: Recorder) -> None:
    full = "CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(FAIL, 'disk full'); END"
    with closing(sqlite3.connect(state.path / "noray.db")) as db, db:
        db.execute(full)
    all_moved(pen, up())
    pen.note("host", "first")
    pen._write(*pen._taken())
    with closing(sqlite3.connect(state.path / "noray.db")) as db, db:
        db.execute("DROP TRIGGER full")
    pen.note("host", "second")
    pen.close()
    assert [e.text for e in events(state)] == ["first", "second"]
    assert list(Recorder(state).begin(0, 0.0)) == ["qwen-0"]


def test_what_is_not_begun_or_is_closed_writes_nothing(state: StateDir) -> None:
    pen = Recorder(state)
    pen.note("host", "before")
    pen.close()
    assert not state.path.exists()
    pen.begin(0, 0.0)
    pen.close()
    state.remove()
    all_moved(pen, up())
    pen.note("host", "after")
    pen.close()
    assert not state.path.exists()


def test_it_costs_the_loop_next_to_nothing(pen: Recorder) -> None:
    """Budget: 50 µs for each event; what it takes here is a tenth of that, on any machine that CI has."""
    facts = [Told("gpu01", run_state(f"r{n}", events=run_events(1, 2, 3))) for n in range(2000)]
    began = time.process_time()
    for fact in facts:
        pen.heard(fact)
    spent_us = (time.process_time() - began) / 6000 * 1e6
    assert spent_us < 50, f"{spent_us:.1f} µs an event"
