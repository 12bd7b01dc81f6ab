"""Hosts that go down and come up again: nobody's failure, back once each, and nothing started on one that is leaving."""

from __future__ import annotations

import pytest

from supervisor.core.actions import Spawn
from supervisor.core.diagnosis import WITH_HOST, Retry, diagnose
from supervisor.core.facts import HostFound, LeavingTold, Phase, Placed, RunState
from supervisor.core.status import status
from tests.core.world import World, by_name, exited, run_state, spawns, up, wanted

WHY = "systemd is stopping it"


def boots(world: World, boot: str, *runs: RunState, host: str = "gpu01", leaving: str = "") -> list[str]:
    """Found with this boot id. Whom that starts, timers that are due at once included."""
    actions = world.tell(HostFound(host, runs, boot, leaving=leaving))
    return [*spawns(actions), *(name for process in world.fleet.processes for name in spawns(world.due(process)))]


def closed(world: World, process: str = "qwen-0", cause: str = "reboot") -> RunState:
    """As its host's records tell it after a reboot."""
    return run_state(world[process].run, Phase.GONE, process, exit=exited(None, cause=cause, message=WITH_HOST[cause]))


def leaves(world: World, why: str = WHY, host: str = "gpu01") -> list[str]:
    return spawns(world.tell(LeavingTold(host, why)))


@pytest.mark.parametrize("cause", WITH_HOST)
def test_what_ends_with_its_host_is_tried_again_at_once_and_no_failure(cause: str) -> None:
    found = diagnose(exited(None, cause=cause), "error: unrecognized arguments")
    assert (found.text, found.retry, found.own) == (WITH_HOST[cause], Retry.AT_ONCE, False)
    said = diagnose(exited(None, cause=cause, message="in its host's own words"), "")
    assert said.text == "in its host's own words"


def test_a_keeper_that_somebody_sent_sigterm_has_failed_whatever_the_exit_code() -> None:
    found = diagnose(exited(0, cause="terminated"), "")
    assert (found.text, found.retry, found.own) == ("its keeper was sent SIGTERM", Retry.BACKOFF, True)


@pytest.mark.parametrize("lost", [True, False])
def test_a_rebooted_host_brings_its_workers_back_once_each(lost: bool) -> None:
    """`lost` False: it is back before anybody noticed."""
    both = (wanted(), wanted("qwen-1"))
    world = up(*both)
    first = {name: world[name].run for name in world.states}
    world.tell(HostFound("gpu01", tuple(run_state(run, process=name) for name, run in first.items()), "b1"))
    world.lost()
    boots(world, "b1", *(run_state(run, process=name) for name, run in first.items()))
    world.ready("qwen-0", "qwen-1")
    if lost:
        world.lost()
    assert boots(world, "b2", closed(world), closed(world, "qwen-1")) == ["qwen-0", "qwen-1"]
    assert boots(world, "b2", closed(world), closed(world, "qwen-1")) == []
    assert all(world[name].run != run for name, run in first.items())
    assert {world[name].last_exit.cause for name in first} == {"reboot"}  # type: ignore[union-attr]


def test_ten_reboots_are_no_crash_loop_and_its_own_failures_still_count() -> None:
    world = up(wanted())
    for boot in range(10):
        world.lost()
        assert boots(world, f"b{boot}", closed(world)) == ["qwen-0"]
        world.runs()
        world.now_s += 1
    assert (world["qwen-0"].restarts, world["qwen-0"].restarts_s) == (10, ())
    for _ in range(5):
        world.ends(exited(1))
        assert world.state == "backoff"
        world.due()
        world.runs()
    world.ends(exited(1))
    assert world.state == "failed"


def test_a_run_that_a_reboot_wiped_from_the_records_ended_with_its_host() -> None:
    world = up(wanted())
    world.lost()
    boots(world, "b1", run_state(world.run))
    world.lost()
    assert boots(world, "b2") == ["qwen-0"]
    assert world["qwen-0"].restarts_s == ()
    world.runs()
    world.lost()
    boots(world, "b2")
    assert len(world["qwen-0"].restarts_s) == 1, "in one boot a run does not vanish by itself"


def test_what_is_stopped_by_hand_or_has_failed_stays_so_over_a_reboot() -> None:
    world = up(wanted(), wanted("qwen-1"))
    world.asked("qwen-0", up=False)
    world.ends()
    world.ends(exited(None, cause="missing"), "qwen-1")
    world.lost()
    gone = [run_state(world[name].run, Phase.GONE, name, exit=world[name].last_exit) for name in world.states]
    assert boots(world, "b2", *gone) == []
    assert world.states == {"qwen-0": "stopped", "qwen-1": "failed"}


# --- leaving --------------------------------------------------------------------------------------------------------------


def test_on_a_host_that_is_leaving_nothing_is_started_before_it_is_back() -> None:
    world = up(wanted(), wanted("other-0", host="gpu02"))
    world.now_s = 60.0
    assert leaves(world) == []
    world.ends(exited(0, cause="shutdown"))
    assert spawns(world.due()) == []
    assert (world.state, world["qwen-0"].reason) == ("pending", "gpu01 is shutting down")
    world.plan(wanted(), wanted("qwen-1"), wanted("other-0", host="gpu02"))
    world.tell(Placed(by_name(wanted(), wanted("qwen-1"), wanted("other-0", host="gpu02"))))
    world.asked("qwen-0", up=True)
    world.lost()
    assert boots(world, "b1", closed(world, cause="shutdown"), leaving=WHY) == [], "its sshd still answers"
    seen = status(world.fleet, deployment="lab", endpoints=[], controller=None, now_s=90.0)
    assert seen["hosts"][0]["leaving"] == {"why": WHY, "since": 60.0}
    world.lost()
    assert not [a for a in world.did if isinstance(a, Spawn)]
    assert sorted(boots(world, "b2", closed(world, cause="shutdown"))) == ["qwen-0", "qwen-1"]
    assert "leaving" not in status(world.fleet, deployment="lab", endpoints=[], controller=None, now_s=90.0)["hosts"][0]


def test_a_shutdown_that_is_called_off_lets_what_waits_start() -> None:
    world = up(wanted())
    leaves(world)
    world.ends(exited(0, cause="shutdown"))
    world.due()
    assert leaves(world, "") == ["qwen-0"]


def test_other_hosts_start_as_ever() -> None:
    world = up(wanted(), wanted("other-0", host="gpu02"))
    leaves(world)
    world.ends(exited(1), "other-0")
    assert spawns(world.due("other-0")) == ["other-0"]


def test_on_a_host_that_leaves_a_sigterm_was_the_shutdown_and_elsewhere_a_failure() -> None:
    world = up(wanted(), wanted("other-0", host="gpu02"))
    leaves(world)
    world.ends(exited(0, cause="terminated", message="its keeper was sent SIGTERM"))
    world.ends(exited(0, cause="terminated", message="its keeper was sent SIGTERM"), "other-0")
    assert world["qwen-0"].last_exit.message == f"its host was shutting down: {WHY}"  # type: ignore[union-attr]
    assert (len(world["qwen-0"].restarts_s), len(world["other-0"].restarts_s)) == (0, 1)
