"""`noray logs`: straight from the hosts, each process over a channel of its own; with or without a controller.

On a terminal what noray has to say (a run ended, bytes were rotated away) stands among the lines, where it happened. To a
pipe, and with --json, go lines of the logs and nothing else; the rest goes to stderr.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio

from supervisor.cli.common import look
from supervisor.cli.render.interleave import Interleave
from supervisor.cli.render.lines import Line, Printed, as_json
from supervisor.cli.render.story import Story
from supervisor.cli.render.times import duration
from supervisor.cli.since import ago_s
from supervisor.core.words import plain
from supervisor.effects.statedir import choose
from supervisor.errors import HostRefused, HostUnreachable, UsageError
from supervisor.plan.build import Plan
from supervisor.runtime.dial import connect
from supervisor.transport import Transport
from supervisor.transport.base import MAX_CHANNELS

OPEN_S = 15.0
LINES = 50
WINDOW_S = 0.3  # following: how late a line may come and still find its place; hosts look every 0.1 s
BACKLOG_S = 3.0  # following: when the first host has told its backlog, nobody waits longer for the slowest
UNFINISHED_S = 2.0  # following: a line without its newline (a progress bar, a prompt) waits no longer for it
SKEW_MS = 1000  # clocks further apart than this are worth a word


def run(args: argparse.Namespace) -> int:
    _check(args)
    state = choose(args.deployment)
    plan = state.plan()
    return anyio.run(show, args, plan, _meant(plan, args.names))


def _check(args: argparse.Namespace) -> None:
    if args.lines is not None and args.lines < 0:
        raise UsageError(f"-n {args.lines} is less than no lines")
    if args.follow and (args.previous or args.first_failure or args.which_run):
        raise UsageError("--follow goes on with the newest run, not with the one asked for", "leave one of the two out")
    if args.since is not None:
        ago_s(args.since, datetime.now(UTC))


def _meant(plan: Plan, asked: list[str]) -> list[str]:
    names = [n for n, p in plan.processes.items() if n in asked or p.wanted.service in asked]
    known = set(plan.processes) | {p.wanted.service for p in plan.processes.values()}
    unknown = [n for n in asked if n not in known]
    if unknown:
        raise UsageError(f"nothing is called {', '.join(unknown)}", f"there are: {', '.join(sorted(known))}")
    return names


async def show(args: argparse.Namespace, plan: Plan, names: list[str]) -> int:
    """Until there is no more, or Ctrl-C. The exit code: 1 if something asked for could not be had."""
    transports: dict[tuple[str, int], Transport] = {}
    count: dict[str, int] = {}
    last = args.lines if args.lines is not None else LINES if args.since is None else None
    merged = Interleave(names, last=last, window_s=WINDOW_S if args.follow else 0.0)
    screen = Screen(merged, names, list(plan.processes), args.json)
    reader = _Reader(args, plan.deployment, last, screen)
    broken = False
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_leave_on_ctrl_c, tasks.cancel_scope)
            tasks.start_soon(screen.run, tasks.cancel_scope)
            if args.follow:
                tasks.start_soon(screen.give_up_waiting)
            async with anyio.create_task_group() as tails:
                for name in names:
                    host = plan.processes[name].wanted.host
                    count[host] = count.get(host, 0) + 1
                    line = (host, (count[host] - 1) // MAX_CHANNELS)  # so many conversations fit on one connection
                    if line not in transports:
                        transports[line] = connect(plan.hosts[host])
                    tails.start_soon(reader.tail, name, host, transports[line])
            screen.close()
    except* BrokenPipeError:
        broken = True
    finally:
        with anyio.CancelScope(shield=True):
            for transport in transports.values():
                await transport.aclose()
    if broken:
        raise BrokenPipeError  # as `main` knows it, out of its group
    return 1 if screen.failed else 0


async def _leave_on_ctrl_c(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


class Screen:
    """Takes the lines of all readers, shows them in order."""

    def __init__(self, merged: Interleave, names: list[str], order: list[str], as_json: bool) -> None:
        self.failed = False
        self.several = len(names) > 1
        self._merged, self._names, self._json = merged, names, as_json
        here = look()
        width = max(map(len, names)) if self.several else 0
        self._printed = Printed(here.width is not None, here.colour, width, order)
        self._closed = False
        self._news, self._freed, self._first_live = anyio.Event(), anyio.Event(), anyio.Event()

    async def add(self, name: str, lines: list[Line]) -> None:
        """Waits while too much of this process is already waiting: then its host waits too."""
        self._merged.add(name, lines, anyio.current_time())
        self._news.set()
        while self._merged.full(name):
            await self._freed.wait()

    def is_live(self, *names: str) -> None:
        for name in names:
            self._merged.is_live(name)
        self._first_live.set()
        self._news.set()

    async def give_up_waiting(self) -> None:
        await self._first_live.wait()
        await anyio.sleep(BACKLOG_S)
        self.is_live(*self._names)

    def complain(self, words: str) -> None:
        sys.stderr.write(f"noray: {plain(words)}\n")

    def close(self) -> None:
        self._closed = True
        self._news.set()

    async def run(self, all_of_it: anyio.CancelScope) -> None:
        """Until closed and empty; then nothing of the verb is left to do."""
        while True:
            self._news = anyio.Event()
            closed = self._closed
            self._write(self._merged.take(math.inf if closed else anyio.current_time()))
            self._freed.set()
            self._freed = anyio.Event()
            if closed:
                all_of_it.cancel()
                return
            with anyio.move_on_after(WINDOW_S / 3 if self._merged.waits else math.inf):
                await self._news.wait()

    def _write(self, lines: list[Line]) -> None:
        if self._json or not self._printed.terminal:
            for line in lines:
                if line.note:
                    self.complain(f"{line.process}: {line.data.decode()}")
            lines = [line for line in lines if not line.note]
        if lines:
            sys.stdout.buffer.write(as_json(lines) if self._json else self._printed.show(lines))
            sys.stdout.buffer.flush()


class _Reader:
    """What all tails of this verb have in common."""

    def __init__(self, args: argparse.Namespace, deployment: str, last: int | None, screen: Screen) -> None:
        self._args, self._deployment, self._last, self._screen = args, deployment, last, screen
        self._skewed: set[str] = set()  # hosts whose clocks were already spoken of

    async def tail(self, name: str, host: str, transport: Transport) -> None:
        """One process, until there is no more of it. What went wrong is said, and remembered."""
        story = Story(name, chosen=self._which != "last" or self._args.which_run is not None)
        try:
            channel = await transport.open("tail", OPEN_S)
            asked_ms = time.time() * 1000
            await channel.send(self._ask(name, asked_ms))
            said_so_far = aiter(channel)
            shown_at_s = math.inf
            while True:
                said: Mapping[str, object] = {}
                with anyio.CancelScope(deadline=shown_at_s):
                    said = await anext(said_so_far)
                if not said:
                    await self._screen.add(name, story.cutter.flush())
                elif "now" in said:
                    story.cutter.ahead_ms = self._ahead_ms(host, int(str(said["now"])), asked_ms)
                elif "live" in said:
                    self._screen.is_live(name)
                elif "end" in said:
                    await self._screen.add(name, story.end())
                    if said["end"]:
                        self._failed(f"{name}: {said['end']}")
                    return
                else:
                    if said.get("timed") is False:
                        self._untimed(name, said)
                    await self._screen.add(name, story.heard(said, time.time()))
                if not (self._args.follow and story.cutter.unfinished):
                    shown_at_s = math.inf
                elif shown_at_s == math.inf:
                    shown_at_s = anyio.current_time() + UNFINISHED_S
        except (HostRefused, HostUnreachable) as error:
            await self._screen.add(name, story.end())
            self._failed(f"{name}: {error}")
        finally:
            self._screen.is_live(name)

    @property
    def _which(self) -> str:
        return "previous" if self._args.previous else "first_failure" if self._args.first_failure else "last"

    def _ask(self, name: str, now_ms: float) -> Mapping[str, object]:
        since = self._args.since
        return {
            "deployment": self._deployment, "process": name, "run": self._args.which_run, "which": self._which,
            "lines": self._last, "follow": self._args.follow,
            "ago_ms": None if since is None else int(ago_s(since, datetime.fromtimestamp(now_ms / 1000, UTC)) * 1000),
        }  # fmt: skip

    def _ahead_ms(self, host: str, said_ms: int, asked_ms: float) -> int:
        """Its clock minus ours, as far as that can be told: less than half the time it took to answer may be no difference."""
        took_ms = time.time() * 1000 - asked_ms
        ahead_ms = int(said_ms - asked_ms - took_ms / 2)
        if abs(ahead_ms) <= took_ms / 2:
            return 0
        if abs(ahead_ms) >= SKEW_MS and host not in self._skewed:
            self._skewed.add(host)
            how = "ahead of" if ahead_ms > 0 else "behind"
            self._screen.complain(
                f"the clock of {host} is {duration(abs(ahead_ms) / 1000)} {how} ours; its times are corrected"
            )
        return ahead_ms

    def _untimed(self, name: str, said: Mapping[str, Any]) -> None:
        if self._args.since is not None:
            self._screen.complain(f"{name}: run {said['begin']} kept no times; all of it is shown")
        elif self._screen.several:
            self._screen.complain(f"{name}: run {said['begin']} kept no times; its lines stand where it began")

    def _failed(self, words: str) -> None:
        self._screen.failed = True
        self._screen.complain(words)
