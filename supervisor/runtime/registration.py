"""Whether etcd still knows of those who serve. After it lost its data nobody registers again: every Dynamo process goes on with
a lease that is none, lists nothing within 7 s, and exits with code 0 within the TTL (1.4.2, measured: 50 s of 404 in between).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio

from supervisor.core.facts import Fact, RegistryLost
from supervisor.core.known import Fleet
from supervisor.core.process import State

LOOK_S = 1.0

Serving = Mapping[str, tuple[str, str]]  # by process: its run, and its id in etcd


async def watch_registration(
    fleet: Callable[[], Fleet], registered: Callable[[], Awaitable[frozenset[str]]], tell: Callable[[Fact], Awaitable[None]]
) -> None:
    """Until cancelled. `registered`: the ids of all that have a model card; raises LookupError while nobody can say.

    Lost is what is missed twice, by one who was registered before the first look and serves after the second.
    """
    missed: Serving = {}
    while True:
        await anyio.sleep(LOOK_S)
        before = serving(fleet())
        if not before:
            missed = {}
            continue
        try:
            there = await registered()
        except LookupError:
            continue
        still = serving(fleet())
        here = {name: who for name, who in before.items() if still.get(name) == who}
        if any(number in there for _, number in here.values()):
            missed = {}
        elif any(missed.get(name) == who for name, who in here.items()):
            missed = {}
            await tell(RegistryLost())
        else:
            missed = here


def serving(fleet: Fleet) -> Serving:
    """Who would have an entry; those on their way out may have left it already."""
    living = (p for p in fleet.processes.values() if p.state is State.READY and p.up and p.instance)
    return {p.wanted.name: (p.run, p.instance) for p in living}
