"""What is wrong with a file, said so that a human can put it right.

A problem is a value: file, line, column, the path of keys that leads there, and a sentence. A file is read to its end
before anybody complains, so one `SpecError` carries everything that could be found wrong in one reading.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from supervisor.errors import FileError

Loc = tuple[str | int, ...]  # ("models", 0, "replicas"): the keys and indexes from the top of a file to a value

_LONGEST = 48  # characters of a found value that are shown


class Place(NamedTuple):
    """Where something is written, counted from 1 as editors do."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct. `place` is None when the file as a whole could not be read."""

    path: Path
    place: Place | None
    where: str  # "models[0].replicas", or "" for the file itself
    text: str

    def __str__(self) -> str:
        at = f":{self.place.line}:{self.place.column}" if self.place else ""
        where = f"{self.where}: " if self.where else ""
        return f"{self.path}{at}: {where}{self.text}"


class SpecError(FileError):
    """A file cannot be used as it stands. The message has one problem per line, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=lambda p: p.place or Place(0, 0)))
        super().__init__("\n".join(map(str, self.problems)))


def where(loc: Loc) -> str:
    """The keys of `loc` the way a human writes them: `models[0].env.HF_HOME`."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = re.fullmatch(r"[\w-]{1,64}", part, re.ASCII)
            text += ("." if text else "") + (part if plain else show(part))
    return text


def show(value: object) -> str:
    """A found value on one short printable line; containers only by what they are."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case dict() | tuple():
            return kind(value)
        case _:
            text = ascii(str(value) if isinstance(value, Path) else value)
            return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def kind(value: object) -> str:
    """What a value is, without saying which: for places that may hold a secret."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case _:
            return "a list" if value else "an empty list"


def did_you_mean(word: str, choices: Collection[str]) -> str:
    """`, did you mean 'replicas'?` or nothing, when no choice is near."""
    near = difflib.get_close_matches(word[:64], choices, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def listed(words: Collection[str], most: int = 24) -> str:
    """Words for a sentence, cut off where nobody reads on."""
    shown = sorted(words)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
