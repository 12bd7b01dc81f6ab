"""Every cell of every table is written: nothing can happen in a state that nobody thought of."""

from __future__ import annotations

import itertools

import pytest

from supervisor.core import life
from supervisor.core.facts import Phase
from supervisor.core.fleet import EVENT_OF
from supervisor.core.process import AT_REST, LIVE, Event, State
from supervisor.hostside import ladder


def test_every_cell_of_the_process_table_is_written() -> None:
    assert life.TABLE.keys() == set(itertools.product(State, Event))


def test_every_phase_of_a_run_is_an_event() -> None:
    assert EVENT_OF.keys() == set(Phase)


def test_no_state_is_both_alive_and_at_rest() -> None:
    assert not LIVE & AT_REST


def test_every_cell_of_the_ladder_is_written() -> None:
    assert ladder.ROWS.keys() == set(ladder.STEPS)
    assert all(row.keys() == set(ladder.EVENTS) for row in ladder.ROWS.values())


def climb(*history: tuple[str, float], term_s: float = 30.0) -> list[str | None]:
    step, did = ladder.Ladder(term_s=term_s), []
    for event, now in history:
        step, entered = ladder.on(step, event, now)
        did.append(entered)
    return did


def draining(*history: tuple[str, float]) -> list[tuple[str, float | None]]:
    """Asked at 0 s with 60 s to drain and 30 s to end; the steps and deadlines after each."""
    step, did = ladder.Ladder(term_s=90.0, drain_s=60.0), []
    for event, now in ((ladder.ASK, 0.0), *history):
        step, _ = ladder.on(step, event, now)
        did.append((step.step, step.deadline))
    return did


def test_sigterm_waits_for_the_drain_and_the_time_to_end_is_counted_from_it() -> None:
    assert draining((ladder.DRAINED, 7.0)) == [("drain", 60.0), ("term_leader", 36.5)]


def test_a_drain_that_takes_too_long_is_cut_off() -> None:
    steps = [("drain", 60.0), ("term_leader", 89.5), ("term_rest", 90.0), ("kill", 100.0)]
    assert draining((ladder.DUE, 60.0), (ladder.DUE, 89.5), (ladder.DUE, 90.0)) == steps


def test_what_is_loading_has_nothing_to_finish_and_may_be_deaf() -> None:
    steps = [("drain", 60.0), ("term_leader", 3.0), ("term_rest", 3.5), ("kill", 13.5)]
    assert draining((ladder.UNSERVED, 0.5), (ladder.DUE, 3.0), (ladder.DUE, 3.5)) == steps


def test_a_drain_may_be_skipped_and_shortened_and_not_lengthened() -> None:
    step = ladder.Ladder(step=ladder.DRAIN, deadline=60.0, kill_at=90.0)
    again = [
        ladder.on(step._replace(term_s=term, drain_s=drain), ladder.ASK, 5.0)[0]
        for term, drain in [(0, 0), (20, 9), (900, 600)]
    ]
    assert [(s.step, s.deadline, s.kill_at) for s in again] == [
        ("drain", 5.0, 5.5), ("drain", 14.0, 25.0), ("drain", 60.0, 90.0),
    ]  # fmt: skip


def test_a_leader_that_ends_while_it_drains_takes_the_rest_with_it() -> None:
    assert draining((ladder.LEADER_GONE, 2.0), (ladder.DUE, 3.0)) == [("drain", 60.0), ("term_rest", 3.0), ("kill", 13.0)]


def test_memory_that_does_not_come_back_is_held_and_still_ends_when_it_does() -> None:
    step, did = ladder.Ladder(gpus=True), []
    for event in (ladder.ASK, ladder.EMPTY, ladder.EMPTY, ladder.DUE, ladder.RETURNED):
        step, entered = ladder.on(step, event, 0.0)
        did.append(entered)
    assert did == [ladder.TERM_LEADER, ladder.GPU_RETURN, None, ladder.GPU_HELD, ladder.DONE]


def test_a_deaf_tree_is_killed_and_then_stuck_and_never_looped_over() -> None:
    due = ladder.DUE
    history = [(ladder.ASK, 0.0), (due, 30.0), (due, 31.0), (due, 41.0), (due, 42.0), (due, 1e6)]
    assert climb(*history) == ["term_leader", "term_rest", "kill", "stuck", None, None]


@pytest.mark.parametrize("term_s", [0.0, 0.2, 5.0, 90.0])
def test_who_is_deaf_is_killed_when_the_grace_is_over_and_no_later(term_s: float) -> None:
    step, now = ladder.Ladder(term_s=term_s), 100.0
    step, did = ladder.on(step, ladder.ASK, now)
    while did != ladder.KILL:
        assert step.deadline is not None
        now = step.deadline
        step, did = ladder.on(step, ladder.DUE, now)
    assert now == pytest.approx(100.0 + max(term_s, ladder.HASTE_S))


def test_a_leader_that_ends_late_leaves_the_rest_what_is_left_of_the_grace() -> None:
    step, _ = ladder.on(ladder.Ladder(term_s=5.0), ladder.ASK, 0.0)
    step, _ = ladder.on(step, ladder.LEADER_GONE, 4.2)
    assert step.deadline == 5.0


def test_what_was_stuck_may_still_end_and_may_be_killed_once_more() -> None:
    stuck = [(ladder.ASK, 0.0), (ladder.DUE, 30.0), (ladder.DUE, 31.0), (ladder.DUE, 41.0)]
    assert climb(*stuck, (ladder.EMPTY, 50.0))[-1] == "done"
    assert climb(*stuck, (ladder.ASK, 50.0))[-1] == "kill"


def test_a_leader_that_ends_unasked_takes_what_it_leaves_behind_with_it() -> None:
    assert climb((ladder.LEADER_GONE, 0.0), (ladder.DUE, 1.0)) == ["term_rest", "kill"]


@pytest.mark.parametrize(("again_s", "deadline"), [(0.0, 5.0), (60.0, 29.5)])
def test_asking_again_only_brings_the_deadline_closer(again_s: float, deadline: float) -> None:
    step, _ = ladder.on(ladder.Ladder(term_s=30.0), ladder.ASK, 0.0)
    step, entered = ladder.on(step._replace(term_s=again_s), ladder.ASK, 5.0)
    assert (step.deadline, entered) == (deadline, None)


@pytest.mark.parametrize("step", ladder.STEPS)
def test_an_empty_tree_is_done_from_everywhere(step: str) -> None:
    reached, _ = ladder.on(ladder.Ladder(step=step), ladder.EMPTY, 1.0)
    assert reached.step == ("done" if step not in (ladder.GPU_RETURN, ladder.GPU_HELD) else step)
