"""`noray eject HOST… | --all`: hosts without any trace of noray, where nothing of anybody's runs any more.

Asks the hosts themselves, so it needs an inventory and no deployment. Exit 0 only if every one of them is clean.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import anyio

from supervisor.cli.common import confirm, look, meant_hosts, write, write_json
from supervisor.cli.render.eject import CLEAN, THERE, Report, question, show_ejected, told, unseen
from supervisor.cli.rounds import Rounds
from supervisor.errors import HostRefused, HostUnreachable, UsageError
from supervisor.spec import Host

LOOK_S = 60.0  # 10 for those who hold claims, and a walk over what they wrote
EJECT_S = 300.0


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    visits = Visits(_meant(args))
    try:
        await visits.on_all(visits.look)
        ready = [each for each in visits.reports if each["state"] == THERE]
        if not args.json:
            write(show_ejected([each for each in visits.reports if each["state"] != THERE], look()))
        if ready and not confirm(question(ready), args.yes):
            return 1
        await visits.on_all(visits.eject)
    finally:
        with anyio.CancelScope(shield=True):
            await visits.aclose()
    if args.json:
        write_json({"hosts": visits.reports})
    else:
        write(show_ejected([each for each in visits.reports if each["host"] in {seen["host"] for seen in ready}], look()))
    return int(any(each["state"] != CLEAN for each in visits.reports))


def _meant(args: argparse.Namespace) -> Mapping[str, Host]:
    if bool(args.hosts) == args.all:
        raise UsageError("eject needs the names of hosts, or --all (and not both)")
    return meant_hosts(args)


class Visits(Rounds[Report]):
    def __init__(self, hosts: Mapping[str, Host]) -> None:
        super().__init__(hosts, "eject")

    async def look(self, host: str) -> None:
        try:
            self.seen[host] = told(host, await self.ask(host, "look", LOOK_S), done=False)
        except (HostRefused, HostUnreachable) as error:
            self.seen[host] = unseen(host, str(error))

    async def eject(self, host: str) -> None:
        before = self.seen[host]
        if before["state"] != THERE:
            return
        try:
            self.seen[host] = told(host, {**before, **await self.ask(host, "eject", EJECT_S)}, done=True)
        except HostUnreachable as error:
            self.seen[host] = unseen(host, f"not known whether it is clean: {error}")
