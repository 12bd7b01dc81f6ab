"""`noray doctor gpu`: asks every host of the inventory itself, so it works with, without and beside a controller."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import anyio

from supervisor.cli.common import confirm, look, write, write_json
from supervisor.cli.render.doctor import Report, question, report, show_doctor, show_reaped, unseen
from supervisor.cli.rounds import Rounds
from supervisor.effects.statedir import choose
from supervisor.errors import HostRefused, HostUnreachable
from supervisor.spec import Host

LOOK_S = 40.0  # NVML has 25 of them
REAP_S = 40.0  # for each run


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    rounds = Doctors(state.load().read_inventory().hosts)
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


class Doctors(Rounds[Report]):
    def __init__(self, hosts: Mapping[str, Host]) -> None:
        super().__init__(hosts, "doctor")
        self._did: dict[str, list[dict[str, Any]]] = {}

    @property
    def done(self) -> list[dict[str, Any]]:
        """What was reaped, each with its host."""
        return [{**each, "host": host} for host in self.hosts for each in self._did.get(host, ())]

    async def look(self, host: str) -> None:
        try:
            self.seen[host] = report(host, await self.ask(host, "look", LOOK_S))
        except (HostRefused, HostUnreachable) as error:
            self.seen[host] = unseen(host, str(error))

    async def reap(self, host: str) -> None:
        orphans = self.seen[host]["orphans"]
        if not orphans:
            return
        runs = len({(orphan["deployment"], orphan["run"]) for orphan in orphans})
        try:
            self._did[host] = (await self.ask(host, "reap", REAP_S * runs))["did"]
        except HostUnreachable as error:
            self._did[host] = [{**orphan, "ended": False, "how": f"not known: {error}"} for orphan in orphans]
