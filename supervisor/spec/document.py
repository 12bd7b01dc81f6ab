"""YAML text to plain values, each with the place it was written.

ruamel.yaml parses and composes; the last step, nodes to values, is ours: there line and column get lost.
Values are None, bool, int, finite float, str, tuple and dict with text keys: all that the models of this layer know.
YAML 1.2: `yes`, `on` and `010` are what they look like. Aliases work; merge keys and tags do not, and say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from supervisor.spec.problem import Loc, Place, Problem, SpecError, show, where

_MAX_BYTES = 1 << 20
_MAX_VALUES = 20_000  # aliases of aliases can make a small file a huge value
_MAX_DEPTH = 40

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = {_TAG + "str", _TAG + "timestamp", _TAG + "value"}  # a date or a lone `=` is text to us


@dataclass(frozen=True, slots=True)
class Document:
    """One file's values, and where each value and each key stands. `problems` are those found while reading.

    `origins`: where the values of `data` were written that stand elsewhere there, each with all that is below it.
    """

    path: Path
    data: object
    values: Mapping[Loc, Place]
    keys: Mapping[Loc, Place]
    problems: tuple[Problem, ...]
    origins: Mapping[Loc, Loc] = field(default_factory=dict)

    def written(self, loc: Loc) -> Loc:
        """Where the operator wrote what stands at `loc` of `data`."""
        for end in range(len(loc), 0, -1) if self.origins else ():
            if loc[:end] in self.origins:
                return self.origins[loc[:end]] + loc[end:]
        return loc

    def place(self, loc: Loc) -> Place:
        """Where the value at `loc` stands, or the nearest value around it."""
        while loc and loc not in self.values:
            loc = loc[:-1]
        return self.values.get(loc, Place(1, 1))

    def key_place(self, loc: Loc) -> Place:
        """Where the key that `loc` ends in stands."""
        return self.keys.get(loc) or self.place(loc)

    def problem(self, loc: Loc, text: str) -> Problem:
        """A problem with the value at `loc` of `data`."""
        loc = self.written(loc)
        return Problem(self.path, self.place(loc), where(loc), text)

    def key_problem(self, loc: Loc, text: str) -> Problem:
        """A problem with the key that `loc` of `data` ends in, of the mapping that it stands in."""
        loc = self.written(loc)
        return Problem(self.path, self.key_place(loc), where(loc[:-1]), text)


def read(path: Path) -> str:
    """The text of a file. Raises SpecError when it is missing, unreadable, too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SpecError([Problem(path, None, "", f"cannot be read: {error.strerror}")]) from None
    if len(raw) > _MAX_BYTES:
        raise SpecError([Problem(path, None, "", f"is larger than {_MAX_BYTES} bytes")])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        text = "found a byte that is not UTF-8, allowed: UTF-8 text"
        raise SpecError([Problem(path, _after(before), "", text)]) from None


def parse(text: str, path: Path) -> Document:
    """The values of YAML text; `path` is only for messages. Raises SpecError for bad syntax and for an empty file."""
    root = _compose(text, path)
    if root is None:
        raise SpecError([Problem(path, Place(1, 1), "", "the file is empty")])
    return _Reader(path).read(root)


def _compose(text: str, path: Path) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = _MAX_DEPTH
    yaml.composer.warn_double_anchors = False
    try:
        root: Node | None = yaml.compose(text)
        return root
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        raise SpecError([Problem(path, place, "", _syntax(error))]) from None
    except ReaderError as error:
        found = f"found the character {show(text[error.position])}, allowed: printable text"
        raise SpecError([Problem(path, _after(text[: error.position]), "", found)]) from None
    except (YAMLError, RecursionError):
        raise SpecError([Problem(path, Place(1, 1), "", "not YAML that can be read")]) from None


def _syntax(error: MarkedYAMLError) -> str:
    # The parser quotes words of the file ("found undefined alias 'hunter2'"), and a word may be somebody's secret:
    # of what it quotes, only single characters and its own names of tokens (<scalar>) are passed on.
    problem = str(error.problem or error.context)
    if "depth" in problem:
        return f"not YAML that can be read: nested deeper than {_MAX_DEPTH} levels"
    text = re.sub(r"'(?!<)[^' ]{3,}'", "", problem).strip().removeprefix("but ")
    if r"'\t'" in text:
        return "found a tab, allowed: spaces for indentation"
    hint = ""
    if "alias" in text or "cannot start any token" in text or "mapping values" in text:
        hint = " (text with one of * & ! @ % ` : in it needs quotes)"
    return f"not YAML: {text}{hint}"


def _after(before: str) -> Place:
    lines = before.split("\n")
    return Place(len(lines), len(lines[-1]) + 1)


def _mark(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


class _Reader:
    """Turns nodes into values, once; collects places and problems on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[Loc, Place] = {}
        self.keys: dict[Loc, Place] = {}
        self.problems: list[Problem] = []
        self.open: set[int] = set()  # nodes being read: an alias to one of them is a circle

    def read(self, root: Node) -> Document:
        data = self.value(root, ())
        return Document(self.path, data, self.values, self.keys, tuple(self.problems))

    def complain(self, node: Node, loc: Loc, text: str) -> None:
        self.problems.append(Problem(self.path, _mark(node), where(loc), text))

    def value(self, node: Node, loc: Loc) -> object:
        self.values[loc] = _mark(node)
        if len(self.values) > _MAX_VALUES:
            text = f"more than {_MAX_VALUES} values, aliases included"
            raise SpecError([Problem(self.path, _mark(node), where(loc), text)])
        if id(node) in self.open:
            self.complain(node, loc, "found an alias to the value it stands in, allowed: values that end")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                return self.mapping(node, loc)
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                return tuple(self.value(item, (*loc, i)) for i, item in enumerate(node.value))
            if isinstance(node, ScalarNode):
                return self.scalar(node, loc)
            self.complain(node, loc, "found a YAML tag, allowed: plain values")
            return None
        finally:
            self.open.discard(id(node))

    def mapping(self, node: MappingNode, loc: Loc) -> dict[str, object]:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                self.complain(key_node, loc, "merge keys (<<) are not read, allowed: the keys written out, or an alias")
                continue
            key = self.scalar(key_node, loc) if isinstance(key_node, ScalarNode) else ()
            if not isinstance(key, str):
                self.complain(key_node, loc, f"found the key {show(key)}, allowed: text as keys (numbers in quotes)")
                continue
            here = (*loc, key)
            if key in found:
                first = self.keys[here].line
                self.complain(key_node, loc, f"duplicate key {show(key)} (first on line {first}), allowed: each key once")
                continue
            self.keys[here] = _mark(key_node)
            found[key] = self.value(value_node, here)
            if value_node.tag == _TAG + "null" and not value_node.value:
                self.values[here] = self.keys[here]  # a blank value "stands" where the next token is, lines below
        return found

    def scalar(self, node: ScalarNode, loc: Loc) -> object:
        text: str = node.value
        try:
            match str(node.tag).removeprefix(_TAG):
                case "null":
                    return None
                case "bool" if text.lower() in ("true", "false"):
                    return text.lower() == "true"
                case "int":
                    return _integer(text)
                case "float":
                    return _number(text)
        except ValueError:
            found = "a number" if "env" in loc else show(text)  # env may hold secrets
            self.complain(node, loc, f"found {found}, allowed: a finite number of ordinary length")
            return None
        if node.tag not in _TEXT_TAGS:
            self.complain(node, loc, "found a YAML tag, allowed: plain values")
            return None
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            # execve and UTF-8 end here; said now it costs a line, said by a host it costs an evening.
            self.complain(node, loc, "found text with a NUL or half a surrogate pair, allowed: text that is valid UTF-8")
            return None
        return text


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    based = re.fullmatch(r"([-+]?)0([box])(\w+)", digits)
    if based:
        return int(based[1] + based[3], {"b": 2, "o": 8, "x": 16}[based[2]])
    return int(digits)


def _number(text: str) -> float:
    value = float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        raise ValueError(text)
    return value
