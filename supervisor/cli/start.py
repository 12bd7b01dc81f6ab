"""`noray start NAME…` and `noray restart NAME…`: done when all of them serve. Ctrl-C only ends the looking on.

A restart takes one after the other, each when the one before serves again: a service of several goes on all the while, and a
change that makes it fail costs one replica.
"""

from __future__ import annotations

import argparse
import sys
import time

import anyio

from supervisor.cli.common import as_status, confirm, see, size, user, write, write_json
from supervisor.cli.render.blast import blast_radius
from supervisor.cli.render.progress import Progress
from supervisor.control.client import NoController, connect
from supervisor.core.hand import covers, meant
from supervisor.core.snapshot import Status
from supervisor.core.words import listing
from supervisor.effects.statedir import StateDir, choose
from supervisor.errors import NorayError


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    wanted = state.plan().wanted
    names = sorted(meant(args.names, wanted))
    ask = args.anew and not args.yes and sys.stdin.isatty()
    in_turn = args.anew and not args.at_once
    if ask and not confirm(blast_radius(await see(state), names, "restarts", in_turn=in_turn), yes=False):
        return 1
    progress = None if args.json else Progress(terminal=sys.stdout.isatty())
    each = [name for name, want in wanted.items() if covers(names, want)]
    turns, left = [[name] for name in each] if in_turn else [names], list[str]()
    while turns and not left:
        left = await order(state, "restart" if args.anew else "start", turns.pop(0), progress)
    left += [f"{name}: not restarted, as what was before it does not serve" for turn in turns for name in turn]
    if args.json:
        write_json({"ready": not left, "left": left})
    for line in left:
        sys.stderr.write(f"noray: {line}\n")
    if not left and not args.json:
        write(f"{listing(names, 12)} {'is' if len(names) == 1 else 'are'} ready\n")
    return 1 if left else 0


async def order(state: StateDir, verb: str, names: list[str], progress: Progress | None) -> list[str]:
    """`verb`: start or restart. What is not as ordered at the end; raises NorayError if no controller is there."""
    try:
        async with connect(state.socket) as client:
            async for item in client.request(verb, names=names, by=user()):
                ended = item.get("ended")
                if isinstance(ended, dict):
                    return [str(line) for line in ended["left"]]
                if progress:
                    _show(progress, as_status(item))
    except NoController as nobody:
        raise NorayError(f"nobody is there to {verb} anything: {nobody}", "start a controller: noray up") from None
    return []


def _show(progress: Progress, seen: Status) -> None:
    width, height = size()
    write(progress.update(seen, time.time(), width=width, height=height))
