"""`noray hosts`: every host of the inventory, asked itself, all at once: reachable or why not, what it is, who has its GPUs.

Needs an inventory and no deployment; with neither, it is this machine. Exit 0 only if every host answered.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import anyio

from supervisor.cli.common import look, meant_hosts, write, write_json
from supervisor.cli.render.hosts import Report, told, unseen
from supervisor.cli.render.hosts import show_hosts as show
from supervisor.cli.render.ssh import show_ssh
from supervisor.cli.rounds import Rounds
from supervisor.cli.trust import trust
from supervisor.errors import HostRefused, HostUnreachable
from supervisor.runtime.dial import address_of
from supervisor.spec import Host
from supervisor.transport.ssh import settings

CLOCK_S = 5.0
SURVEY_S = 25.0  # its own deadlines are 5 for NVML, 8 for the interpreter, 10 for those who hold claims


def run(args: argparse.Namespace) -> int:
    hosts = meant_hosts(args)
    if args.trust:
        return anyio.run(trust, list(hosts.values()), args.yes)
    return anyio.run(_run, args, hosts)


async def _run(args: argparse.Namespace, hosts: Mapping[str, Host]) -> int:
    surveys = Surveys(hosts)
    try:
        await surveys.on_all(surveys.look)
    finally:
        with anyio.CancelScope(shield=True):
            await surveys.aclose()
    if args.json:
        write_json({"hosts": surveys.reports})
    else:
        write(show(surveys.reports, look()))
    if args.verbose and not args.json:
        for name, host in hosts.items():
            if host.transport == "ssh":
                write("\n" + await _ssh(host, surveys.preamble(name)))
    return int(any(each["state"] != "up" for each in surveys.reports))


async def _ssh(host: Host, preamble: str) -> str:
    try:
        return show_ssh(await settings(address_of(host)), preamble, look())
    except HostRefused as refusal:
        return f"{host.name}: {refusal}\n"


class Surveys(Rounds[Report]):
    def __init__(self, hosts: Mapping[str, Host]) -> None:
        super().__init__(hosts, "survey")

    async def look(self, host: str) -> None:
        try:
            await self.ask(host, "clock", CLOCK_S)  # opens the line, which the second time is no part of the answer's way
            before_s = time.time()
            clock = await self.ask(host, "clock", CLOCK_S)
            ahead_ms = round(clock["now_ms"] - (before_s + time.time()) * 500)
            self.seen[host] = told(host, await self.ask(host, "survey", SURVEY_S), ahead_ms)
        except HostRefused as refusal:
            self.seen[host] = unseen(host, "refused", str(refusal), refusal.hint)
        except HostUnreachable as lost:
            self.seen[host] = unseen(host, "unreachable", str(lost), lost.hint)
