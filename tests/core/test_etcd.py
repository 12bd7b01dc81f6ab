"""etcd away, and etcd that has lost its data: who waits, who begins anew, and whose fault it is not."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.actions import Stop
from supervisor.core.facts import Probed, RegistryLost
from supervisor.core.wanted import Wanted
from tests.core.world import World, asks, exited, spawns, up, wanted

ETCD = replace(wanted("etcd-0", stop_rank=2), kind="etcd")
FRONT = replace(wanted("frontend-0"), kind="frontend")
WORKER = wanted("qwen-0", stop_rank=1, term_s=30.0)


def silent(world: World) -> None:
    """It does not answer any more, though it lives."""
    world.tell(Probed("etcd-0", world["etcd-0"].run, "does not answer", ready=False))


def answers(world: World) -> list[str]:
    return spawns(world.tell(Probed("etcd-0", world["etcd-0"].run, "healthy", ready=True, well=True, proven=True)))


def test_all_are_started_at_once_and_none_waits_for_the_first_start_of_etcd() -> None:
    world = World()
    world.plan(ETCD, FRONT, WORKER)
    assert sorted(spawns(world.found())) == ["etcd-0", "frontend-0", "qwen-0"]


def test_who_dies_while_etcd_is_away_is_started_when_it_is_back() -> None:
    world = up(ETCD, FRONT, WORKER)
    silent(world)
    assert world.states["qwen-0"] == "ready", "hands off"
    world.ends(exited(1))
    assert spawns(world.due()) == []
    assert (world["qwen-0"].state, world["qwen-0"].reason) == ("pending", "waits for etcd")
    assert answers(world) == ["qwen-0"]


def test_who_dies_while_etcd_is_started_again_is_started_when_it_answers() -> None:
    world = up(ETCD, WORKER)
    world.ends(exited(1), process="etcd-0")
    assert world.states["etcd-0"] == "backoff"
    world.ends(exited(1))
    assert spawns(world.due()) == []
    assert "etcd-0" in spawns(world.due("etcd-0")), "from then on it is awaited by who starts"


def begins_anew(world: World, *some: Wanted) -> None:
    for want in some:
        assert Stop(want.host, world[want.name].run, want.term_s) in world.did, "no drain: nothing reaches it"


def test_when_its_data_is_lost_all_begin_anew_at_once_and_none_has_failed() -> None:
    world = up(ETCD, FRONT, WORKER)
    asked = asks(world.tell(RegistryLost()))
    begins_anew(world, FRONT, WORKER)
    assert len(asked) == 2
    assert world.states == {"etcd-0": "ready", "frontend-0": "draining", "qwen-0": "draining"}
    for name in ("frontend-0", "qwen-0"):
        assert spawns(world.ends(exited(0, asked=True), process=name)) == [name]
    assert [world[name].restarts for name in world.fleet.processes] == [0, 0, 0]
    assert asks(world.tell(RegistryLost())) != asked, "of the new runs"


def test_what_was_stopped_is_not_started_because_etcd_lost_its_data() -> None:
    world = up(ETCD, FRONT, WORKER)
    world.asked("qwen-0", up=False)
    world.ends()
    assert asks(world.tell(RegistryLost())) == [Stop("gpu01", world["frontend-0"].run, 30.0)]
    assert world.states["qwen-0"] == "stopped"
