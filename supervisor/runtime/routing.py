"""Who is routed to, as Dynamo's registry has it: look at a silent host from elsewhere, and carry out what the core decides.

The registry is asked through the links of hosts that answer us, etcd's own first: the controller itself may be on none of
their networks. With file discovery there is one host and nobody else who could look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskGroup

from supervisor.core.actions import Route
from supervisor.core.facts import Fact, Routed, Sighting, Witnessed
from supervisor.errors import HostUnreachable
from supervisor.kinds.base import SEPARATOR
from supervisor.plan.build import Plan
from supervisor.probes import registry
from supervisor.probes.ask import HttpRequest
from supervisor.probes.registry import Entry
from supervisor.runtime.hostlink import Door, HostLink

DIAL_S = 0.5  # a connection on a cluster's network takes under a millisecond; a lost SYN is sent again after a second
ASK_S = 1.0
AGAIN_S, AGAIN_MAX_S = 0.5, 10.0  # while nobody answers: etcd may be away, or not there yet

OUT, BACK, DEAD = "out", "back", "dead"


class Routing:
    """`witness` and `route` are called from the loop and return at once; what comes of them is told."""

    def __init__(
        self,
        tasks: TaskGroup,
        links: Mapping[str, HostLink],
        tell: Callable[[Fact], Awaitable[None]],
        plan: Callable[[], Plan],
        doors: Callable[[], Iterable[HostLink]],
    ) -> None:
        """`doors`: the links of hosts where a frontend lives."""
        self._tasks, self._links, self._tell, self._plan, self._doors = tasks, links, tell, plan, doors
        self._owed: dict[str, dict[int, str]] = {}  # by host and port: the newest word

    def witness(self, host: str) -> None:
        self._tasks.start_soon(self._witness, host)

    def route(self, action: Route) -> None:
        working = action.host in self._owed
        words = ((OUT, action.out), (BACK, action.back), (DEAD, action.dead))
        self._owed.setdefault(action.host, {}).update({port: word for word, ports in words for port in ports})
        if not working:
            self._tasks.start_soon(self._work, action.host)

    # --- the second witness ---------------------------------------------------------------------------------------------

    async def _witness(self, host: str) -> None:
        try:
            found = await self._entries(host)
            seen = await self._look(host, found)
            told = Witnessed(host, tuple(map(_sighting, found, seen)))
        except LookupError as blind:
            told = Witnessed(host, blind=str(blind), ever=self._plan().discovery == "etcd")
        await self._tell(told)

    async def _look(self, host: str, found: Sequence[Entry]) -> list[tuple[Door, ...]]:
        """Each of these as every frontend's host sees it. Raises LookupError when none of those could look."""
        doors = [(each.instance.host, each.instance.port) for each in found]
        answers: list[list[Door]] = []

        async def ask(link: HostLink) -> None:
            try:
                answers.append(await link.dial(doors, DIAL_S))
            except HostUnreachable:
                pass  # it may be as silent as the other

        async with anyio.create_task_group() as tasks:
            for link in {link.name: link for link in self._doors()}.values():
                tasks.start_soon(ask, link)
        if not answers:
            raise LookupError("no other host with a frontend answers us")
        return list(zip(*answers, strict=True))

    async def registered(self) -> frozenset[str]:
        """The ids (decimal) of all processes of the deployment that etcd has a model card of. Raises LookupError."""
        plan = self._plan()
        if plan.discovery != "etcd":
            raise LookupError("file discovery has no etcd to lose")
        return registry.cards(*await self._ask(registry.ask_cards(plan.deployment + SEPARATOR)))

    # --- the registry -----------------------------------------------------------------------------------------------------

    async def _work(self, host: str) -> None:
        """Until nothing is owed of this host any more."""
        pause_s = AGAIN_S
        while owed := dict(self._owed[host]):
            try:
                done = await self._carry_out(host, owed)
            except LookupError:
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, AGAIN_MAX_S)
                continue
            pause_s = AGAIN_S
            left = {port: word for port, word in self._owed[host].items() if owed.get(port) != word}
            self._owed[host] = left
            await self._tell(done)
        del self._owed[host]

    async def _carry_out(self, host: str, owed: Mapping[int, str]) -> Routed:
        dead = await self._really_dead(host, [port for port, word in owed.items() if word == DEAD])
        for entry in await self._entries(host):
            word = owed.get(entry.instance.port, "")
            if word == DEAD and entry.instance.port in dead:
                registry.moved(*await self._ask(registry.revoke(entry)))
            elif (word, entry.aside) in ((OUT, False), (BACK, True)):
                registry.moved(*await self._ask(registry.move(entry)))
        ports = {word: frozenset(port for port, said in owed.items() if said == word) for word in (OUT, BACK, DEAD)}
        return Routed(host, out=ports[OUT], back=ports[BACK], dead=ports[DEAD])

    async def _really_dead(self, host: str, ports: Sequence[int]) -> frozenset[int]:
        """Those where nobody listens: a number may have another owner by now, on a machine that is several hosts even one
        whom we have not heard of yet.
        """
        address = self._plan().addresses.get(host)
        if not ports or address is None:
            return frozenset()
        try:
            took = await self._links[host].dial([(address, port) for port in ports], DIAL_S)
        except HostUnreachable as error:
            raise LookupError(str(error)) from None
        return frozenset(port for port, door in zip(ports, took, strict=True) if not door.opens)

    async def _entries(self, host: str) -> list[Entry]:
        """What is registered at the address of this host, and what is kept aside of it. Raises LookupError."""
        plan = self._plan()
        if plan.discovery != "etcd":
            raise LookupError("file discovery has one host")
        found: list[Entry] = []
        for request in registry.asks(plan.deployment + SEPARATOR):
            found += registry.entries(*await self._ask(request))
        if plan.request_plane == "nats":
            known = registry.addresses(*await self._ask(registry.ask_addresses(plan.deployment + SEPARATOR)))
            found = [registry.at(entry, known) for entry in found]
        return [entry for entry in found if entry.instance.host == plan.addresses.get(host)]

    async def _ask(self, request: HttpRequest) -> tuple[int, bytes]:
        """etcd's answer, through whichever host gets one; of the last one tried, if none does."""
        plan, answer = self._plan(), (0, b"no host answers us")
        if plan.external:
            return await self._ask_others(request)
        near = [process.wanted.host for process in plan.processes.values() if process.wanted.kind == "etcd"]
        links = [self._links[name] for name in near if name in self._links]
        links += [link for link in self._doors() if link not in links]
        for link in links:
            for url in plan.etcd_urls:
                where = urlsplit(url)
                try:
                    answer = await link.http(where.hostname or "", where.port or 2379, request, ASK_S)
                except HostUnreachable as error:
                    answer = (0, str(error).encode())
                    break
                if answer[0]:
                    return answer
        return answer

    async def _ask_others(self, request: HttpRequest) -> tuple[int, bytes]:
        """The same of an etcd that is not ours."""
        answer = (0, b"no host with a frontend answers us")
        for link in self._doors():
            try:
                answer = await link.etcd(request, ASK_S)
            except HostUnreachable as error:
                answer = (0, str(error).encode())
            if answer[0]:
                break
        return answer


def _sighting(entry: Entry, doors: Sequence[Door]) -> Sighting:
    """It answers if it answers anybody; it is late if it is for anybody."""
    return Sighting(entry.instance.port, any(d.opens for d in doors), entry.aside, any(d.stalled for d in doors))
