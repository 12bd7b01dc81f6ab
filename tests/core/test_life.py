"""Histories of one process: what it is told, what it becomes, what it asks for."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.core.actions import Action, Fence, Spawn, Stop, TellFence, Unwatch, WakeAt, Watch
from supervisor.core.diagnosis import Cause, Retry
from supervisor.core.exit import Exit
from supervisor.core.facts import Due, Phase, Probed, Told
from supervisor.core.ids import run_id
from supervisor.core.known import Fleet
from supervisor.core.process import State
from supervisor.core.restart import Again, RestartPolicy
from supervisor.core.status import status
from tests.core.world import World, asks, exited, run_state, spawns, stops, up, wanted


def test_from_nothing_to_ready() -> None:
    world = World()
    assert world.plan(wanted()) == ()
    assert world.state == "pending"
    assert world.found() == (Spawn("qwen-0", "gpu01", world.run), WakeAt("qwen-0", world.run, 300.0))
    assert world.state == "starting"
    assert world.told(Phase.RUNNING) == (Watch("qwen-0", world.run), WakeAt("qwen-0", world.run, 300.0))
    assert world.tell(Probed("qwen-0", world.run, "registered", ready=False, instance="77")) == (
        TellFence("gpu01", world.run, "77"),
    )
    assert world.state == "starting"
    assert world.ready(instance="77") == ()
    assert (world.state, world["qwen-0"].proven, world["qwen-0"].reason) == ("ready", True, "")


def test_run_ids_sort_by_time_and_never_repeat() -> None:
    ids = [run_id(at, count) for at in (0, 1, 1_700_000_000_000, 1_700_000_000_001) for count in (1, 2, 3)]
    assert ids == sorted(set(ids))
    assert {len(i) for i in ids} == {11}


def test_an_exit_0_that_nobody_asked_for_is_a_failure() -> None:
    world = up()
    first = world.run
    assert Unwatch("qwen-0") in world.ends(exited(code=0))
    assert world.state == "backoff"
    assert "exit code 0" in world["qwen-0"].reason
    assert spawns(world.due()) == ["qwen-0"]
    assert world.run != first
    assert world["qwen-0"].restarts == 1


def test_a_run_that_served_is_replaced_without_waiting() -> None:
    world = up()
    assert WakeAt("qwen-0", world.run, 0.0) in world.ends()


def test_nothing_is_spawned_while_the_tree_of_the_last_run_is_there() -> None:
    world = up()
    assert not spawns(world.told(Phase.ENDED, exit=exited()))
    assert world.state == "stopping"
    assert not spawns(world.due())
    assert not spawns(world.told(Phase.STUCK, exit=exited()))
    assert world.state == "stuck"
    assert not spawns(world.due())
    world.told(Phase.GONE, exit=exited())
    assert spawns(world.due()) == ["qwen-0"]


def crash_until_it_gives_up(world: World) -> list[float]:
    """The delays, until FAILED."""
    delays: list[float] = []
    for _ in range(50):
        world.runs()
        wakes = [a for a in world.ends() if isinstance(a, WakeAt)]
        if not wakes:
            break
        delays.append(wakes[0].at_s - world.now_s)
        world.now_s = wakes[0].at_s
        world.due()
    return delays


def test_a_crash_loop_backs_off_doubling_and_ends() -> None:
    world = World()
    world.plan(wanted())
    world.found()
    delays = crash_until_it_gives_up(world)
    assert len(delays) == 5
    for delay, middle in zip(delays, (1, 2, 4, 8, 16), strict=True):
        assert 0.8 * middle <= delay <= 1.2 * middle
    assert world.state == "failed"
    assert len(spawns(world.did)) == 6
    assert world.due() == ()


def test_delays_are_spread_but_the_same_when_replayed() -> None:
    def first_delay(replica: int) -> float:
        world = World(Fleet(runs=replica))
        world.plan(wanted())
        world.found()
        return crash_until_it_gives_up(world)[0]

    delays = [first_delay(replica) for replica in range(8)]
    assert delays == [first_delay(replica) for replica in range(8)]
    assert len(set(delays)) == 8


def test_delays_stop_growing() -> None:
    world = World()
    world.plan(wanted(restart=RestartPolicy(budget=20, window_s=1e6, max_delay_s=30.0)))
    world.found()
    assert max(crash_until_it_gives_up(world)) <= 36.0


def test_failures_older_than_the_window_are_forgotten() -> None:
    world = World()
    world.plan(wanted(restart=RestartPolicy(budget=1, window_s=600.0)))
    world.found()
    for _ in range(5):
        world.runs()
        world.ends()
        assert world.state == "backoff"
        world.now_s += 601.0
        world.due()


def test_the_same_file_again_tries_what_failed_again() -> None:
    world = World()
    world.plan(wanted())
    world.found()
    crash_until_it_gives_up(world)
    assert spawns(world.plan(wanted())) == ["qwen-0"]
    assert world["qwen-0"].restarts == 0
    assert len(crash_until_it_gives_up(world)) == 5  # with a whole new budget


@pytest.mark.parametrize("cause", ["held", "port", "missing", "exec"])
def test_a_refusal_is_final(cause: str) -> None:
    world = World()
    world.plan(wanted())
    world.found()
    refused = exited(None, cause=cause, message="because of /this/path")
    assert world.told(Phase.GONE, exit=refused, pid=None) == (Unwatch("qwen-0"),)
    assert world.state == "failed"
    assert "/this/path" in world["qwen-0"].reason
    assert spawns(world.due()) == []


def test_a_start_that_found_no_room_is_tried_again_and_not_at_once() -> None:
    """A full disk is a matter of minutes at least: tried at once, the whole budget would be spent in a second."""
    world = World()
    world.plan(wanted())
    world.found()
    full = exited(None, cause="disk", message="cannot make the run's directory: [Errno 28] No space left on device")
    for _ in range(5):
        world.told(Phase.GONE, exit=full, pid=None)
        assert world.state == "backoff"
        world.now_s = world["qwen-0"].next_attempt_s
        assert spawns(world.due()) == ["qwen-0"]
    assert world.now_s > 20.0
    world.told(Phase.GONE, exit=full, pid=None)
    assert world.state == "failed"
    assert "no space left on its host's disk" in world["qwen-0"].reason


def test_a_port_clash_at_run_time_is_tried_again_at_once() -> None:
    world = World()
    world.plan(wanted())
    world.found()
    world.runs()
    tail = "OSError: [Errno 98] Address already in use\n"
    assert WakeAt("qwen-0", world.run, 0.0) in world.ends(exited(1), tail=tail)


def test_the_exit_of_a_leader_whose_engine_died_says_so() -> None:
    """Last lines of dynamo.vllm after SIGKILL of EngineCore (1.4.2 over vLLM 0.28); it exits 1."""
    world = World()
    world.plan(wanted())
    world.found()
    world.runs()
    tail = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\n"
    world.ends(exited(1), tail=tail)
    assert world.state == "backoff"
    assert "its engine died" in world["qwen-0"].reason


def test_wrong_arguments_are_not_tried_again() -> None:
    world = World()
    world.plan(wanted())
    world.found()
    world.runs()
    world.ends(exited(2), tail="error: unrecognized arguments: --x\n")
    assert world.state == "failed"


@pytest.mark.parametrize("ended", [exited(0), exited(1), exited(None, 9), exited(None, cause="disk")])
def test_never_means_never(ended: Exit) -> None:
    world = up(wanted(restart=RestartPolicy("never")))
    world.ends(ended)
    assert world.state == "failed"
    assert "never" in world["qwen-0"].reason
    world.now_s = 1e6
    assert not spawns(world.due())
    assert spawns(world.asked("qwen-0", up=True)) == ["qwen-0"], "until somebody says so"


def test_always_never_gives_up_and_goes_on_at_the_longest_delay() -> None:
    world = World()
    world.plan(wanted(restart=RestartPolicy("always", max_delay_s=30.0)))
    world.found()
    delays = crash_until_it_gives_up(world)
    assert (len(delays), world.state) == (50, "starting")
    for delay, middle in zip(delays, [1, 2, 4, 8, 16] + [30] * 45, strict=True):
        assert 0.8 * middle <= delay <= 1.2 * middle
    world.ends()
    assert "restarts within 600 s did not help; its restart policy is always, so again in" in world["qwen-0"].reason


def test_always_tries_what_only_a_human_can_change_and_at_the_longest_delay() -> None:
    world = World()
    world.plan(wanted(restart=RestartPolicy("always", max_delay_s=30.0)))
    world.found()
    for _ in range(20):
        world.told(Phase.GONE, exit=exited(None, cause="missing", message="/models/x does not exist"), pid=None)
        assert world.state == "backoff"
        assert world["qwen-0"].next_attempt_s - world.now_s >= 24.0
        world.now_s = world["qwen-0"].next_attempt_s
        assert spawns(world.due()) == ["qwen-0"]


def test_always_does_not_spin_on_what_is_tried_at_once() -> None:
    world = World()
    world.plan(wanted(restart=RestartPolicy("always", budget=2)))
    world.found()
    delays = []
    for _ in range(4):
        world.runs()
        world.ends(exited(1), tail="OSError: [Errno 98] Address already in use\n")
        delays.append(world["qwen-0"].next_attempt_s - world.now_s)
        world.now_s = world["qwen-0"].next_attempt_s
        world.due()
    assert delays[:2] == [0.0, 0.0]
    assert min(delays[2:]) >= 24.0


def test_a_large_budget_is_no_overflow() -> None:
    decided = RestartPolicy(budget=10_000, window_s=1e7).decide((1.0,) * 2000, 2.0, Cause("x", Retry.BACKOFF), False, 0.5)
    assert isinstance(decided, Again)
    assert decided.delay_s == 30.0


# --- a healthy spell -----------------------------------------------------------------------------------------------------


def crashed_twice(window_s: float = 600.0) -> World:
    """And ready again."""
    world = up(wanted(restart=RestartPolicy(window_s=window_s)))
    for _ in range(2):
        world.ends()
        world.now_s = world["qwen-0"].next_attempt_s
        world.due()
        world.runs()
    world.ready()
    assert world["qwen-0"].restarts == 2
    return world


def test_who_was_ready_for_a_whole_window_is_counted_anew() -> None:
    world = crashed_twice()
    world.now_s += 600.0
    assert WakeAt("qwen-0", world.run, world.now_s) in world.ends()
    assert world["qwen-0"].restarts == 1
    assert "restart 1 of 5" in world["qwen-0"].reason


def test_nor_is_a_hang_after_a_healthy_spell_the_third_crash() -> None:
    world = crashed_twice()
    world.now_s += 600.0
    ill(world, world.now_s)
    world.now_s += 300.0
    world.due()
    world.ends(exited(0, asked=True))
    assert (world.state, world["qwen-0"].restarts) == ("backoff", 1)


@pytest.mark.parametrize("broken", [False, True])
def test_a_shorter_spell_or_one_with_a_break_is_none(broken: bool) -> None:
    world = crashed_twice()
    world.now_s += 599.0
    if broken:
        ill(world, world.now_s, well=True)  # its frontend was away for a moment
        world.ready()
        world.now_s += 599.0
    world.ends()
    assert world["qwen-0"].restarts == 3


def test_a_long_start_is_no_healthy_spell() -> None:
    world = crashed_twice()
    world.ends()
    world.now_s = world["qwen-0"].next_attempt_s
    world.due()
    world.runs()
    world.now_s += 1200.0
    world.ends()
    assert world["qwen-0"].restarts == 4


# --- stale facts ---------------------------------------------------------------------------------------------------------


def test_facts_about_another_run_die_at_the_door() -> None:
    world = up()
    before = world.fleet
    for phase in Phase:
        assert world.tell(Told("gpu01", run_state("00000000000", phase, exit=exited()))) == ()
    assert world.tell(Probed("qwen-0", "00000000000", "loading", ready=False)) == ()
    assert world.tell(Due("qwen-0", "00000000000")) == ()
    assert world.tell(Told("gpu01", run_state("00000000000", process="nobody"))) == ()
    assert world.fleet == before


def test_facts_from_another_host_die_at_the_door() -> None:
    world = up()
    before = world.fleet
    world.tell(Told("gpu02", run_state(world.run, Phase.GONE, exit=exited())))
    assert world.fleet == before


def test_the_dead_do_not_rise() -> None:
    world = up()
    alive = Told("gpu01", run_state(world.run))
    world.ends()
    assert world.tell(alive) == ()
    assert world.state == "backoff"


def test_a_replayed_end_is_counted_once() -> None:
    world = up()
    gone = Told("gpu01", run_state(world.run, Phase.GONE, exit=exited()))
    world.tell(gone)
    before = world.fleet
    assert world.tell(gone) == ()
    assert world.fleet == before


# --- stalled starts ------------------------------------------------------------------------------------------------------


def probe(world: World, progress: int, stage: str = "loading") -> None:
    world.tell(Probed("qwen-0", world.run, stage, ready=False, progress=progress))


def test_a_start_without_progress_is_stopped_and_counts_as_a_failure() -> None:
    world = World()
    world.plan(wanted(stall_s=100.0, term_s=7.0))
    world.found()
    world.runs()
    world.now_s = 10.0
    probe(world, 5)
    world.now_s = 100.0
    probe(world, 5)
    assert world.due() == (WakeAt("qwen-0", world.run, 110.0),)
    world.now_s = 110.0
    assert world.due() == (Unwatch("qwen-0"), Stop("gpu01", world.run, 7.0))
    assert world.state == "stopping"
    assert "no progress for 100 s" in world["qwen-0"].reason
    world.ends(exited(None, 15, asked=True))
    assert (world.state, world["qwen-0"].restarts) == ("backoff", 1)


@pytest.mark.parametrize("what", ["bytes", "stage"])
def test_progress_of_any_kind_keeps_a_start_alive(what: str) -> None:
    world = World()
    world.plan(wanted(stall_s=100.0))
    world.found()
    world.runs()
    for turn in range(1, 30):
        world.now_s += 99.0
        probe(world, turn if what == "bytes" else 0, "loading" if what == "bytes" else f"stage {turn}")
        assert not stops(world.due())
    assert world.state == "starting"


@pytest.mark.parametrize("moves", [True, False])
def test_who_only_computes_is_given_longer_and_not_for_ever(moves: bool) -> None:
    """Kernels are compiled in silence for many minutes; of ranks that wait for each other in vain, each spins."""
    world = World()
    world.plan(wanted(stall_s=100.0))
    world.found()
    world.runs()
    ended_s = 0.0
    for turn in range(1, 11):
        world.now_s = 50.0 * turn
        world.tell(Probed("qwen-0", world.run, "loading", ready=False, busy=turn if moves else 1, moves=f"{turn} s of CPU"))
        if stops(world.due()):
            ended_s = world.now_s
            break
    first_s = 50.0  # a stage: progress
    assert ended_s == first_s + (400.0 if moves else 100.0)
    assert ("no progress but CPU time for 400 s while loading: 9 s of CPU" in world["qwen-0"].reason) == moves


def test_once_it_moves_again_it_may_compute_anew() -> None:
    world = World()
    world.plan(wanted(stall_s=100.0))
    world.found()
    world.runs()
    for turn in range(1, 40):
        world.now_s += 90.0
        read = turn // 4  # every 360 s
        world.tell(Probed("qwen-0", world.run, "loading", ready=False, busy=turn, progress=read))
        assert not stops(world.due())


def test_what_moves_is_told_beside_the_stage_while_it_starts() -> None:
    world = World()
    world.plan(wanted(stall_s=100.0))
    world.found()
    world.runs()
    world.tell(Probed("qwen-0", world.run, "loading", ready=False, moves="12.3 GB read, 41.0 GB on its GPUs"))

    def told() -> tuple[str | None, str | None]:
        seen = status(world.fleet, deployment="lab", endpoints=(), controller=None, now_s=world.now_s)
        return seen["processes"][0].get("stage"), seen["processes"][0].get("moves")

    assert told() == ("loading", "12.3 GB read, 41.0 GB on its GPUs")
    world.ready()
    assert told() == ("serving", None)


def ill(world: World, at_s: float, **more: Any) -> tuple[Action, ...]:
    world.now_s = at_s
    return world.tell(Probed("qwen-0", world.run, "endpoint generate is notready", ready=False, **more))


def test_what_was_ready_and_does_not_work_any_more_is_fenced_ended_and_started_anew() -> None:
    world = up(wanted(alive_s=20.0, stall_s=100.0))
    assert ill(world, 5000.0) == (WakeAt("qwen-0", world.run, 5020.0),)
    for at_s in (5010.0, 5019.0):  # what it says meanwhile is no progress
        assert not ill(world, at_s, progress=int(at_s))
        assert not asks(world.due())
    run = world.run
    world.now_s = 5020.0
    assert asks(world.due()) == [Fence("gpu01", run), Stop("gpu01", run, 10.0)]
    again = world.ends(exited(0, asked=True))
    assert world.state is State.BACKOFF
    assert "for 20 s has not been: endpoint generate is notready; restart 1 of 5" in world["qwen-0"].reason
    assert [a.at_s for a in again if isinstance(a, WakeAt)] == [5020.0], "it had been healthy: at once"


def test_it_may_recover_in_time() -> None:
    world = up(wanted(alive_s=20.0))
    ill(world, 5000.0)
    world.now_s = 5019.0
    world.ready()
    world.now_s = 5020.0
    assert not asks(world.due())
    assert ill(world, 6000.0) == (WakeAt("qwen-0", world.run, 6020.0),), "and falls ill anew"


def test_who_is_not_ready_for_others_reasons_is_left_alone() -> None:
    """Its frontend is gone, or etcd is: its own health says it is well."""
    world = up(wanted(alive_s=20.0, stall_s=100.0))
    assert not ill(world, 5000.0, well=True)
    assert world.state is State.STARTING
    world.now_s = 9000.0
    assert not asks(world.due())


def test_nor_is_a_start_that_waits_for_others() -> None:
    world = World()
    world.plan(wanted(stall_s=100.0))
    world.found()
    world.runs()
    for at_s in range(0, 1000, 50):
        ill(world, float(at_s), well=True)
        assert not asks(world.due())


def test_time_alone_does_not_hurt_what_is_ready() -> None:
    world = up()
    world.now_s = 1e6
    assert world.due() == ()
    assert world.state is State.READY


def test_a_stop_that_died_with_its_keeper_is_asked_again_of_the_heir_and_once() -> None:
    world = up()
    world.stop()
    world.told(Phase.RUNNING, asked=True, stop_step="term_leader")
    forgot = world.told(Phase.RUNNING, heir=True)
    assert stops(forgot) == [(world.run, 90.0)]
    assert not stops(world.told(Phase.RUNNING, heir=True))
    assert not stops(world.told(Phase.RUNNING, heir=True, asked=True, stop_step="term_leader"))


def test_a_keeper_that_never_says_a_word_is_a_start_without_progress() -> None:
    world = World()
    world.plan(wanted())
    world.found()
    world.now_s = 300.0
    assert stops(world.due()) == [(world.run, 30.0)]
    assert world.state == "stopping"


def test_a_corrected_file_does_not_wait_for_the_backoff_of_the_wrong_one() -> None:
    world = up()
    world.ends(exited(code=1))
    world.due()
    world.runs()
    world.ends(exited(code=1))
    assert world.state == "backoff"
    assert not spawns(world.plan(wanted()))
    assert spawns(world.plan(wanted(launch_hash="h2"))) == ["qwen-0"]
