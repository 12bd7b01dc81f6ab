"""From pieces to lines, whatever a log holds; and to a terminal nothing that it would obey."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.cli.render import lines as module
from supervisor.cli.render.lines import COLOURS, Cutter, Line, Printed, as_json, visible
from supervisor.cli.render.story import Story

NASTY = (
    b"\x1b]0;title\x07", b"\x1b[2J\x1b[H", b"\x1b[31mred", b"\x1b[38;5;1;4mx", b"\x9b31m", b"\xc2\x9b2J", b"\x1bc", b"a\rb",
    b"\x1b[6n", b"\xff\xfe", b"\x1bP+q544e\x1b\\", b"\x00", b"\x7f", "\u202egnp.exe".encode(), b"\x1b[1;1Hx", b"\x0e", b"plain",
)  # fmt: skip
ALLOWED = re.compile(r"\x1b\[[0-9;:]*m")


def pieces(data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [(start, data[start:end]) for start, end in itertools.pairwise(edges)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 300)))
def test_however_it_is_cut_the_lines_are_the_same(data: bytes, cuts: list[int]) -> None:
    cutter = Cutter("w-0")
    found = [line for offset, piece in pieces(data, cuts) for line in cutter.take(offset, piece, [])] + cutter.flush()
    expected = data.split(b"\n")
    assert [line.data for line in found] == (expected if expected[-1] else expected[:-1])


@given(st.binary(max_size=200), st.lists(st.integers(0, 300)), st.lists(st.integers(0, 200), min_size=1))
def test_a_line_is_as_old_as_its_first_byte(data: bytes, cuts: list[int], marks: list[int]) -> None:
    times = [(offset, 1000 + offset) for offset in sorted({0, *marks})]
    cutter = Cutter("w-0", ahead_ms=400)
    found = []
    for offset, piece in pieces(data, cuts):
        known = max(o for o, _ in times if o <= offset)
        inside = [(max(o, offset), at) for o, at in times if known <= o < offset + len(piece)]
        found += cutter.take(offset, piece, inside)
    found += cutter.flush()
    start = 0
    for line in found:
        assert line.at_ms == max(at for o, at in times if o <= start) - 400
        start += len(line.data) + 1


def test_five_megabytes_without_a_newline_are_one_line() -> None:
    cutter, size = Cutter("w-0"), 5_000_000
    for offset in range(0, size, 65536):
        assert cutter.take(offset, b"x" * min(65536, size - offset), [(offset, 7)]) == []
    [line] = cutter.flush()
    assert len(line.data) == size


def test_a_line_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 10)
    cutter = Cutter("w-0")
    assert [line.data for line in cutter.take(0, b"a" * 25 + b"\nb\n", [])] == [b"a" * 10, b"a" * 10, b"a" * 5, b"b"]
    assert [line.data for line in cutter.take(28, b"a" * 10 + b"\nb\n", [])] == [b"a" * 10, b"b"]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("data", NASTY)
def test_no_log_commands_a_terminal(data: bytes, colour: bool) -> None:
    said = Printed(terminal=True, colour=colour).show([Line("w-0", "r", 1, 1, data)])
    text = said.decode().removesuffix("\n")
    bare = ALLOWED.sub("", text)
    assert bare.isprintable()
    assert colour or bare == text
    if ALLOWED.search(text):
        assert text.endswith("\x1b[0m"), "a colour ends with its line"


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_at_all_command_a_terminal(data: bytes, colour: bool) -> None:
    bare = ALLOWED.sub("", visible(data.replace(b"\n", b""), colour))
    assert all(c.isprintable() or c in "\t\u200c\u200d" for c in bare)


def test_what_is_hidden_elsewhere_is_shown() -> None:
    assert visible(b"10%\r20%\r", colour=False) == "10%\u240d20%"
    assert visible(b"a\tb", colour=False) == "a\tb"
    assert visible("模型 👩\u200d💻".encode(), colour=False) == "模型 👩\u200d💻"


def test_a_pipe_gets_the_bytes() -> None:
    for data in NASTY:
        assert Printed().show([Line("w-0", "r", 1, 1, data)]) == data + b"\n"
        assert Printed(width=5).show([Line("w-0", "r", 1, 1, data)]) == "w-0   │ ".encode() + data + b"\n"


def test_each_process_has_its_colour_whoever_else_is_shown() -> None:
    order = ["etcd-0", "qwen-0", "qwen-1"]
    one = Printed(terminal=True, colour=True, width=6, order=order)
    said = one.show([Line(name, "r", 1, 1, b"x") for name in ("qwen-1", "qwen-0", "qwen-1")]).decode().splitlines()
    assert said == [
        f"\x1b[{COLOURS[2]}mqwen-1 │ \x1b[0mx", f"\x1b[{COLOURS[1]}mqwen-0 │ \x1b[0mx", f"\x1b[{COLOURS[2]}mqwen-1 │ \x1b[0mx",
    ]  # fmt: skip
    assert len(set(COLOURS)) == len(COLOURS)


def test_json_is_one_object_a_line_and_harmless() -> None:
    lines = [Line("w-0", "r1", 1500, 1500, data) for data in NASTY] + [Line("w-0", "r1", None, 0, b"")]
    lines.append(Line("w-0", "r1", None, 0, b"a word of ours", note=True))
    said = as_json(lines)
    assert said.isascii()
    objects = [json.loads(each) for each in said.splitlines()]
    assert len(objects) == len(lines) - 1
    assert objects[0] == {"process": "w-0", "run": "r1", "at": 1.5, "text": NASTY[0].decode()}
    assert objects[-1]["at"] is None


def test_the_story_of_a_crash() -> None:
    story = Story("w-0", chosen=False)
    said = [
        {"begin": "r1", "started": 1000, "timed": True},
        {"run": "r1", "offset": 0, "data": "one\ntwo", "times": [[0, 2000]]},
        {"gap": 99},
        {"ended": "r1", "exit": {"code": None, "signal": 9, "at": 5, "asked": False}},
        {"begin": "r2", "started": 3000, "timed": True},
        {"run": "r2", "offset": 0, "data": "th", "times": [[0, 4000]]},
        {"run": "r2", "offset": 2, "data": "ree\n", "times": [[2, 4100]]},
        {"ended": "r2", "exit": {"code": 3, "signal": None, "at": 5, "asked": False}},
    ]
    lines = [line for message in said for line in story.heard(message, 0.0)] + story.end()
    assert [(line.data.decode(), line.run, line.at_ms, line.note) for line in lines] == [
        ("one", "r1", 2000, False),
        ("two", "r1", 2000, False),
        ("99 bytes were rotated away here", "r1", None, True),
        ("run r1: killed by SIGKILL; now run r2", "r2", None, True),
        ("three", "r2", 4000, False),
        ("run r2: exited 3", "r2", None, True),
    ]
