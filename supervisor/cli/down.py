"""`noray down`: drain and stop everything, in order, and say only what is true: exit 1 and a list of what is left otherwise."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from supervisor.cli.common import as_status, confirm, see, size, user, write, write_json
from supervisor.cli.render.progress import CTRL_C_AGAIN, Progress
from supervisor.control.client import Client, ControllerLost, NoController, connect
from supervisor.core.left import left_over
from supervisor.core.snapshot import Status
from supervisor.effects.statedir import StateDir, choose

if TYPE_CHECKING:
    from supervisor.app import Controller

END_S = 15.0  # how long a controller with nothing left to do may take to end; over 5 s where three test suites share two cores
LIVE = ("starting", "ready", "draining", "stopping", "stuck", "unknown")


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    if not args.yes and sys.stdin.isatty() and not confirm(blast_radius(await see(state), args.purge), yes=False):
        return 1
    end = Ending(state, None if args.json else Progress(terminal=sys.stdout.isatty()), purge=args.purge)
    return await carry_out(end, args.json, "everything is down; nothing is left running")


async def carry_out(end: Ending, as_json: bool, done: str) -> int:
    """Ctrl-C skips the drain. The exit code: 0 if nothing is left."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_hurry_on_ctrl_c, end)
        await end.run()
        tasks.cancel_scope.cancel()
    if as_json:
        write_json({"clean": not end.left, "left": end.left})
    else:
        report(end, done)
    return 1 if end.left else 0


def blast_radius(seen: Status, purge: bool) -> str:
    live = [p for p in seen["processes"] if p["state"] in LIVE]
    hosts = {p["host"] for p in live}
    also = " and removes its logs and data" if purge else ""
    return f"This stops {len(live)} processes on {len(hosts)} hosts{also}. {seen['verdict'].split('  ')[0]} now. Go on?"


def report(end: Ending, done: str) -> None:
    for line in end.left:
        sys.stderr.write(f"noray: {line}\n")
    if not end.left:
        write(f"{done}\n")


class Ending:
    """One orderly stop, through the controller if there is one, else by a passing controller of our own.

    `names`: of these only, and for good (`noray stop`); without, of everything (`noray down`). `left` is the truth at the end.
    """

    def __init__(self, state: StateDir, progress: Progress | None, *, names: Sequence[str] = (), purge: bool = False) -> None:
        self.state, self.progress, self.names, self.purge = state, progress, names, purge
        self.left: list[str] = []
        self._own: Controller | None = None
        self._last: Status | None = None

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick)
            await self._run()
            tasks.cancel_scope.cancel()

    async def _run(self) -> None:
        try:
            async with connect(self.state.socket) as client:
                await self._follow(self._request(client))
                if not self.names:
                    await self._see_it_gone(client.pid)
                return
        except ControllerLost:
            self.say("the controller went away; going on without it")
        except NoController:
            pass
        await self._by_ourselves()

    async def hurry(self) -> None:
        """Skip the drain of what is still stopping."""
        self.say(CTRL_C_AGAIN)
        if self._own is not None:
            async for _ in self._own.orders.stop(skip_drain=True):
                return
        try:
            async with connect(self.state.socket) as client:
                async for _ in self._request(client, skip_drain=True):
                    return
        except NoController:
            return

    def _request(self, client: Client, **more: object) -> AsyncIterator[Mapping[str, object]]:
        if self.names:
            return client.request("stop", names=list(self.names), by=user(), **more)
        return client.request("down", purge=self.purge, **more)

    def say(self, text: str) -> None:
        if self.progress:
            write(self.progress.say(text, time.time(), width=size()[0]))

    async def _follow(self, items: AsyncIterator[Mapping[str, object]]) -> None:
        async for item in items:
            ended = item.get("ended")
            if isinstance(ended, dict):
                self.left = [*ended["left"], *ended["failed"]]
            else:
                self._show(as_status(item))

    async def _see_it_gone(self, controller: int) -> None:
        """It answers first and ends then; "nothing is left running" must be true of it and its links as well."""
        with anyio.move_on_after(END_S):
            while alive(controller):  # noqa: ASYNC110 - not our child, and not every Python has pidfd_open
                await anyio.sleep(0.02)
            return
        self.left.append(f"still running: the controller (pid {controller})")

    async def _tick(self) -> None:
        """The steps of a stop have deadlines, and a terminal shows them come near."""
        while True:
            await anyio.sleep(1.0)
            if self._last:
                self._show(self._last)

    def _show(self, seen: Status) -> None:
        self._last = seen
        if self.progress:
            width, height = size()
            write(self.progress.update(seen, time.time(), width=width, height=height))

    async def _by_ourselves(self) -> None:
        from supervisor.app import Controller, Use  # see common.py

        self._own = Controller(self.state.load(), self.state, Use.END, only=self.names)
        if self.names:
            self.state.hold(self.names, user())
            self.say("no controller: these are stopped all the same; the rest goes on, and nothing heals it")
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._own.run)
            async for seen in self._own.orders.stop():
                self._show(seen)
            self.left = left_over(self._own.fleet)
            if self.purge and not self.left:
                self.left = await self._own.purge()
            tasks.cancel_scope.cancel()


def alive(pid: int) -> bool:
    """Our own child may be a zombie: that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def _hurry_on_ctrl_c(end: Ending) -> None:
    with anyio.open_signal_receiver(signal.SIGINT) as signals:
        async for _ in signals:
            await end.hurry()
