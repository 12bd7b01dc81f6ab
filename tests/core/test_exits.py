"""Every cause that is known by what a program wrote, against what real programs wrote: see tests/core/exits."""

from __future__ import annotations

import pytest

from supervisor.core.actions import WakeAt
from supervisor.core.diagnosis import KNOWN, Retry, diagnose
from supervisor.core.exit import Exit
from supervisor.core.facts import Phase
from supervisor.core.status import status
from supervisor.runtime.parse import ended
from tests.core.exits import ALL, Recorded
from tests.core.test_memory import next_controller
from tests.core.world import World, exited, run_state, spawns, up, wanted

ROWS = {known.name: known for known in KNOWN}


def exit_of(one: Recorded) -> Exit:
    return ended(one.exit)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_real_end_is_explained_by_its_row(one: Recorded) -> None:
    cause, row = diagnose(exit_of(one), one.tail), ROWS[one.row]
    assert (cause.row, cause.text, cause.retry, cause.own) == (row.name, row.text, row.retry, row.own)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_and_with_evidence_from_what_was_seen(one: Recorded) -> None:
    evidence = diagnose(exit_of(one), one.tail).evidence
    assert set(one.exit.get("signs", {}).values()) <= set(evidence)
    lines = [line for line in evidence if line not in one.exit.get("signs", {}).values()]
    assert bool(lines) == (ROWS[one.row].said is not None)
    assert all(line.strip("…") in one.tail and len(line) <= 301 for line in lines)
    assert all(ROWS[one.row].said.search(line) for line in lines if ROWS[one.row].said)


def test_every_row_has_a_recording_and_a_command_that_reproduces_it() -> None:
    assert {one.row for one in ALL} == ROWS.keys()
    assert all(one.command for one in ALL)


def test_rows_have_names_of_their_own() -> None:
    assert len(ROWS) == len(KNOWN)


OOM = (("oom", "oom_kill in /proc/vmstat rose from 3 to 4 in its last 40 s"),)


def test_a_sigkill_is_the_kernels_only_where_it_counted_one() -> None:
    assert diagnose(exited(None, 9, signs=OOM), "").text == "killed by the kernel: out of memory"
    assert diagnose(exited(None, 9), "").text == "killed by SIGKILL"


def test_what_the_kernel_killed_elsewhere_is_evidence_and_no_cause_of_a_quiet_end() -> None:
    found = diagnose(exited(0, signs=OOM), "")
    assert "exit code 0" in found.text
    assert found.evidence == (OOM[0][1],)


def test_what_its_host_saw_of_its_gpus_is_evidence() -> None:
    lost = "GPU 0 (GPU-1) is not there any more"
    found = diagnose(exited(1, signs=(("gpu", lost),)), "CUDA error: unspecified launch failure\n")
    assert found.evidence == ("CUDA error: unspecified launch failure", lost)


def test_colours_do_not_hide_a_line() -> None:
    assert diagnose(exited(1), "\x1b[31mERROR\x1b[0m Unknown \x1b[2marguments specified: ['--x']\n").row == "arguments"


def test_the_words_of_a_killed_program_explain_nothing() -> None:
    assert diagnose(exited(None, 15), "error: unrecognized arguments: --x\n").text == "killed by SIGTERM"


# --- policy follows the cause --------------------------------------------------------------------------------------------


def started() -> World:
    world = World()
    world.plan(wanted())
    world.found()
    world.runs()
    return world


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_it_is_tried_again_as_its_cause_says(one: Recorded) -> None:
    world = started()
    did = world.ends(exit_of(one), tail=one.tail)
    delays = [action.at_s - world.now_s for action in did if isinstance(action, WakeAt)]
    match ROWS[one.row].retry:
        case Retry.NEVER:
            assert (world.state, delays) == ("failed", [])
        case Retry.AT_ONCE:
            assert (world.state, delays) == ("backoff", [0.0])
        case Retry.BACKOFF:
            assert world.state == "backoff"
            assert 0.8 <= delays[0] <= 1.2


def test_a_frontend_that_exits_0_because_of_its_lease_is_back_however_often_etcd_is_away() -> None:
    lost = next(one for one in ALL if one.name == "frontend-lease-lost")
    assert lost.exit == {"code": 0}
    world = started()
    for _ in range(20):
        world.ends(exit_of(lost), tail=lost.tail)
        assert world["qwen-0"].reason == "it lost its etcd lease"
        assert spawns(world.due()) == ["qwen-0"]
        world.runs()


def test_an_old_line_does_not_end_for_good_what_has_served_since() -> None:
    """It was right once: its arguments, its model and its interpreter are."""
    world = up()
    world.ends(exited(1), tail="a tool said: error: unrecognized arguments: --x\n")
    assert world.state == "backoff"


def test_a_start_that_had_to_wait_for_etcd_is_not_its_end() -> None:
    waited = "WARN etcd not reachable yet; retrying startup connection error=Unable to create lease. Check etcd server status\n"
    found = diagnose(exited(1), waited)
    assert (found.row, found.own) == ("", True)


def test_what_it_says_itself_beats_a_kill_that_may_be_anybodys() -> None:
    found = diagnose(exited(2, signs=OOM), "error: unrecognized arguments: --x\n")
    assert (found.row, OOM[0][1] in found.evidence) == ("arguments", True)


def evidence(world: World) -> list[str]:
    seen = status(world.fleet, deployment="lab", endpoints=(), controller=None, now_s=world.now_s)
    return seen["processes"][0].get("evidence", [])


def test_the_evidence_is_shown_until_it_serves_again() -> None:
    world = started()
    world.ends(exited(None, 9, signs=OOM))
    assert evidence(world) == [OOM[0][1]]
    world.now_s = 10.0
    world.due()
    world.runs()
    assert evidence(world) == [OOM[0][1]], "it is starting again, and this is why"
    world.ready()
    assert evidence(world) == []
    world.asked("qwen-0", up=False)
    world.ends()
    assert evidence(world) == []


def test_of_what_was_ended_for_hanging_what_its_host_saw_is_shown_and_not_what_it_wrote() -> None:
    world = started()
    world.now_s = 300.0
    world.due()
    world.ends(exited(None, 9, asked=True, signs=OOM), tail="CUDA out of memory\n")
    assert evidence(world) == [OOM[0][1]]
    assert "no progress" in world["qwen-0"].reason


def test_the_next_controller_shows_it_when_its_host_tells_of_that_run_again() -> None:
    world = started()
    world.ends(exited(1), tail="error: unrecognized arguments: --x\n")
    again = next_controller(world)
    assert (again.state, evidence(again)) == ("failed", [])
    again.found(run_state(world.run, Phase.GONE, exit=exited(1), tail="error: unrecognized arguments: --x\n"))
    assert (again.state, evidence(again)) == ("failed", ["error: unrecognized arguments: --x"])
