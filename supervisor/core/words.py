"""Small grammar for sentences that operators read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def plain(text: str) -> str:
    """On one line, without anything a terminal would obey: reasons and log lines come from outside."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def clip(text: str, limit: int) -> str:
    """Shortened at a word, with an ellipsis."""
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    return head[: head.rfind(" ") if " " in head[limit // 2 :] else limit - 1].rstrip(" ,;:") + "…"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def listing(names: Sequence[str], most: int = 4) -> str:
    """a · a and b · a, b and c · a, b and 7 more."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """A hint for who mistyped one of the known names: the nearest, if any is near."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"did you mean {plain(close[0])}?" if close else otherwise


def size(count: int) -> str:
    """Of bytes: 410 MB · 12.3 GB · 410 GB."""
    if count < 10**9:
        return f"{count / 10**6:.0f} MB"
    return f"{count / 10**9:.1f} GB" if count < 10**11 else f"{count / 10**9:.0f} GB"
