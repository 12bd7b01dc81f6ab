"""A process without a place waits, says why, stops at once, and starts nothing but itself when it gets one."""

from __future__ import annotations

from supervisor.core.actions import Spawn
from supervisor.core.facts import Phase, Placed, StopAsked
from supervisor.core.left import left_over
from supervisor.core.process import State
from supervisor.core.status import status

from .world import World, by_name, exited, wanted


def homeless(why: str = "needs 1 free GPU", name: str = "qwen-0") -> World:
    world = World()
    world.plan(wanted("etcd-0"), wanted(name, host="", unplaced=why))
    world.found()
    return world


def test_it_waits_and_says_why() -> None:
    world = homeless()
    process = world.fleet.processes["qwen-0"]
    assert (process.state, process.reason, process.run) == (State.PENDING, "needs 1 free GPU", "")
    seen = status(world.fleet, deployment="lab", endpoints=[], controller=None, now_s=0.0)
    assert [host["name"] for host in seen["hosts"]] == ["gpu01"], "no host is made up for it"
    assert not seen["ready"]


def test_another_reason_is_told() -> None:
    world = homeless()
    world.tell(Placed(by_name(wanted("etcd-0"), wanted(host="", unplaced="all are held"))))
    assert world.fleet.processes["qwen-0"].reason == "all are held"


def test_with_a_place_it_starts_there() -> None:
    world = homeless()
    assert [a.process for a in world.did if isinstance(a, Spawn)] == ["etcd-0"]
    (spawn, _wake) = world.tell(Placed(by_name(wanted("etcd-0"), wanted(gpus=(0,)))))
    assert isinstance(spawn, Spawn)
    assert (spawn.process, spawn.host) == ("qwen-0", "gpu01")


def test_a_place_for_one_is_no_new_try_for_others() -> None:
    world = homeless()
    world.told(Phase.GONE, "etcd-0", exit=exited(1, cause="args"))
    failed = world.fleet.processes["etcd-0"]
    assert failed.state in (State.FAILED, State.BACKOFF)
    world.tell(Placed(by_name(wanted("etcd-0"), wanted())))
    assert world.fleet.processes["etcd-0"] == failed


def test_who_runs_is_not_moved_by_it() -> None:
    world = homeless()
    run = world.fleet.processes["etcd-0"].run
    world.tell(Placed(by_name(wanted("etcd-0", host="gpu02"), wanted())))
    assert (world.fleet.processes["etcd-0"].run, world.fleet.processes["etcd-0"].up) == (run, True)


def test_a_stop_of_what_has_no_place_is_done_at_once() -> None:
    world = World()
    world.plan(wanted(host="", unplaced="no room"))
    world.tell(StopAsked())
    assert world.fleet.processes["qwen-0"].state is State.STOPPED
    assert world.fleet.stopped
    assert left_over(world.fleet) == []


def test_who_lost_its_place_ends_first_and_then_waits_for_another() -> None:
    world = World()
    world.plan(wanted(gpus=(0,)))
    world.found()
    world.told(Phase.RUNNING)
    world.plan(wanted(host="", unplaced="needs 2 free GPUs", gpus=()))
    assert world.fleet.processes["qwen-0"].state is State.DRAINING
    world.told(Phase.GONE, exit=exited(0, asked=True))
    process = world.fleet.processes["qwen-0"]
    assert (process.state, process.up, process.reason) == (State.PENDING, True, "needs 2 free GPUs")
