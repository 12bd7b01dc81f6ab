"""What an operator orders of a running controller: each order yields snapshots until it is carried out, or cannot be.

Leaving the loop early takes nothing back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import anyio

from supervisor.core import cordon
from supervisor.core.facts import Asked, CordonAsked, Fact, StopAsked
from supervisor.core.hand import Holds, after, meant
from supervisor.core.known import Fleet
from supervisor.core.left import left_over, not_serving
from supervisor.core.process import Process, State
from supervisor.core.snapshot import Status
from supervisor.effects.statedir import StateDir
from supervisor.errors import NorayError, UsageError
from supervisor.log import log
from supervisor.plan.build import Plan

UNREACHED_S = 30.0  # how long a stop waits for hosts that do not answer


class Desk(Protocol):
    """The part of a controller that orders need."""

    @property
    def fleet(self) -> Fleet: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def state(self) -> StateDir: ...
    async def tell(self, fact: Fact) -> None: ...
    async def taken_in(self) -> None: ...
    async def change(self) -> None: ...
    def changes(self) -> AsyncIterator[Status]: ...


class Orders:
    def __init__(self, to: Desk) -> None:
        self._to = to
        self._held, self._cordons = to.fleet.held, to.fleet.cordons  # as they stand in the state directory

    async def stop(self, skip_drain: bool = False) -> AsyncIterator[Status]:
        """Bring everything down, in order; ends when all is gone, or when waiting longer cannot help."""
        await self._to.tell(StopAsked(skip_drain))
        async for seen in self._until(lambda: self._to.fleet.stopped, lambda: self._to.fleet.stuck_stopping):
            yield seen

    async def by_hand(self, verb: str, args: Mapping[str, object]) -> AsyncIterator[Mapping[str, object]]:
        """`stop`, `start` or `restart` as a client says it: snapshots, and at the end what is not as ordered.

        Raises UsageError for a name that the files do not know.
        """
        given, by = args.get("names"), str(args.get("by", ""))
        names = meant([str(name) for name in given] if isinstance(given, list) else [], self._to.plan.wanted)
        if verb == "stop":
            async for seen in self.stop_by_hand(names, by, bool(args.get("skip_drain"))):
                yield dict(seen)
            left = left_over(self._to.fleet, names)
        else:
            async for seen in self.start_by_hand(names, by, anew=verb == "restart"):
                yield dict(seen)
            left = not_serving(self._to.fleet, names)
        yield {"ended": {"left": left, "failed": []}}

    async def stop_by_hand(self, names: frozenset[str], by: str, skip_drain: bool = False) -> AsyncIterator[Status]:
        """Bring these down for good. Raises NorayError, with nothing stopped, if that cannot be written down first."""
        asked = Asked(names, False, by, int(time.time() * 1000), skip_drain=skip_drain)
        held = after(self._to.fleet.held, asked, self._to.plan.wanted)
        if held != self._held:
            self._to.state.save_held(held)
            self._held = held
        await self._to.tell(asked)
        await self._to.taken_in()
        async for seen in self._until(lambda: self._to.fleet.down(names), lambda: self._to.fleet.stuck(names)):
            yield seen

    async def start_by_hand(self, names: frozenset[str], by: str, anew: bool) -> AsyncIterator[Status]:
        """Until these serve, or waiting cannot help. `anew`: those that run now are replaced."""
        if self._to.fleet.stopping:
            raise UsageError(f"{self._to.plan.deployment} is being brought down", "wait for that, then: noray up")
        old = frozenset(p.run for p in self._to.fleet.covered(names) if p.run and anew)
        asked = Asked(names, True, by, int(time.time() * 1000), old)
        # A stop that found no controller may have been written down beside us: lifted for us only, it would come back.
        kept = self._to.state.load_held()
        if (held := after(kept, asked, self._to.plan.wanted)) != kept:
            self._to.state.save_held(held)
            self._held = held
        await self._to.tell(asked)
        await self._to.taken_in()
        async for seen in self._to.changes():
            yield seen
            ends = (State.READY, State.FAILED, State.STUCK)
            if all(
                not p.up or (p.state in ends and (p.run not in old or p.state is State.STUCK))
                for p in self._to.fleet.covered(names)
            ):
                return

    async def cordon(self, on: bool, args: Mapping[str, object]) -> AsyncIterator[Mapping[str, object]]:
        """Snapshots until none of these is routed to, or, `on` false, all of them are again; at the end what is not as ordered.

        Raises UsageError for a name that nothing has, and where only their own end takes workers out of the routing.
        """
        given, plan = args.get("names"), self._to.plan
        names = cordon.meant([str(n) for n in given] if isinstance(given, list) else [], plan.wanted, plan.hosts)
        if plan.discovery != "etcd":
            raise UsageError("workers are cordoned in etcd, and this deployment has discovery: file", "stop them: noray stop")
        asked = CordonAsked(names, on, str(args.get("by", "")), int(time.time() * 1000))
        after = cordon.after(self._to.fleet.cordons, asked)
        self._to.state.save_cordons(after)
        self._cordons = after
        await self._to.tell(asked)
        await self._to.taken_in()
        async for seen in self._to.changes():
            yield dict(seen)
            fleet = self._to.fleet
            late = [p for p in fleet.processes.values() if cordon.names_of(p) & names and cordon.late(fleet, p)]
            if all(not fleet.hosts[p.wanted.host].up for p in late):
                break
        left = [f"not known: {p.wanted.name} ({p.wanted.host} does not answer)" for p in late]
        left += [] if on else cordon.still_out(self._to.fleet, names)
        yield {"ended": {"left": left, "failed": []}}

    async def _until(self, done: Callable[[], bool], stuck: Callable[[], bool]) -> AsyncIterator[Status]:
        """Snapshots until `done`; once nothing but silent hosts and `stuck` ones are left, no longer than UNREACHED_S."""
        waited = False
        async for seen in self._to.changes():
            yield seen
            if done():
                return
            if stuck():
                if waited or all(host.up or host.refused for host in self._to.fleet.hosts.values()):
                    return
                waited = True
                with anyio.move_on_after(UNREACHED_S):
                    while stuck() and not done():
                        await self._to.change()

    def remember(self, held: Holds, cordons: Holds) -> None:
        """Words that were lifted, or that left the files."""
        try:
            if held != self._held:
                self._to.state.save_held(held)
                self._held = held
            if cordons != self._cordons:
                self._to.state.save_cordons(cordons)
                self._cordons = cordons
        except NorayError as error:
            log.error("not remembered", why=str(error))


def _settled(p: Process, old: frozenset[str]) -> bool:
    """Started, or it will not be by waiting. `old`: runs that are to be replaced."""
    return not p.up or p.state is State.STUCK or (p.state in (State.READY, State.FAILED) and p.run not in old)
