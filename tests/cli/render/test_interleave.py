"""Several logs as one: by time, each in its own order, whatever comes when."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from supervisor.cli.render.interleave import FULL, Interleave
from supervisor.cli.render.lines import Line


def line(name: str, at: int, note: bool = False) -> Line:
    return Line(name, "r", at, at, f"{name}:{at}".encode(), note)


def texts(lines: list[Line]) -> list[str]:
    return [each.data.decode() for each in lines]


logs = st.dictionaries(st.sampled_from("abcde"), st.lists(st.integers(0, 50), max_size=12).map(sorted), min_size=1)


@given(logs, st.integers(0, 2**32).map(Random), st.none() | st.integers(0, 20))
def test_the_backlog_is_merged_strictly_whatever_arrives_when(
    logs: dict[str, list[int]], chance: Random, last: int | None
) -> None:
    merged = Interleave(logs, last=last)
    left = {name: [line(name, at) for at in times] for name, times in logs.items()}
    out: list[Line] = []
    while left:
        name = chance.choice(sorted(left))
        count = chance.randint(0, 3)
        merged.add(name, left[name][:count], 0.0)
        left[name] = left[name][count:]
        if not left[name]:
            merged.is_live(name)
            del left[name]
        out += merged.take(0.0)
    out += merged.take(0.0)
    every = sorted(at for times in logs.values() for at in times)
    keys = [each.key_ms for each in out]
    assert keys == (every if last is None else every[len(every) - min(last, len(every)) :])
    if last is None:
        for name, times in logs.items():
            assert [each.key_ms for each in out if each.process == name] == times


def test_nothing_goes_out_while_somebody_may_have_something_earlier() -> None:
    merged = Interleave(["a", "b"])
    merged.add("a", [line("a", 5), line("a", 9)], 0.0)
    assert merged.take(0.0) == []
    merged.add("b", [line("b", 7)], 0.0)
    assert texts(merged.take(0.0)) == ["a:5", "b:7"]
    merged.is_live("b")
    assert texts(merged.take(0.0)) == ["a:9"]


def test_what_is_live_waits_for_the_window_and_is_put_in_order_within_it() -> None:
    merged = Interleave(["a", "b"], window_s=0.3)
    merged.is_live("a")
    merged.is_live("b")
    merged.add("a", [line("a", 20)], 1.0)
    merged.add("b", [line("b", 10)], 1.1)
    assert merged.take(1.2) == []
    assert merged.waits
    assert texts(merged.take(1.45)) == ["b:10", "a:20"]
    merged.add("b", [line("b", 5)], 2.0)
    assert texts(merged.take(2.4)) == ["b:5"], "later than the window: better late than never"
    assert not merged.waits


def test_the_end_empties_the_window() -> None:
    merged = Interleave(["a"], window_s=0.3)
    merged.is_live("a")
    merged.add("a", [line("a", 1)], 1.0)
    assert texts(merged.take(math.inf)) == ["a:1"]


def test_a_silent_host_given_up_holds_nobody() -> None:
    merged = Interleave(["a", "b"], last=10, window_s=0.3)
    merged.add("a", [line("a", 1)], 0.0)
    merged.is_live("a")
    assert merged.take(9.0) == []
    merged.is_live("b")
    assert texts(merged.take(9.0)) == ["a:1"]
    merged.add("b", [line("b", 0)], 10.0)
    assert texts(merged.take(11.0)) == ["b:0"]


def test_words_of_ours_do_not_count_as_lines() -> None:
    merged = Interleave(["a"], last=2)
    merged.add("a", [line("a", 1), line("a", 2), line("a", 3, note=True), line("a", 4), line("a", 5, note=True)], 0.0)
    merged.is_live("a")
    assert texts(merged.take(0.0)) == ["a:2", "a:3", "a:4", "a:5"]


def test_a_process_ahead_of_the_others_is_held_back() -> None:
    merged = Interleave(["a", "b"])
    merged.add("a", [line("a", n) for n in range(FULL)], 0.0)
    assert merged.full("a")
    merged.add("b", [line("b", FULL)], 0.0)
    merged.take(0.0)
    assert not merged.full("a")
