"""Columns, wrapping and colour, counted in the cells a terminal really uses.

Text is fitted first and painted last, so a colour never costs a column, and none is ever needed to understand a line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PAINT = {"good": "32", "bad": "1;31", "warn": "33", "dim": "2", "bold": "1", "": ""}
WORDS = {
    "good": ("ready", "READY"),
    "bad": ("failed", "stuck", "DEGRADED"),
    "warn": ("starting", "backoff", "unknown", "draining", "stopping", "STARTING", "STOPPING", "UNKNOWN"),
}
GAP = "  "


@dataclass(frozen=True, slots=True)
class Look:
    """Where the text goes, as the caller found: width None for a pipe (nothing is cut), colour by isatty and NO_COLOR."""

    width: int | None = None
    colour: bool = False

    def paint(self, text: str, style: str) -> str:
        code = PAINT.get(style, "")
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code and text else text


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    style: str = ""


def style_of(word: str) -> str:
    return next((style for style, words in WORDS.items() if word in words), "")


def cells(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, width: int | None) -> str:
    """Cut to the width, the last cell saying so."""
    if width is None or cells(text) <= width:
        return text
    return _head(text, max(width - 1, 0)) + "…" if width > 0 else ""


def _head(text: str, width: int) -> str:
    used = 0
    for at, char in enumerate(text):
        used += _cells(char)
        if used > width:
            return text[:at]
    return text


def pad(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def wrap(text: str, width: int | None, first: str = "", rest: str = "") -> list[str]:
    """Lines of whole words, the first line begun by `first`, the others by `rest`; a word too long is cut in pieces."""
    if width is None:
        return [first + text]
    width = max(width, 1)
    if width < cells(rest) + 12:  # no room for an indent
        first, rest = first if cells(first) < width else "", ""
    lines: list[str] = []
    line, empty = first, True
    for word in text.split(" "):
        if not empty and cells(line) + 1 + cells(word) > width:
            lines.append(line)
            line, empty = rest, True
        while cells(line) + (not empty) + cells(word) > width:
            piece = _head(word, width - cells(line)) or (word[:1] if not line else "")
            lines.append(line + piece)
            word = word[len(piece) :]
            line, empty = rest, True
        line, empty = line + ("" if empty else " ") + word, False
    return [fit(each.rstrip(), width) for each in [*lines, line]]


def table(
    rows: Iterable[Sequence[Cell]],
    look: Look,
    *,
    head: Sequence[str] = (),
    indent: str = "",
    expendable: Sequence[int] = (),
) -> list[str]:
    """Aligned columns; the last takes what is left. Empty ones go; when it is too narrow, expendable ones go, in order."""
    body = [list(row) for row in rows]
    if not body:
        return []
    columns = [n for n in range(len(body[0])) if any(row[n].text not in ("", "-") for row in body)]
    shown = [[Cell(name, "dim") for name in head], *body] if head else body
    widths = {n: max(cells(row[n].text) for row in shown) for n in columns}
    for n in expendable:
        if look.width is None or _needs(columns, widths, indent) <= look.width:
            break
        columns = [c for c in columns if c != n]
    return [_row([row[n] for n in columns], [widths[n] for n in columns], look, indent) for row in shown]


def _needs(columns: Sequence[int], widths: dict[int, int], indent: str) -> int:
    *fixed, last = columns
    return len(indent) + sum(widths[n] + len(GAP) for n in fixed) + min(widths[last], 24)


def _row(row: Sequence[Cell], widths: Sequence[int], look: Look, indent: str) -> str:
    line, left = indent, None if look.width is None else look.width - len(indent)
    if left is not None and left <= 0:
        return fit(indent, look.width)
    last = max((n for n, cell in enumerate(row) if cell.text), default=-1)
    for n, cell in enumerate(row[: last + 1]):
        text = fit(cell.text, left)
        blanks = "" if n == last else " " * (widths[n] - cells(text)) + GAP
        if left is not None:
            blanks = blanks[: max(left - cells(text), 0)]
            left -= cells(text) + len(blanks)
        line += look.paint(text, cell.style) + blanks
        if left is not None and left <= 0:
            break
    return line.rstrip()
