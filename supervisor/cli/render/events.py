"""`noray events`: one line for each thing that happened, oldest first."""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.cli.render.text import Cell, Look, fit, pad
from supervisor.cli.render.times import clock
from supervisor.core.words import plain
from supervisor.effects.store import Row

ALARMING = {"exit": "bad", "not fenced": "bad", "ordered": "bold"}
WHAT = 10  # cells: the longest of them


def who(row: Row) -> str:
    """qwen-0@1m8bm…, a host, or nobody in particular."""
    if not row.process:
        return row.host
    return f"{row.process}@{row.run}" if row.run else row.process


def show_events(rows: Iterable[Row], look: Look, now: float, width: int) -> str:
    """`width`: of the column that says who, so that what follows later stands below."""
    lines = []
    for row in rows:
        head = [
            Cell(clock(row.at_ms / 1000, now), "dim"),
            Cell(pad(fit(who(row), width), width)),
            Cell(pad(row.what, WHAT), ALARMING.get(row.what, "")),
        ]
        room = None if look.width is None else look.width - sum(len(cell.text) + 2 for cell in head)
        text = plain(row.text)
        lines.append("  ".join([*(look.paint(cell.text, cell.style) for cell in head), fit(text, room)]).rstrip())
    return "".join(f"{line}\n" for line in lines)
