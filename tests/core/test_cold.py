"""The first start on a host makes the caches that the others find: they wait for it, once."""

from __future__ import annotations

from supervisor.core.facts import Phase
from supervisor.core.process import State
from tests.core.world import World, exited, spawns, wanted

SOME = [wanted(f"qwen-{number}", cold="c1") for number in range(3)]
ELSEWHERE, OTHER, PLAIN = wanted("qwen-3", host="gpu02", cold="c1"), wanted("big-0", cold="c2"), wanted("mock-0")


def begun() -> World:
    world = World()
    world.plan(*SOME, ELSEWHERE, OTHER, PLAIN)
    assert sorted(spawns(world.found())) == ["big-0", "mock-0", "qwen-0"], "one of each kind, and who compiles nothing"
    assert spawns(world.found(host="gpu02")) == ["qwen-3"], "each host has caches of its own"
    return world


def test_the_others_begin_when_the_first_serves() -> None:
    world = begun()
    world.runs("qwen-0")
    assert (world["qwen-1"].state, "first of its kind" in world["qwen-1"].reason) == (State.PENDING, True)
    assert sorted(spawns(world.ready("qwen-0"))) == ["qwen-1", "qwen-2"]


def test_where_the_first_fails_the_next_is_the_first() -> None:
    world = begun()
    world.runs("qwen-0")
    assert spawns(world.ends(exited(1))) == ["qwen-1"]
    assert spawns(world.due("qwen-0")) == [], "and it waits in turn"
    world.runs("qwen-1")
    assert sorted(spawns(world.ready("qwen-1"))) == ["qwen-0", "qwen-2"]


def test_what_has_served_there_waits_for_nobody() -> None:
    world = begun()
    world.runs("qwen-0")
    world.ready("qwen-0")
    for name in ("qwen-1", "qwen-2"):
        world.told(Phase.RUNNING, name)
        world.ready(name)
    for want in SOME:
        world.ends(exited(1), process=want.name)
    assert [spawns(world.due(want.name)) for want in SOME] == [["qwen-0"], ["qwen-1"], ["qwen-2"]]


def test_what_runs_when_a_controller_comes_is_warm() -> None:
    world = begun()
    world.runs("qwen-0")
    world.ready("qwen-0")
    later = World(fleet=world.fleet)
    later.plan(*SOME, wanted("qwen-9", cold="c1"))
    assert "qwen-9" in spawns(tuple(later.did))
