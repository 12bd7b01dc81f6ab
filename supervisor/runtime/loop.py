"""The main loop: one inbox, one writer. Concurrency is around it, never inside a decision."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable

from supervisor.core.actions import Action
from supervisor.core.facts import Fact
from supervisor.core.fleet import step_fleet
from supervisor.core.known import Fleet
from supervisor.log import log


async def supervise(
    inbox: AsyncIterable[Fact],
    fleet: Fleet,
    perform: Callable[[Action], None],
    published: Callable[[Fleet, Fleet], None],
    now: Callable[[], float],
) -> Fleet:
    """Own the fleet until the inbox closes. `perform` starts work and returns; what comes of it arrives as facts."""
    async for fact in inbox:
        before = fleet
        fleet, actions = step_fleet(fleet, fact, now())
        published(before, fleet)
        for action in actions:
            log.debug("action", do=type(action).__name__, about=str(action))
            perform(action)
    return fleet
