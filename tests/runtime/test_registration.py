"""When etcd is said to have lost its data; on virtual time."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from supervisor.core.facts import Fact, Phase, RegistryLost
from supervisor.runtime.registration import LOOK_S, watch_registration
from tests.core.world import World, up, wanted

pytestmark = pytest.mark.anyio


class Registry:
    """What etcd would say; None: it does not answer."""

    def __init__(self) -> None:
        self.world = up(wanted("qwen-0"), wanted("qwen-1"))
        for number, name in enumerate(("qwen-0", "qwen-1")):
            self.world.ready(name, instance=str(31 + number))
        self.there: frozenset[str] | None = frozenset({"31", "32"})
        self.while_asked: Callable[[], object] = lambda: None
        self.told: list[Fact] = []

    async def registered(self) -> frozenset[str]:
        self.while_asked()
        if self.there is None:
            raise LookupError("nobody answers")
        return self.there

    async def tell(self, fact: Fact) -> None:
        self.told.append(fact)
        self.world.tell(fact)

    async def looked(self, times: int) -> list[Fact]:
        """What is told within so many looks."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_registration, lambda: self.world.fleet, self.registered, self.tell)
            await anyio.sleep((times + 0.5) * LOOK_S)
            tasks.cancel_scope.cancel()
        return self.told


async def test_when_nobody_is_there_any_more_it_is_said_once() -> None:
    registry = Registry()
    registry.there = frozenset({"77"})  # somebody else's
    assert await registry.looked(9) == [RegistryLost()]


async def test_one_that_is_there_is_enough() -> None:
    registry = Registry()
    registry.there = frozenset({"32"})
    assert await registry.looked(9) == []


async def test_an_etcd_that_does_not_answer_has_lost_nothing() -> None:
    registry = Registry()
    registry.there = None
    assert await registry.looked(9) == []


async def test_who_leaves_while_it_is_asked_is_not_missed() -> None:
    registry = Registry()

    def leave() -> None:
        registry.there = frozenset()
        registry.world.stop()

    registry.while_asked = leave
    assert await registry.looked(9) == []


async def test_who_was_started_anew_between_two_looks_is_not_missed() -> None:
    registry = Registry()
    registry.there = frozenset()

    def anew() -> None:
        for name in ("qwen-0", "qwen-1"):
            registry.world.ends(process=name)
            registry.world.due(name)
            registry.world.told(Phase.RUNNING, name)
            registry.world.ready(name, instance=str(int(registry.world[name].run, 36) % 1000))

    registry.while_asked = anew
    assert await registry.looked(4) == []


async def test_nobody_is_nobody_missed() -> None:
    registry = Registry()
    registry.world = World()
    registry.there = frozenset()
    assert await registry.looked(9) == []
