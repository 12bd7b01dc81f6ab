"""`noray stop NAME…`: these go down and stay down, over restarts of the controller and changed files, until `noray start`.

`noray drain HOST…` is the same of all that is on a host. Exit 0 when every tree of them is proven gone; else 1, with the rest.
"""

from __future__ import annotations

import argparse
import sys

import anyio

from supervisor.cli.common import confirm, see
from supervisor.cli.down import Ending, carry_out
from supervisor.cli.render.blast import blast_radius
from supervisor.cli.render.progress import Progress
from supervisor.core.hand import meant
from supervisor.core.words import listing
from supervisor.effects.statedir import choose


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    state = choose(args.deployment)
    names = sorted(meant(args.names, state.plan().wanted))
    if not args.yes and sys.stdin.isatty() and not confirm(blast_radius(await see(state), names, "stops"), yes=False):
        return 1
    end = Ending(state, None if args.json else Progress(terminal=sys.stdout.isatty()), names=names)
    verb = "is" if len(names) == 1 else "are"
    return await carry_out(end, args.json, f"{listing(names, 12)} {verb} stopped, until: noray start {' '.join(args.names)}")
