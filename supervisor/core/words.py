"""Small grammar for sentences that operators read."""

from __future__ import annotations

from collections.abc import Sequence


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


def size(count: int) -> str:
    """Of bytes: 410 MB · 12.3 GB · 410 GB."""
    if count < 10**9:
        return f"{count / 10**6:.0f} MB"
    return f"{count / 10**9:.1f} GB" if count < 10**11 else f"{count / 10**9:.0f} GB"
