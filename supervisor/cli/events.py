"""`noray events`: what happened, from the controller's own record: with or without one, and of runs long pruned.

Nothing is asked of any host. What befell a run while no controller lived is there once the next one has heard of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from supervisor.cli.common import look, write
from supervisor.cli.render.events import show_events, who
from supervisor.cli.since import ago_s
from supervisor.effects.statedir import choose
from supervisor.effects.store import Row
from supervisor.errors import UsageError

LINES = 50
LOOK_S = 0.3  # following
WIDEST = 32  # of the column that says who


def run(args: argparse.Namespace) -> int:
    if args.lines is not None and args.lines < 0:
        raise UsageError(f"-n {args.lines} is less than no lines")
    since_ms = None if args.since is None else (time.time() - ago_s(args.since, datetime.now(UTC))) * 1000
    last = args.lines if args.lines is not None else LINES if since_ms is None else None
    with choose(args.deployment).reading() as store:
        rows = store.events()
        newest = rows[-1].id if rows else 0
        told = sorted(_meant(rows, args.names), key=lambda row: row.at_ms)  # hosts are heard late, not only in order
        if since_ms is not None:
            told = [row for row in told if row.at_ms >= since_ms]
        told = told[max(len(told) - last, 0) :] if last is not None else told
        width = min(max((len(who(row)) for row in told), default=WIDEST), WIDEST)
        _show(told, args.json, width)
        try:
            while args.follow:
                time.sleep(LOOK_S)
                rows = store.events(newest)
                newest = rows[-1].id if rows else newest
                _show([row for row in rows if _is(row, args.names)], args.json, width)
        except KeyboardInterrupt:
            pass  # touches nothing
    return 0


def _meant(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Raises UsageError for a name of which nothing is on record."""
    for name in names:
        if not any(_is(row, [name]) for row in rows):
            known = sorted({row.process or row.host for row in rows} - {""})
            raise UsageError(f"nothing on record is called {name}", f"there are: {', '.join(known) or 'no events yet'}")
    return [row for row in rows if _is(row, names)]


def _is(row: Row, names: Sequence[str]) -> bool:
    """Of a process, of its service, of a host, or of a run."""
    return not names or bool({row.process, row.process.rpartition("-")[0], row.host, row.run}.intersection(names) - {""})


def _show(rows: Sequence[Row], as_json: bool, width: int) -> None:
    if as_json:
        write("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))
    else:
        write(show_events(rows, look(), time.time(), width))
