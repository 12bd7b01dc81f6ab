"""The operator's word: what was stopped by hand stays stopped; what is started by hand begins anew."""

from __future__ import annotations

import pytest

from supervisor.core.actions import Spawn
from supervisor.core.facts import Asked, Phase
from supervisor.core.hand import Held, after, meant
from supervisor.core.known import Fleet
from supervisor.core.left import left_over, not_serving
from supervisor.core.restart import RestartPolicy
from supervisor.core.status import status
from supervisor.errors import UsageError
from tests.core.world import World, by_name, exited, run_state, spawns, stops, up, wanted

FRONT = wanted("frontend-0", stop_rank=0, drain_s=0.0, term_s=60.0)
ZERO, ONE, TWO = (wanted(f"qwen-{n}", stop_rank=1) for n in range(3))
ETCD = wanted("etcd-0", stop_rank=2, drain_s=0.0, term_s=10.0)


def reason(world: World, process: str = "qwen-0") -> tuple[str, str]:
    seen = status(world.fleet, deployment="lab", endpoints=(), controller=None, now_s=world.now_s)
    return next((p["state"], p["reason"]) for p in seen["processes"] if p["name"] == process)


def stopped(*names: str, of: tuple[str, ...]) -> World:
    world = up(FRONT, ZERO, ONE, ETCD)
    world.asked(*names, up=False)
    for process in of:
        world.ends(process=process)
    world.did.clear()
    return world


def test_only_what_was_named_is_stopped() -> None:
    world = up(FRONT, ZERO, ONE, ETCD)
    assert stops(world.asked("qwen-1", up=False)) == [(world["qwen-1"].run, 90.0)]
    assert not world.fleet.down({"qwen-1"})
    world.told(Phase.ENDED, "qwen-1", exit=exited(0, asked=True), asked=True)
    assert not world.fleet.down({"qwen-1"}), "its tree is still there"
    world.told(Phase.GONE, "qwen-1", exit=exited(0, asked=True), asked=True)
    assert world.fleet.down({"qwen-1"})
    assert world.states == {"frontend-0": "ready", "qwen-0": "ready", "qwen-1": "stopped", "etcd-0": "ready"}
    assert reason(world, "qwen-1") == ("stopped", "stopped by hand")


def test_several_stop_in_order() -> None:
    world = up(FRONT, ZERO, ETCD)
    assert stops(world.asked("etcd", "qwen-0", "frontend", up=False)) == [(world["frontend-0"].run, 60.0)]
    assert stops(world.ends(process="frontend-0")) == [(world["qwen-0"].run, 90.0)]
    assert stops(world.ends(process="qwen-0")) == [(world["etcd-0"].run, 10.0)]


def test_a_second_word_skips_the_drain() -> None:
    world = up(FRONT, ZERO)
    world.asked("qwen", up=False)
    assert stops(world.asked("qwen", up=False, skip_drain=True)) == [(world.run, 0.0)]
    assert world.asked("qwen", up=False, skip_drain=True) == ()


def test_what_was_stopped_by_hand_stays_stopped_whatever_the_files_say() -> None:
    world = stopped("qwen", of=("qwen-0", "qwen-1"))
    world.plan(FRONT, ZERO, wanted("qwen-1", launch_hash="h2"), TWO, ETCD)
    assert {n: s for n, s in world.states.items() if s != "ready"} == dict.fromkeys(("qwen-0", "qwen-1", "qwen-2"), "stopped")
    world.lost()
    world.found(*(run_state(world[n].run, process=n) for n in ("frontend-0", "etcd-0")))
    assert not spawns(world.did)
    assert reason(world, "qwen-2") == ("stopped", "stopped by hand")


def test_and_over_a_restart_of_the_controller() -> None:
    world = World(Fleet(held={"qwen": Held("ann", 1000)}))
    world.plan(FRONT, ZERO)
    found = world.found(run_state("01"), run_state("02", process="frontend-0"))
    assert stops(found) == [("01", 90.0)], "the last controller died in the middle of it"
    world.ends()
    assert world.states == {"frontend-0": "starting", "qwen-0": "stopped"}
    assert not spawns(world.did)


def test_until_it_is_taken_out_of_the_file() -> None:
    world = stopped("qwen", of=("qwen-0", "qwen-1"))
    world.plan(FRONT, ETCD)
    assert world.fleet.held == {}
    world.plan(FRONT, ZERO, ETCD)
    assert spawns(world.did) == ["qwen-0"]


@pytest.mark.parametrize("name", ["qwen", "qwen-0"])
def test_until_it_is_started(name: str) -> None:
    world = stopped("qwen", of=("qwen-0", "qwen-1"))
    world.asked(name, up=True)
    assert spawns(world.did) == (["qwen-0", "qwen-1"] if name == "qwen" else ["qwen-0"])
    assert world.fleet.held == ({} if name == "qwen" else {"qwen-1": Held("ann", 1000)})


def test_a_crash_on_the_way_down_is_no_reason_to_start_it() -> None:
    world = up(ZERO)
    world.asked("qwen-0", up=False)
    world.ends(exited(-11))
    assert world.state == "stopped"
    assert not spawns(world.did)


def failed() -> World:
    world = up(wanted(restart=RestartPolicy(budget=1)))
    world.ends()
    world.due()
    world.ends()
    assert world.state == "failed"
    world.did.clear()
    return world


def test_a_start_gives_a_new_budget() -> None:
    world = failed()
    assert spawns(world.asked("qwen-0", up=True)) == ["qwen-0"]
    world.runs()
    world.ends()
    assert (world.state, world["qwen-0"].restarts) == ("backoff", 1)


def test_a_start_does_not_wait_for_the_next_try() -> None:
    world = up()
    world.ends()
    assert world.state == "backoff"
    assert spawns(world.asked("qwen", up=True)) == ["qwen-0"]
    assert not spawns(world.due())


def test_what_had_failed_is_stopped_when_somebody_says_so() -> None:
    world = failed()
    assert not world.fleet.down({"qwen-0"})
    assert world.asked("qwen-0", up=False) == ()
    assert world.fleet.down({"qwen-0"})
    assert reason(world) == ("stopped", "stopped by hand")


def test_a_start_of_what_serves_touches_nothing() -> None:
    world = up(ZERO, ONE)
    assert world.asked("qwen", up=True) == ()
    assert set(world.states.values()) == {"ready"}


def test_a_restart_replaces_the_runs_that_it_names_and_no_later_ones() -> None:
    world = up(ZERO, ONE)
    old = world.run
    asked = Asked(frozenset({"qwen"}), up=True, runs=frozenset({old}))
    assert stops(world.tell(asked)) == [(old, 90.0)]
    assert world["qwen-0"].reason == "asked to restart"
    assert spawns(world.ends()) == ["qwen-0"]
    assert world["qwen-0"].restarts == 0
    world.runs()
    assert world.tell(asked) == ()
    assert world.states == {"qwen-0": "starting", "qwen-1": "ready"}


def test_a_start_while_it_stops_brings_it_back_once_it_is_gone() -> None:
    world = up(ZERO)
    world.asked("qwen", up=False)
    world.asked("qwen", up=True)
    assert world.state == "draining"
    assert spawns(world.ends()) == ["qwen-0"]


def test_nothing_is_started_by_hand_while_everything_stops() -> None:
    world = up(FRONT, ZERO)
    world.stop()
    world.asked("qwen", up=True)
    world.ends(process="frontend-0")
    assert stops(world.did)
    world.ends()
    assert not [a for a in world.did if isinstance(a, Spawn)]
    assert world.fleet.stopped


def test_an_onlooker_calls_it_stopped_however_it_ended() -> None:
    world = World(Fleet(observing=True, held={"qwen-0": Held("ann", 1000)}))
    world.plan(ZERO)
    world.found(run_state("01", Phase.GONE, exit=exited(137)))
    assert reason(world) == ("stopped", "stopped by hand")


def test_a_word_said_again_keeps_who_said_it_first() -> None:
    held = after({}, Asked(frozenset({"qwen"}), False, "ann", 1), by_name(ZERO))
    assert after(held, Asked(frozenset({"qwen"}), False, "ben", 2), by_name(ZERO)) == {"qwen": Held("ann", 1)}


def test_a_name_that_nobody_has_is_refused_with_a_guess() -> None:
    assert meant(["qwen", "qwen-1"], by_name(ZERO, ONE)) == {"qwen", "qwen-1"}
    with pytest.raises(UsageError) as refused:
        meant(["qwne-1"], by_name(ZERO, ONE))
    assert refused.value.hint == "did you mean qwen-1?"


def test_a_host_is_all_that_is_on_it_and_nothing_that_has_no_place() -> None:
    there = by_name(ETCD, ZERO, wanted("qwen-1", host="gpu02"), wanted("qwen-2", host="gpu02"), wanted("qwen-3", host=""))
    assert meant(["gpu02"], there) == {"qwen-1", "qwen-2"}
    assert meant(["gpu02", "etcd"], there) == {"qwen-1", "qwen-2", "etcd"}
    for nobody in ("gpu03", ""):
        with pytest.raises(UsageError):
            meant([nobody], there)


def test_what_a_stop_could_not_end_is_said_and_the_rest_is_not() -> None:
    world = up(FRONT, ZERO, ONE, wanted("qwen-2", host="gpu02"))
    world.asked("qwen", up=False)
    world.told(Phase.STUCK, asked=True)
    world.told(Phase.STUCK, "qwen-1", asked=True, stop_step="gpu_held")
    world.lost("gpu02")
    assert not world.fleet.down({"qwen"})
    assert world.fleet.stuck({"qwen"})
    pid = world["qwen-0"].seen.pid  # type: ignore[union-attr]
    assert left_over(world.fleet, {"qwen"}) == [
        f"still running: qwen-0 (pid {pid} on gpu01): stuck, SIGKILL does not end it",
        "still held: qwen-1 on gpu01: its GPUs have not got their memory back",
        "not known: qwen-2 (gpu02 does not answer: the line broke)",
    ]


def test_a_start_that_failed_says_why() -> None:
    world = failed()
    assert not_serving(world.fleet, {"qwen"}) == [f"not ready: qwen-0 (gpu01): failed, {world['qwen-0'].reason}"]
