"""One conversation with a program of each host, all hosts at once: for verbs that ask the hosts and no controller."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

import anyio

from supervisor.errors import HostUnreachable
from supervisor.runtime.dial import connect
from supervisor.spec import Host
from supervisor.transport import Channel, Transport

OPEN_S = 15.0
Report = TypeVar("Report")


class Rounds(Generic[Report]):
    """A host's trouble is an exception of its own visit, and costs the others nothing. `seen`: what the visits found."""

    def __init__(self, hosts: Mapping[str, Host], program: str) -> None:
        self.hosts = hosts
        self.seen: dict[str, Report] = {}
        self._program = program
        self._transports: dict[str, Transport] = {}
        self._channels: dict[str, Channel] = {}

    @property
    def reports(self) -> list[Report]:
        """In the order of the inventory."""
        return [self.seen[host] for host in self.hosts]

    async def on_all(self, visit: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        async with anyio.create_task_group() as tasks:
            for host in self.hosts:
                tasks.start_soon(visit, host)

    async def ask(self, host: str, op: str, timeout_s: float) -> dict[str, Any]:
        """The program's answer to `op`; the first question opens the line. Raises HostRefused and HostUnreachable."""
        if host not in self._channels:
            self._transports[host] = connect(self.hosts[host])
            self._channels[host] = await self._transports[host].open(self._program, OPEN_S)
        channel = self._channels[host]
        try:
            with anyio.fail_after(timeout_s):
                await channel.send({"op": op})
                async for said in channel:
                    return said
        except TimeoutError:
            raise HostUnreachable(f"{host} did not answer within {timeout_s:g} s") from None
        raise AssertionError("a channel ends by raising")

    def preamble(self, host: str) -> str:
        """What login scripts printed before the conversation."""
        return self._channels[host].preamble if host in self._channels else ""

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
