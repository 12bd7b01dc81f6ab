"""`noray why`: what is wrong now, the earliest cause first, and the next command to type."""

from __future__ import annotations

import argparse

import anyio

from supervisor.cli.common import look, see, write, write_json
from supervisor.cli.render.troubles import troubles
from supervisor.cli.render.why import show_why
from supervisor.effects.statedir import choose


def run(args: argparse.Namespace) -> int:
    seen = anyio.run(see, choose(args.deployment))
    if args.json:
        found = [
            {"says": t.says, "names": sorted(t.names), "evidence": list(t.evidence), "log": list(t.tail), "next": list(t.next)}
            for t in troubles(seen)
        ]
        write_json({"verdict": seen["verdict"], "troubles": found})
    else:
        write(show_why(seen, look(), args.name))
    return 0
