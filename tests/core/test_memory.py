"""What the next controller makes of what the last one knew."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.core.actions import Fence, Spawn, Stop, WakeAt
from supervisor.core.facts import Phase, Probed
from supervisor.core.hand import Held
from supervisor.core.known import Fleet
from supervisor.core.memory import remembered
from supervisor.core.process import State
from supervisor.core.restart import RestartPolicy
from supervisor.core.wanted import Wanted
from tests.core.world import World, asks, exited, run_state, spawns, stops, up, wanted

KILLED = exited(None, 9)


def next_controller(world: World, *some: Wanted, **fleet: Any) -> World:
    """Its first moment: it has the files and the memory, and has asked nobody yet."""
    memory = {name: remembered(p) for name, p in world.fleet.processes.items()}
    after = World(Fleet(remembered=memory, epoch_ms=world.fleet.epoch_ms + 1, **fleet), world.now_s)
    after.plan(*(some or world.fleet.wanted.values()))
    return after


def gone(run: str, **more: Any) -> Any:
    return run_state(run, Phase.GONE, **{"exit": KILLED, **more})


def test_who_lives_is_adopted_as_if_nothing_had_been() -> None:
    world = up()
    after = next_controller(world)
    assert after.state is State.PENDING
    assert not spawns(after.did)
    assert not asks(after.found(run_state(world.run)))
    after.ready()
    assert (after.run, after.state, after["qwen-0"].restarts) == (world.run, State.READY, 0)


def test_since_when_it_does_not_serve_is_known_through_every_try_and_to_the_next_controller() -> None:
    world = up(wanted(restart=RestartPolicy(budget=1)))
    world.now_s = 70.0
    world.ends(KILLED)
    while world.state is not State.FAILED:
        world.now_s += 10.0
        world.due()
        world.runs()
        world.ends(KILLED)
    assert world["qwen-0"].served_s == 70.0
    world.plan(wanted(restart=RestartPolicy(budget=1)))
    assert (world.state, world["qwen-0"].served_s) == (State.STARTING, 70.0), "tried anew"
    after = next_controller(world)
    after.found(run_state(world.run))
    assert after["qwen-0"].served_s == 70.0
    after.ready()
    assert after["qwen-0"].served_s is None


def test_who_died_meanwhile_is_news_and_counted_once() -> None:
    world = up()
    after = next_controller(world)
    wakes = after.found(gone(world.run))
    assert after.state is State.BACKOFF
    assert WakeAt("qwen-0", world.run, 0.0) in wakes, "it had been healthy: at once"
    assert after["qwen-0"].reason == "killed by SIGKILL; restart 1 of 5"
    assert after["qwen-0"].last_exit == KILLED
    third = next_controller(after)
    third.found(gone(world.run))
    assert third["qwen-0"].restarts == 1, "its end had been counted"
    assert spawns(third.did) == ["qwen-0"]


def test_a_crash_loop_ends_however_many_controllers_it_sees() -> None:
    world, lives = up(wanted(restart=RestartPolicy(budget=3))), 0
    while world.state is not State.FAILED:
        run, lives = world.run, lives + 1
        assert lives < 10
        world = next_controller(world)
        for wake in world.found(gone(run)):
            if isinstance(wake, WakeAt):
                world.now_s = wake.at_s
                world.due()
        world.runs() if spawns(world.did) else None
    assert lives == 4
    assert "3 restarts within 600 s did not help" in world["qwen-0"].reason


def test_what_failed_stays_failed_until_it_is_started_or_its_files_change() -> None:
    world = up(wanted(restart=RestartPolicy("never")))
    world.ends(KILLED)
    assert world.state is State.FAILED
    after = next_controller(world)
    assert not asks(after.found(gone(world.run, tail="its last words")))
    assert (after.state, after["qwen-0"].reason) == (State.FAILED, world["qwen-0"].reason)
    assert after["qwen-0"].tail == "its last words"
    assert spawns(after.asked("qwen-0", up=True)) == ["qwen-0"]
    assert after["qwen-0"].restarts == 0
    changed = next_controller(world, wanted(launch_hash="h2"))
    assert spawns(changed.found(gone(world.run))) == ["qwen-0"]


def test_what_waited_for_its_next_try_waits_on() -> None:
    world = up()
    world.ends(KILLED)
    world.due()
    world.runs()
    world.ends(KILLED)
    next_s = world["qwen-0"].next_attempt_s
    assert next_s
    after = next_controller(world)
    assert WakeAt("qwen-0", world.run, next_s) in after.found(gone(world.run))
    assert not spawns(after.did)
    assert after.state is State.BACKOFF
    after.now_s = next_s
    assert spawns(after.due()) == ["qwen-0"]
    late = next_controller(world)
    late.now_s = next_s
    assert spawns(late.found(gone(world.run))) == ["qwen-0"], "its time came while no controller lived"


def test_an_end_that_was_asked_for_is_no_failure_though_who_asked_is_gone() -> None:
    world = up()
    world.asked("qwen-0", up=True, runs=frozenset({world.run}))
    assert stops(world.did)
    after = next_controller(world)
    assert spawns(after.found(gone(world.run, exit=exited(0, asked=True), asked=True))) == ["qwen-0"]
    assert after["qwen-0"].restarts == 0


def test_what_was_ended_for_hanging_is_a_failure_whoever_sees_its_end() -> None:
    world = up(wanted(alive_s=20.0))
    world.tell(Probed("qwen-0", world.run, "not well", ready=False))
    world.now_s = 20.0
    world.due()
    after = next_controller(world)
    after.found(gone(world.run, exit=exited(0, asked=True), asked=True))
    assert (after.state, after["qwen-0"].restarts) == (State.BACKOFF, 1)
    assert after["qwen-0"].reason.startswith("was ready, and for 20 s has not been: not well")


def test_a_hang_that_began_before_is_a_hang_and_no_slow_start() -> None:
    world = up(wanted(alive_s=20.0, stall_s=1000.0))
    after = next_controller(world)
    after.found(run_state(world.run))
    assert after.tell(Probed("qwen-0", world.run, "loading", ready=False)) == (WakeAt("qwen-0", world.run, 20.0),)
    after.now_s = 20.0
    assert asks(after.due()) == [Fence("gpu01", world.run), Stop("gpu01", world.run, 10.0)]


def test_a_run_that_its_host_knows_no_more_counts_and_one_that_it_never_had_does_not() -> None:
    world = up()
    after = next_controller(world)
    after.found()
    assert (after.state, after["qwen-0"].restarts) == (State.BACKOFF, 1)
    sent = World()
    sent.plan(wanted())
    sent.found()  # and the controller died with the order
    assert spawns(sent.did)
    after = next_controller(sent)
    assert spawns(after.found()) == ["qwen-0"]
    assert after["qwen-0"].restarts == 0


def test_what_is_down_begins_anew() -> None:
    world = up()
    world.stop()
    world.ends()
    after = next_controller(world)
    assert spawns(after.found(gone(world.run, exit=exited(0, asked=True)))) == ["qwen-0"]
    assert after["qwen-0"].restarts == 0


def test_what_is_held_by_hand_is_not_started_by_its_memory() -> None:
    world = up()
    after = next_controller(world, held={"qwen": Held("ann", 1)})
    after.found(gone(world.run))
    assert (after.state, spawns(after.did)) == (State.STOPPED, [])


def test_who_has_not_answered_yet_holds_up_the_stop_of_those_below() -> None:
    world = up(wanted("frontend-0", stop_rank=0), wanted("etcd-0", host="gpu02", stop_rank=1))
    after = next_controller(world)
    after.found(run_state(world["etcd-0"].run, process="etcd-0"), host="gpu02")
    after.stop()
    assert not stops(after.did)


def test_a_silent_host_shows_what_was_there() -> None:
    world = up()
    after = next_controller(world)
    after.lost()
    assert (after.state, after["qwen-0"].last_known) == (State.UNKNOWN, State.READY)
    after.found(gone(world.run))
    assert after["qwen-0"].restarts == 1


def test_what_moves_meanwhile_is_ended_where_it_was_first() -> None:
    world = up()
    after = next_controller(world, wanted(host="gpu02"), wanted("etcd-0"))
    assert not spawns(after.found(host="gpu02"))
    assert stops(after.found(run_state(world.run))) == [(world.run, 90.0)]
    after.ends()
    assert spawns(after.did) == ["etcd-0", "qwen-0"]
    assert after["qwen-0"].wanted.host == "gpu02"


def test_what_was_on_a_host_that_is_in_the_files_no_more_is_not_waited_for() -> None:
    world = up()
    after = next_controller(world, wanted(host="gpu02"))
    assert spawns(after.found(host="gpu02")) == ["qwen-0"]


def test_a_clock_that_was_set_back_makes_nobody_wait_for_ever() -> None:
    world = up()
    for _ in range(2):
        world.ends(KILLED)
        world.due()
        world.runs()
    world.ends(KILLED)
    world.now_s = -1e6
    after = next_controller(world)
    wakes = [a for a in after.found(gone(world.run)) if isinstance(a, WakeAt)]
    assert wakes
    assert wakes[-1].at_s <= world.now_s + 36.0


@pytest.mark.parametrize("happens", ["nothing", "crash", "crash twice", "stop", "loss"])
def test_memory_does_not_fade(happens: str) -> None:
    """A controller that dies before it has heard anybody leaves what it was left."""
    world = up()
    if happens.startswith("crash"):
        world.ends(KILLED)
    if happens == "crash twice":
        world.due()
        world.runs()
        world.ends(KILLED)
    if happens == "stop":
        world.asked("qwen-0", up=False)
    if happens == "loss":
        world.lost()
    after = next_controller(world)
    assert remembered(after["qwen-0"]) == remembered(world["qwen-0"])
    assert not any(isinstance(a, Spawn) for a in after.did)
