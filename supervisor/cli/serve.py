"""`noray serve`: be the controller. SIGTERM ends only that: what runs goes on, unhealed, until the next one adopts it.

Under systemd (Type=notify) it also says what it is about: READY once every host has answered, or has been found not to;
STATUS, the verdict, when it changes; WATCHDOG only as long as its loop goes round: a wedged one is killed, the next one adopts.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
from contextlib import aclosing
from typing import Any

import anyio
from anyio.abc import TaskStatus

from supervisor.app import Controller, Use
from supervisor.cli.common import read_files
from supervisor.core.verdict import verdict
from supervisor.effects.notify import Notifier, notifier
from supervisor.effects.statedir import of
from supervisor.errors import NorayError
from supervisor.log import configure

STATUS_S = 1.0  # between two of them; the first that follows a pause comes at once
GAVE_WAY = 3  # the exit code; systemd/noray.service does not restart it then
BEATS = 3  # in the time that the watchdog waits


def run(args: argparse.Namespace) -> int:
    faulthandler.enable()  # a watchdog's SIGABRT leaves in the log where it hung
    told = notifier()
    files = read_files(args.file, args.inventory)
    state = of(files.plan().deployment)
    files = state.scaled(files)
    configure()
    controller = Controller(files, state, Use.SERVE, take_over=args.take_over)
    try:
        anyio.run(_serve, controller, told)
    except BaseExceptionGroup as group:
        refusals, bugs = group.split(NorayError)
        if refusals is None or bugs is not None:
            raise
        raise _first(refusals) from None
    if controller.superseded:
        sys.stderr.write(f"noray: {controller.superseded}\n")
        return GAVE_WAY
    return 0


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def _serve(controller: Controller, told: Notifier) -> None:
    async with anyio.create_task_group() as tasks:

        async def live(*, task_status: TaskStatus[None]) -> None:
            try:
                await controller.run(task_status=task_status)
            finally:
                told(stopping=1)
            tasks.cancel_scope.cancel()

        tasks.start_soon(_until_told, tasks.cancel_scope)
        await tasks.start(live)
        if told:
            tasks.start_soon(announce, controller, told)
        if told.watchdog_s:
            tasks.start_soon(feed, controller, told, told.watchdog_s / BEATS)


async def _until_told(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                scope.cancel()


async def announce(controller: Controller, told: Notifier) -> None:
    """STATUS, when it is another one; with it READY once all is adopted: again it is no news, but makes up for one lost."""
    ready, last = False, ""
    async with aclosing(controller.changes()) as changes:
        async for seen in changes:
            said, now = verdict(seen), ready or controller.adopted
            if (said, now) == (last, ready):
                continue
            told(**({"ready": 1} if now else {}), status=said)
            if now and ready:
                await anyio.sleep(STATUS_S)
            ready, last = now, said


async def feed(controller: Controller, told: Notifier, every_s: float) -> None:
    """A timer of its own would go on beside a loop that hangs: the loop itself has to take in a fact for each of them."""
    while True:
        await controller.beat()
        told(watchdog=1)
        await anyio.sleep(every_s)
