"""`noray up`: see to it that a controller runs what the file says, and follow it.

The controller is always a process of its own. So a closed window (SIGHUP) or a killed `up` changes nothing: work and healing go
on. Ctrl-C or SIGTERM asks the controller to drain and stop in order; a second one to skip the drain.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

import anyio

from supervisor.cli.common import as_status, confirm, look, read_files, size, write
from supervisor.cli.down import Ending, report
from supervisor.cli.render.progress import CTRL_C, CTRL_C_AGAIN, Progress
from supervisor.cli.render.why import show_why
from supervisor.control.client import Client, ControllerLost, NoController, connect
from supervisor.core.snapshot import ProcessStatus, Status
from supervisor.core.verdict import word
from supervisor.core.words import listing, plural
from supervisor.effects.statedir import Files, StateDir, of
from supervisor.errors import NorayError
from supervisor.plan.build import WAITS

START_S = 20.0


def run(args: argparse.Namespace) -> int:
    files = read_files(args.file, args.inventory)
    files.plan()  # every mistake in the files shows here, before anything is touched
    return anyio.run(_run, args, files)


async def _run(args: argparse.Namespace, files: Files) -> int:
    state = of(files.plan().deployment)
    files = state.scaled(files)
    for service, count in files.scaled.items():
        write(f"{service}: {plural(count, 'replica')}, as scaled, until the file changes or another `noray scale`\n")
    joined = await _is_running(state)
    if not joined:
        joined = await _start(state, files, args.take_over)
    elif not await _apply(state, files, args.yes):
        return 1
    session = Session(state, detach=args.detach, joined=joined)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.heed_signals, tasks.cancel_scope)
        await session.follow()
        tasks.cancel_scope.cancel()
    return session.code


async def _is_running(state: StateDir) -> bool:
    try:
        async with connect(state.socket):
            return True
    except NoController:
        return False


async def _start(state: StateDir, files: Files, take_over: bool) -> bool:
    """A controller in the background, in a session of its own, deaf to this terminal. What had failed is tried again.

    True if it may find what an earlier one left running.
    """
    adopts = state.forget_failures()
    argv = [sys.executable, "-m", "supervisor", "serve", str(files.deployment_path)]
    if files.inventory_path:
        argv += ["-i", str(files.inventory_path)]
    if take_over:
        argv += ["--take-over"]
    env = {key: value for key, value in os.environ.items() if key != "NORAY_INVENTORY"}
    with state.log.open("ab") as log:
        begun = log.tell()
        child = subprocess.Popen(  # noqa: ASYNC220 - it outlives this event loop, which would otherwise own it
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", env=env
        )
    with anyio.move_on_after(START_S):
        while child.poll() is None:
            if await _is_running(state):
                return adopts
            await anyio.sleep(0.02)
    said = state.log.read_bytes()[begun:].decode(errors="replace").strip().splitlines()
    raise NorayError("the controller did not start: " + (said[-1] if said else "it said nothing"), f"its log: {state.log}")


async def _apply(state: StateDir, files: Files, yes: bool) -> bool:
    """Change what runs into what the files say; False if the operator said no."""
    async with connect(state.socket) as client:
        changes: list[dict[str, str]] = []
        async for item in client.request("apply", **files.args(), dry_run=True):
            found = item.get("changes")
            changes = found if isinstance(found, list) else []
        if not changes:
            write(f"a controller (pid {client.pid}) runs exactly this already; what had failed is tried again\n")
        for change in changes:
            write(f"  {change['what']:8} {change['process']}  ({change['why']})\n")
        restarts = sum(change["what"] != "start" for change in changes)
        if restarts and not confirm(f"{restarts} running processes are stopped or restarted.", yes):
            return False
        async for _ in client.request("apply", **files.args()):
            pass
    return True


class Session:
    """One `up` on one terminal."""

    def __init__(self, state: StateDir, detach: bool, joined: bool) -> None:
        """`joined`: it ran already, with a controller or without: what serves is not ours to end when something fails."""
        self.state, self.detach, self.joined = state, detach, joined
        self.progress = Progress(terminal=sys.stdout.isatty())
        self.code = 0
        self._ending: Ending | None = None
        self._done = anyio.Event()

    async def follow(self) -> None:
        """Until it is ready (--detach), until it failed to start, or until somebody ends it."""
        ready_once = down = told = False
        superseded = ""
        try:
            async with connect(self.state.socket) as client:
                async for seen in self._snapshots(client):
                    self._show(seen)
                    down = word(seen) == "STOPPED"
                    superseded = superseded_by(seen)
                    if self._ending is not None:
                        break
                    if seen["processes"] and not told:
                        told = True
                        self._tell_of_holds(seen)
                    if seen["ready"] and not ready_once:
                        ready_once = True
                        self._say("requests go to " + ", ".join(seen["endpoints"]))
                    if self.detach and (seen["ready"] or all_held(seen) or only_cordons_lack(seen)):
                        return
                    if self.detach and (homeless := only_places_lack(seen)):
                        self.code = 1
                        write(self.progress.finish())
                        sys.stderr.write("".join(f"noray: no place for {p['name']}: {p['reason']}\n" for p in homeless))
                        sys.stderr.write("noray: each starts as soon as there is room\n")
                        return
                    if not ready_once and hopeless(seen):
                        await self._give_up(seen)
                        return
        except ControllerLost:
            if self._ending is None and down:
                return  # somebody else said `noray down`
            if self._ending is None:
                self.code = 1
                if superseded:
                    sys.stderr.write(f"noray: this controller gave way. {superseded}\n")
                    return
                sys.stderr.write("noray: the controller ended; what runs goes on, unhealed (see: noray status)\n")
                return
        if self._ending is not None:
            await self._done.wait()

    async def _snapshots(self, client: Client):  # type: ignore[no-untyped-def]
        async for item in client.request("follow", follow=True):
            yield as_status(item)

    def _tell_of_holds(self, seen: Status) -> None:
        """The operator's word beats the files, which he should know before he waits for what will not come."""
        held = [p["name"] for p in seen["processes"] if "held" in p]
        if held:
            self._say(f"not started: {listing(held)}, stopped by hand; start: noray start {' '.join(held[:4])}")
        out = [p["name"] for p in seen["processes"] if "cordon" in p]
        if out:
            self._say(f"not routed to: {listing(out)}, cordoned by hand; put back: noray uncordon {' '.join(out[:4])}")
        if all_held(seen):
            self.code = 1

    async def _give_up(self, seen: Status) -> None:
        self.code = 1
        write(self.progress.finish())
        sys.stderr.write(show_why(seen, look()))
        if not self.joined and not superseded_by(seen):  # what another controller runs is not ours to end
            await self._end()

    async def heed_signals(self, scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as tasks:
                async for number in signals:
                    if number == signal.SIGHUP:
                        os._exit(0)  # nobody is left to write to; the controller is its own process
                    if self._ending is None:
                        self._say(CTRL_C)
                        tasks.start_soon(self._end)
                    else:
                        tasks.start_soon(self._ending.hurry)

    async def _end(self) -> None:
        self._ending = Ending(self.state, self.progress)
        await self._ending.run()
        write(self.progress.finish())
        report(self._ending, "everything is down; nothing is left running")
        self.code = self.code or (1 if self._ending.left else 0)
        self._done.set()

    def _show(self, seen: Status) -> None:
        width, height = size()
        write(self.progress.update(seen, time.time(), width=width, height=height))

    def _say(self, text: str) -> None:
        write(self.progress.say(text, time.time(), width=size()[0]))


def all_held(seen: Status) -> bool:
    """Everything was stopped by hand, so nothing will ever be ready."""
    return bool(seen["processes"]) and all("held" in p for p in seen["processes"])


def hopeless(seen: Status) -> bool:
    """Something will not come up by waiting."""
    refused = any(h["state"] == "refused" or "etcd" in h for h in seen["hosts"])
    return refused or any(p["state"] in ("failed", "stuck") for p in seen["processes"])


def only_places_lack(seen: Status) -> list[ProcessStatus]:
    """Those without a place, where everything else that should run is ready."""
    rest = [p for p in seen["processes"] if p["desired"] == "running" and p["state"] != "ready"]
    homeless = [p for p in rest if not p["host"] and p["reason"] != WAITS]
    return homeless if len(homeless) == len(rest) else []


def only_cordons_lack(seen: Status) -> bool:
    """All that should run is ready, and what is not routed to is so by the operator's word."""
    wanted = [p for p in seen["processes"] if p["desired"] == "running"]
    return all(p["state"] == "ready" and (not p["cordoned"] or "cordon" in p) for p in wanted) and any(
        p["cordoned"] for p in wanted
    )


def superseded_by(seen: Status) -> str:
    """Why another controller runs this deployment and not ours; empty if ours does."""
    return next((h.get("reason", "") for h in seen["hosts"] if h.get("held_by")), "")


__all__ = ["CTRL_C_AGAIN", "run"]
