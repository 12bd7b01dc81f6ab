"""`noray status`: the verdict first, then what is not ready."""

from __future__ import annotations

import argparse

import anyio

from supervisor.cli.common import look, see, write, write_json
from supervisor.cli.render.status import show_status
from supervisor.core.verdict import check_code
from supervisor.effects.statedir import choose


def run(args: argparse.Namespace) -> int:
    seen = anyio.run(see, choose(args.deployment))
    if args.json:
        write_json(seen)
    else:
        write(show_status(seen, look(), all=args.all))
    return check_code(seen) if args.check else 0
