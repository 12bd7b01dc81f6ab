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
ROOM_TO_WRAP = 24  # cells; a column narrower than this is cut instead


@dataclass(frozen=True, slots=True)
class Look:
    """Where the text goes. The caller decides: width None for a pipe (nothing is cut), colour by isatty, NO_COLOR."""

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
    wrapped: bool = False,
) -> list[str]:
    """Aligned columns, the last as wide as is left, then cut or `wrapped`.

    Columns in which nothing is said go; expendable ones go, in order, where it is too narrow.
    """
    body = [list(row) for row in rows]
    columns = [n for n in range(len(body[0])) if any(row[n].text not in ("", "-") for row in body)] if body else []
    if not columns:
        return []
    shown = [[Cell(name, "dim") for name in head], *body] if head else body
    widths = {n: max(cells(row[n].text) for row in shown) for n in columns}
    for n in expendable:
        if look.width is None or _needs(columns, widths, indent) <= look.width:
            break
        columns = [c for c in columns if c != n] or columns
    kept = [[row[n] for n in columns] for row in shown]
    if wrapped and look.width is not None:
        before = len(indent) + sum(widths[n] + len(GAP) for n in columns[:-1])
        kept = [part for row in kept for part in _wrapped(row, look.width - before)]
    return [_row(row, [widths[n] for n in columns], look, indent) for row in kept]


def _wrapped(row: list[Cell], room: int) -> list[list[Cell]]:
    if room < ROOM_TO_WRAP:
        return [row]
    first, *more = wrap(row[-1].text, room)
    blank = [Cell("")] * (len(row) - 1)
    return [[*row[:-1], Cell(first, row[-1].style)], *([*blank, Cell(line, row[-1].style)] for line in more)]


def _needs(columns: Sequence[int], widths: dict[int, int], indent: str) -> int:
    *fixed, last = columns
    return len(indent) + sum(widths[n] + len(GAP) for n in fixed) + min(widths[last], ROOM_TO_WRAP)


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
