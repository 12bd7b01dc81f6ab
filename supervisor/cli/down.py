"""`noray down`: drain and stop everything, in order, and say only what is true: exit 1 and a list of what is left otherwise."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio

from supervisor.app import Controller, Use
from supervisor.cli.common import as_status, confirm, see, size, write, write_json
from supervisor.cli.render.progress import CTRL_C_AGAIN, Progress
from supervisor.control.client import ControllerLost, NoController, connect
from supervisor.core.snapshot import Status
from supervisor.effects.statedir import StateDir, choose

END_S = 5.0  # how long a controller with nothing left to do may take to end
LIVE = ("starting", "ready", "draining", "stopping", "stuck", "unknown")


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    if not args.yes and sys.stdin.isatty() and not confirm(blast_radius(await see(state), args.purge), yes=False):
        return 1
    end = Ending(state, args.purge, None if args.json else Progress(terminal=sys.stdout.isatty()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_hurry_on_ctrl_c, end)
        await end.run()
        tasks.cancel_scope.cancel()
    if args.json:
        write_json({"clean": not end.left, "left": end.left})
    else:
        report(end)
    return 1 if end.left else 0


def blast_radius(seen: Status, purge: bool) -> str:
    live = [p for p in seen["processes"] if p["state"] in LIVE]
    hosts = {p["host"] for p in live}
    also = " and removes its logs and data" if purge else ""
    return f"This stops {len(live)} processes on {len(hosts)} hosts{also}. {seen['verdict'].split('  ')[0]} now. Go on?"


def report(end: Ending) -> None:
    for line in end.left:
        sys.stderr.write(f"noray: {line}\n")
    if not end.left:
        write("everything is down; nothing is left running\n")


class Ending:
    """One orderly stop, through the controller if there is one, else by a passing controller of our own."""

    def __init__(self, state: StateDir, purge: bool, progress: Progress | None) -> None:
        self.state, self.purge, self.progress = state, purge, progress
        self.left: list[str] = []
        self._own: Controller | None = None

    async def run(self) -> None:
        try:
            async with connect(self.state.socket) as client:
                await self._follow(client.request("down", purge=self.purge))
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
            async for _ in self._own.stop(skip_drain=True):
                return
        try:
            async with connect(self.state.socket) as client:
                async for _ in client.request("down", skip_drain=True, purge=self.purge):
                    return
        except NoController:
            return

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

    def _show(self, seen: Status) -> None:
        if self.progress:
            width, height = size()
            write(self.progress.update(seen, time.time(), width=width, height=height))

    async def _by_ourselves(self) -> None:
        self._own = Controller(self.state.load(), self.state, Use.END)
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._own.run)
            async for seen in self._own.stop():
                self._show(seen)
            self.left = self._own.left_over()
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
