"""From pieces of a log to lines, and from lines to what a terminal, a pipe or a program is shown. Pure.

A log is bytes: a line may come in many pieces, be megabytes long, lack its newline, be no UTF-8, and hold anything that a
terminal obeys. To a pipe lines go as they are. To a terminal they go as text: colours stay (they end with the line), every
other control character is made visible, so that no log can move the cursor, set a title, or answer for the operator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST = 16 << 20  # bytes; a line longer than this is cut, or a log without newlines would be kept in memory whole
COLOURS = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")
BAR = " │ "
SGR = re.compile(r"\x1b\[[0-9;:]*m")
JOINERS = "\u200c\u200d"  # emoji and scripts need them
TIMELESS = 0


@dataclass(frozen=True, slots=True)
class Line:
    """`at_ms`: when its first byte was written, on the reader's clock; None where no times were kept.

    `key_ms`: what it is sorted by: never None. A note is not a line of the log but a word of ours at its place in it.
    """

    process: str
    run: str
    at_ms: int | None
    key_ms: int
    data: bytes
    note: bool = False


class Cutter:
    """Cuts one process's pieces into lines. `ahead_ms`: its host's clock minus ours."""

    def __init__(self, process: str, ahead_ms: int = 0) -> None:
        self._process, self.ahead_ms = process, ahead_ms
        self._run = ""
        self._rest = bytearray()
        self._at: int | None = None  # of the line that `_rest` begins
        self._key = TIMELESS

    def begin(self, run: str, started_ms: int | None) -> list[Line]:
        """A run begins; returns what the one before had left without a newline."""
        rest = self.flush()
        self._run = run
        if started_ms is not None:
            self._key = started_ms - self.ahead_ms
        return rest

    def take(self, offset: int, data: bytes, times: Sequence[Sequence[int]]) -> list[Line]:
        """`times`: (offset, ms) ascending, on its host's clock; each counts from its offset on."""
        lines, done, mark = [], 0, 0
        while done < len(data):
            if not self._rest:
                while mark < len(times) and times[mark][0] <= offset + done:
                    mark += 1
                self._at = times[mark - 1][1] - self.ahead_ms if mark else None
                self._key = self._at if self._at is not None else self._key
            newline = data.find(b"\n", done)
            room = LONGEST - len(self._rest)
            end = min(newline if newline >= 0 else len(data), done + room)
            self._rest += data[done:end]
            done = end
            if newline == end:
                done += 1
                lines.append(self._line())
            elif len(self._rest) >= LONGEST:
                lines.append(self._line())
        return lines

    def note(self, words: str) -> list[Line]:
        """A word of ours, after what came before it."""
        return [*self.flush(), Line(self._process, self._run, None, self._key, words.encode(), note=True)]

    @property
    def unfinished(self) -> bool:
        """Whether something waits for its newline."""
        return bool(self._rest)

    def flush(self) -> list[Line]:
        """What has no newline yet, as a line."""
        return [self._line()] if self._rest else []

    def _line(self) -> Line:
        line = Line(self._process, self._run, self._at, self._key, bytes(self._rest))
        self._rest.clear()
        return line


@dataclass(frozen=True, slots=True)
class Printed:
    """How lines are shown. `width` of the prefix: 0 for no prefix at all. `order`: of all processes, for their colours."""

    terminal: bool = False
    colour: bool = False
    width: int = 0
    order: Sequence[str] = ()

    def show(self, lines: Iterable[Line]) -> bytes:
        return b"".join(map(self._shown, lines))

    def _shown(self, line: Line) -> bytes:
        prefix = self._prefix(line.process) if self.width else ""
        if line.note:
            words = f"--- {visible(line.data, colour=False)}"
            return f"{prefix}{self._paint(words, '2')}\n".encode()
        data = visible(line.data, self.colour).encode() if self.terminal else line.data
        return prefix.encode() + data + b"\n"

    def _prefix(self, process: str) -> str:
        number = self.order.index(process) if process in self.order else 0
        return self._paint(process.ljust(self.width) + BAR, COLOURS[number % len(COLOURS)])

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text


def as_json(lines: Iterable[Line]) -> bytes:
    """One object a line: process, run, at (seconds since the epoch, or null), text (UTF-8, what is none as U+FFFD)."""
    return b"".join(
        json.dumps(
            {
                "process": line.process,
                "run": line.run,
                "at": None if line.at_ms is None else line.at_ms / 1000,
                "text": line.data.decode("utf-8", "replace"),
            }
        ).encode()
        + b"\n"
        for line in lines
        if not line.note
    )


def visible(data: bytes, colour: bool) -> str:
    """Text that a terminal may be given. A carriage return before the newline goes; elsewhere it is shown, not obeyed."""
    text = data.decode("utf-8", "replace").removesuffix("\r")
    if text.isprintable():
        return text
    parts, painted, done = [], False, 0
    for found in SGR.finditer(text):
        parts.append(_harmless(text[done : found.start()]))
        if colour:
            parts.append(found[0])
            painted = True
        done = found.end()
    parts.append(_harmless(text[done:]))
    return "".join(parts) + ("\x1b[0m" if painted else "")


def _harmless(text: str) -> str:
    return text if text.isprintable() else "".join(map(_picture, text))


def _picture(char: str) -> str:
    if char.isprintable() or char == "\t" or char in JOINERS:
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # ␛ for escape, ␍ for carriage return
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"
