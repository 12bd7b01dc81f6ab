"""`noray cordon NAME…` and `noray uncordon NAME…`: done when none of these is routed to, or all are again.

Nothing is stopped: what a worker is answering goes on, and its model stays loaded. Ctrl-C only ends the looking on.
"""

from __future__ import annotations

import argparse
import sys

import anyio

from supervisor.cli.common import write, write_json
from supervisor.cli.render.progress import Progress
from supervisor.cli.start import order
from supervisor.core.words import listing
from supervisor.effects.statedir import choose


def run(args: argparse.Namespace) -> int:
    return anyio.run(_run, args)


async def _run(args: argparse.Namespace) -> int:
    names = list(dict.fromkeys(args.names))
    progress = None if args.json else Progress(terminal=sys.stdout.isatty())
    left = await order(choose(args.deployment), "cordon" if args.on else "uncordon", names, progress)
    if args.json:
        write_json({"done": not left, "left": left})
    for line in left:
        sys.stderr.write(f"noray: {line}\n")
    if not left and not args.json:
        is_ = "is" if len(names) == 1 else "are"
        until = f" out of the routing, until: noray uncordon {' '.join(names)}" if args.on else " in the routing again"
        write(f"{listing(names, 12)} {is_}{until}\n")
    return 1 if left else 0
