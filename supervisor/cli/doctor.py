"""`noray doctor gpu`: asks every host of the inventory itself, so it works with, without and beside a controller."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio

from supervisor.cli.common import confirm, look, write, write_json
from supervisor.cli.render.doctor import Report, question, report, show_doctor, show_reaped, unseen
from supervisor.effects.statedir import choose
from supervisor.errors import HostRefused, HostUnreachable
from supervisor.runtime.dial import connect
from supervisor.spec import Host
from supervisor.transport import Channel, Transport

OPEN_S = 15.0
LOOK_S = 40.0  # NVML has 25 of them
REAP_S = 40.0  # for each run


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    rounds = Rounds(state.load().read_inventory().hosts)
    try:
        await rounds.on_all(rounds.look)
        before = rounds.reports
        orphaned = any(each["orphans"] for each in before)
        if not args.json:
            write(show_doctor(before, look(), time.time()))
        if args.reap_ours and orphaned and not confirm(question(before), args.yes):
            return 1
        if args.reap_ours and orphaned:
            await rounds.on_all(rounds.reap)
    finally:
        with anyio.CancelScope(shield=True):
            await rounds.aclose()
    if args.json:
        write_json({"deployment": state.deployment, "hosts": before, "reaped": rounds.done if args.reap_ours else None})
    elif args.reap_ours:
        write("\n" + show_reaped(rounds.done, before))
    return int(any(each["error"] for each in before) or not all(each["ended"] for each in rounds.done))


class Rounds:
    """One conversation with the doctor of each host, all at once."""

    def __init__(self, hosts: Mapping[str, Host]) -> None:
        self._hosts = hosts
        self._transports: dict[str, Transport] = {}
        self._channels: dict[str, Channel] = {}
        self._seen: dict[str, Report] = {}
        self._did: dict[str, list[dict[str, Any]]] = {}

    @property
    def done(self) -> list[dict[str, Any]]:
        """What was reaped, each with its host."""
        return [{**each, "host": host} for host in self._hosts for each in self._did.get(host, ())]

    @property
    def reports(self) -> list[Report]:
        """In the order of the inventory."""
        return [self._seen[host] for host in self._hosts]

    async def on_all(self, visit: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        async with anyio.create_task_group() as tasks:
            for host in self._hosts:
                tasks.start_soon(visit, host)

    async def look(self, host: str) -> None:
        try:
            self._transports[host] = connect(self._hosts[host])
            self._channels[host] = await self._transports[host].open("doctor", OPEN_S)
            self._seen[host] = report(host, await self._ask(host, "look", LOOK_S))
        except (HostRefused, HostUnreachable) as error:
            self._seen[host] = unseen(host, str(error))

    async def reap(self, host: str) -> None:
        orphans = self._seen[host]["orphans"]
        if not orphans:
            return
        runs = len({(orphan["deployment"], orphan["run"]) for orphan in orphans})
        try:
            self._did[host] = (await self._ask(host, "reap", REAP_S * runs))["did"]
        except HostUnreachable as error:
            self._did[host] = [{**orphan, "ended": False, "how": f"not known: {error}"} for orphan in orphans]

    async def _ask(self, host: str, op: str, timeout_s: float) -> dict[str, Any]:
        channel = self._channels[host]
        try:
            with anyio.fail_after(timeout_s):
                await channel.send({"op": op})
                async for said in channel:
                    return said
        except TimeoutError:
            raise HostUnreachable(f"{host} did not answer within {timeout_s:g} s") from None
        raise AssertionError("a channel ends by raising")

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
