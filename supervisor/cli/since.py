"""`--since`: how long ago, or when."""

from __future__ import annotations

import re
from datetime import datetime

from supervisor.errors import UsageError

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
HINT = "say 90s, 10m, 2h, 3d, or a time such as 2026-03-01T12:30 (of this machine, unless it names its zone)"


def ago_s(text: str, now: datetime) -> float:
    """Seconds before `now` (which has a zone). Raises UsageError."""
    short = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if short:
        return float(short[1]) * UNITS_S[short[2]]
    try:
        then = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"--since {text!r} is neither a time nor a duration", HINT) from None
    then = then.astimezone()
    if then > now:
        raise UsageError(f"--since {text!r} is in the future", HINT)
    return (now - then).total_seconds()
