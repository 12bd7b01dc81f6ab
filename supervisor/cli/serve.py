"""`noray serve`: be the controller. SIGTERM ends only that: what runs goes on, unhealed, until the next one adopts it."""

from __future__ import annotations

import argparse
import signal

import anyio

from supervisor.app import Controller, Use
from supervisor.cli.common import read_files
from supervisor.effects.statedir import of
from supervisor.errors import NorayError
from supervisor.log import configure


def run(args: argparse.Namespace) -> int:
    files = read_files(args.file, args.inventory)
    state = of(files.plan().deployment)
    configure()
    controller = Controller(files, state, Use.SERVE, take_over=args.take_over)
    anyio.run(_serve, controller)
    if controller.superseded:
        raise NorayError(controller.superseded)
    return 0


async def _serve(controller: Controller) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_until_told, tasks.cancel_scope)
        await controller.run()
        tasks.cancel_scope.cancel()


async def _until_told(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                scope.cancel()
