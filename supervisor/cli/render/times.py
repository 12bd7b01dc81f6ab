"""Durations people can say, and clock times on the clock of whoever reads."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def duration(seconds: float) -> str:
    """2.1 s · 41 s · 3 min · 2 h · 5 d"""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for limit, unit, name in ((59.5, 1, "s"), (59.5 * 60, 60, "min"), (47.5 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"


def ahead(seconds: float) -> str:
    """A time to come: nobody waits for tenths."""
    if math.isfinite(seconds) and seconds < 9.95:
        return "a moment" if seconds < 0.5 else f"{seconds:.0f} s"
    return duration(seconds)


def clock(at: float, now: float) -> str:
    """12:03:04, with the date when that was not today."""
    try:
        then, today = (datetime.fromtimestamp(t, UTC).astimezone() for t in (at, now))
    except (ValueError, OverflowError, OSError):
        return "?"
    return then.strftime("%H:%M:%S" if then.date() == today.date() else "%Y-%m-%d %H:%M")


def since(at: float, now: float) -> str:
    return f"since {clock(at, now)} ({duration(now - at)})"
