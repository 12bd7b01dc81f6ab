"""`noray logs`: straight from the hosts, each over a channel of its own; with or without a controller."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Mapping

import anyio

from supervisor.app import connect
from supervisor.cli.common import write
from supervisor.effects.statedir import choose
from supervisor.errors import HostRefused, HostUnreachable, UsageError
from supervisor.plan.build import Plan
from supervisor.runtime.parse import text
from supervisor.transport import Transport
from supervisor.transport.base import MAX_CHANNELS

OPEN_S = 15.0
BYTES_PER_LINE = 400  # how far back to look for the last lines


def run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    plan = state.load().plan()
    names = _meant(plan, args.names)
    return anyio.run(_run, args, plan, names)


def _meant(plan: Plan, asked: list[str]) -> list[str]:
    names = [n for n, p in plan.processes.items() if n in asked or p.wanted.service in asked]
    known = set(plan.processes) | {p.wanted.service for p in plan.processes.values()}
    unknown = [n for n in asked if n not in known]
    if unknown:
        raise UsageError(f"nothing is called {', '.join(unknown)}", f"there are: {', '.join(sorted(known))}")
    return names


async def _run(args: argparse.Namespace, plan: Plan, names: list[str]) -> int:
    transports: dict[tuple[str, int], Transport] = {}
    count: dict[str, int] = {}
    failed: list[str] = []
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_leave_on_ctrl_c, tasks.cancel_scope)
            async with anyio.create_task_group() as tails:
                for name in names:
                    host = plan.processes[name].wanted.host
                    count[host] = count.get(host, 0) + 1
                    line = (host, (count[host] - 1) // MAX_CHANNELS)  # so many conversations fit on one connection
                    if line not in transports:
                        transports[line] = connect(plan.hosts[host])
                    transport = transports[line]
                    tails.start_soon(_tail, args, plan.deployment, name, transport, len(names) > 1, failed)
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            for transport in transports.values():
                await transport.aclose()
    return 1 if failed else 0


async def _leave_on_ctrl_c(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _tail(
    args: argparse.Namespace, deployment: str, name: str, transport: Transport, prefixed: bool, failed: list[str]
) -> None:
    asked = {
        "deployment": deployment, "process": name, "run": args.which_run, "which": _which(args),
        "bytes": args.lines * BYTES_PER_LINE, "follow": args.follow,
    }  # fmt: skip
    printer = Printer(name, prefixed, args.json, args.lines)
    try:
        channel = await transport.open("tail", OPEN_S)
        await channel.send(asked)
        async for said in channel:
            if "end" in said:
                printer.finish()
                if said["end"]:
                    failed.append(name)
                    write(f"{name}: {said['end']}\n")
                return
            printer.take(said, following=args.follow)
    except (HostRefused, HostUnreachable) as error:
        printer.finish()
        failed.append(name)
        write(f"{name}: {error}\n")


def _which(args: argparse.Namespace) -> str:
    return "previous" if args.previous else "first_failure" if args.first_failure else "last"


class Printer:
    """Whole lines of one process, the last `lines` of them, then everything that comes."""

    def __init__(self, name: str, prefixed: bool, as_json: bool, lines: int) -> None:
        self._name, self._prefix, self._json, self._lines = name, f"{name} | " if prefixed else "", as_json, lines
        self._rest = ""
        self._held: list[str] = []
        self._run = ""
        self._live = False

    def take(self, said: Mapping[str, object], following: bool) -> None:
        if "gap" in said:
            self._emit([f"… {said['gap']} bytes were rotated away"])
            return
        run = str(said["run"])
        if self._run and run != self._run:
            self._emit([f"--- run {run}"])
        self._run = run
        data = str(said["data"])
        *lines, self._rest = (self._rest + text(data)).split("\n")
        if self._live:
            self._emit(lines)
            return
        self._held = [*self._held, *lines][-self._lines :] if self._lines else []
        if following and len(data) < (1 << 16):  # the backlog comes in full pieces; a shorter one is its end
            self._live = True
            self._emit(self._held)

    def finish(self) -> None:
        if not self._live:
            self._emit([*self._held, *([self._rest] if self._rest else [])][-self._lines :])

    def _emit(self, lines: list[str]) -> None:
        for line in lines:
            if self._json:
                write(json.dumps({"process": self._name, "run": self._run, "line": line}, ensure_ascii=False) + "\n")
            else:
                write(f"{self._prefix}{line}\n")
