"""`noray scale SERVICE=N…`: more replicas, or fewer. Done when the new ones serve and the others are drained and gone.

The numbers are kept with what runs, beside the file, which nobody rewrites: they hold until the file changes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import replace

import anyio

from supervisor.cli.common import as_status, confirm, write, write_json
from supervisor.cli.render.progress import Progress
from supervisor.cli.start import order
from supervisor.control.client import NoController, connect
from supervisor.core.wanted import STORES
from supervisor.effects.statedir import Files, StateDir, choose
from supervisor.errors import NorayError, UsageError
from supervisor.spec.scaled import FRONTEND


def run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    files = state.load()
    files = replace(files, scaled={**files.scaled, **_numbers(args.replicas, _scalable(files))})
    files.plan()  # what does not fit is refused like a number in the file
    try:
        left = anyio.run(_run, args, state, files)
    except NoController as nobody:
        raise NorayError(f"nobody is there to scale anything: {nobody}", "start a controller: noray up") from None
    if left is None:
        return 1
    if args.json:
        write_json({"ready": not left, "left": left})
    for line in left:
        sys.stderr.write(f"noray: {line}\n")
    if not left and not args.json:
        write(", ".join(args.replicas) + "\n")
    return 1 if left else 0


def _scalable(files: Files) -> list[str]:
    wanted = files.plan().wanted.values()
    return sorted({process.service for process in wanted if process.kind not in STORES} | {FRONTEND})


def _numbers(words: Iterable[str], known: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        parts = re.fullmatch(r"(.+)=(\d{1,5})", word)
        if parts is None:
            raise UsageError(f"{word!r} is not SERVICE=N", "for example: noray scale qwen=3")
        if parts[1] not in known:
            raise UsageError(f"no service {parts[1]} has replicas to scale", f"there are: {', '.join(known)}")
        found[parts[1]] = int(parts[2])
    return found


async def _run(args: argparse.Namespace, state: StateDir, files: Files) -> list[str] | None:
    """What is not as it was told at the end; None if the operator said no."""
    async with connect(state.socket) as client:
        changes: list[dict[str, str]] = []
        async for item in client.request("apply", **files.args(), dry_run=True):
            found = item.get("changes")
            changes = found if isinstance(found, list) else []
        ended = [change["process"] for change in changes if change["what"] != "start"]
        if ended and not confirm(f"{', '.join(ended)}: drained and stopped.", args.yes):
            return None
        async for _ in client.request("apply", **files.args()):
            pass
        begun = [change["process"] for change in changes if change["what"] == "start"]
        progress = None if args.json else Progress(terminal=sys.stdout.isatty())
        left = await order(state, "start", begun, progress) if begun else []
        async for item in client.request("follow", follow=True):
            there = [p for p in as_status(item)["processes"] if p["name"] in ended]
            stuck = [f"{p['name']} is {p['state']}: {p['reason']}" for p in there if p["state"] in ("stuck", "unknown")]
            if len(stuck) == len(there):
                return left + stuck
    return left
