"""Whose word about the workers counts."""

from __future__ import annotations

from supervisor.core.facts import Phase
from supervisor.runtime.views import counting
from tests.core.world import up, wanted

DOORS = ["frontend-0", "frontend-1"]


def test_one_of_several_that_starts_again_says_nothing_about_the_workers() -> None:
    world = up(*(wanted(name) for name in DOORS))
    for name in DOORS:
        world.told(Phase.RUNNING, name, ports={"http": 8000})
    assert counting(DOORS, world.fleet.processes) == DOORS
    world.ends(process="frontend-1", ports={"http": 8000})
    world.due("frontend-1")
    world.told(Phase.RUNNING, "frontend-1", ports={"http": 8000})
    assert world.states == {"frontend-0": "ready", "frontend-1": "starting"}
    assert counting(DOORS, world.fleet.processes) == ["frontend-0"]


def test_where_none_serves_yet_those_that_begin_are_asked() -> None:
    world = up(*(wanted(name) for name in DOORS))
    for name in DOORS:
        world.ends(process=name, ports={"http": 8000})
        world.due(name)
    assert counting(DOORS, world.fleet.processes) == [], "no ports, no run"
    world.told(Phase.RUNNING, "frontend-1", ports={"http": 8000})
    assert counting(DOORS, world.fleet.processes) == ["frontend-1"]
