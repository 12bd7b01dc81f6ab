"""Which numbers a host gives: in its range, in a row, claimed by nobody, none that its kernel lends to outgoing connections."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.hostside import claims, ports

LOW, HIGH = 100, 111
NUMBERS = range(LOW, HIGH + 1)
HERE, THERE = "127.0.0.1", "0.0.0.0"


class Claim:
    """One number of `taken`, until it is closed."""

    def __init__(self, taken: set[int], number: int) -> None:
        self.taken, self.number = taken, number
        taken.add(number)

    def close(self) -> None:
        self.taken.remove(self.number)


@contextlib.contextmanager
def world(claimed: set[int], used: set[tuple[str, int]], lent: set[int]) -> Iterator[set[int]]:
    """In place of the kernel: who claims, what is in use, what is lent. Gives the numbers that are claimed."""
    taken = set(claimed)

    def take(name: str) -> Claim | None:
        number = int(name.removeprefix("port-"))
        return None if number in taken else Claim(taken, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "take", take)
        patch.setattr(ports, "free", lambda bind, number: (bind, number) not in used)
        patch.setattr(ports, "ephemeral", lambda: lent)
        yield taken


def ways(wanted: list[tuple[str, int]], usable: dict[str, set[int]]) -> bool:
    """Whether there is any way at all, by trying every one."""
    for firsts in itertools.product(NUMBERS, repeat=len(wanted)):
        blocks = [set(range(first, first + count)) for first, (_, count) in zip(firsts, wanted, strict=True)]
        fits = all(block <= usable[bind] for block, (bind, _) in zip(blocks, wanted, strict=True))
        if fits and len(set().union(*blocks)) == sum(map(len, blocks)):
            return True
    return False


SOME = st.sets(st.sampled_from(NUMBERS), max_size=9)
WANTED = st.lists(st.tuples(st.sampled_from([HERE, THERE]), st.integers(1, 4)), min_size=1, max_size=3)


@settings(deadline=None)  # every way is tried, on a machine that may be busy
@given(WANTED, SOME, SOME, SOME, SOME)
def test_blocks_are_found_whenever_there_is_a_way_and_touch_nobody(
    wanted: list[tuple[str, int]], claimed: set[int], lent: set[int], used_here: set[int], used_there: set[int]
) -> None:
    used = {(HERE, n) for n in used_here} | {(THERE, n) for n in used_there}
    usable = {bind: {n for n in NUMBERS if n not in claimed | lent and (bind, n) not in used} for bind in (HERE, THERE)}
    said: dict[str, list[Any]] = {f"p{n}": [0, bind, count] for n, (bind, count) in enumerate(wanted)}
    possible = ways(wanted, usable)
    with world(claimed, used, lent) as taken:
        try:
            chosen, held = ports.choose(said, LOW, HIGH)
        except ports.Taken:
            assert not possible
            assert taken == claimed  # nothing is held
            return
        blocks = [set(range(chosen[name], chosen[name] + count)) for name, (_, _, count) in said.items()]
        assert all(block <= usable[bind] for block, (bind, _) in zip(blocks, wanted, strict=True))
        assert len(set().union(*blocks)) == sum(map(len, blocks))
        assert taken == claimed.union(*blocks)
        assert sorted(ports.numbers(said, chosen)) == sorted(set().union(*blocks))
        for claim in held:
            claim.close()
        assert taken == claimed


def test_a_room_that_fits_exactly_is_filled() -> None:
    """Blocks placed at random leave holes: whoever gives up there finds no room where there is."""
    said: dict[str, list[Any]] = {name: [0, HERE, 4] for name in "abc"}
    for _ in range(20):
        with world(set(), set(), set()) as taken:
            ports.choose(said, LOW, HIGH)
            assert taken == set(NUMBERS)


def test_an_older_controller_names_no_count() -> None:
    assert ports.numbers({"a": [0, HERE], "b": [0, HERE, 2]}, {"a": 1, "b": 5}) == [1, 5, 6]
    assert ports.numbers({}, {"a": 1}) == [1]  # nor does a record whose spec is lost


@pytest.mark.parametrize(
    ("lent", "hint"),
    [
        (range(32768, 61000), "set `ports` in hosts.yaml, e.g. 18000-19999"),
        (range(15000, 61000), "set `ports` in hosts.yaml, e.g. 10000-11999"),
        (range(1024, 65536), "reserve some: sysctl net.ipv4.ip_local_reserved_ports=18000-19999"),
    ],
)
def test_a_range_the_kernel_lends_is_refused_by_name(lent: range, hint: str) -> None:
    with world(set(), set(), set(lent)), pytest.raises(ports.Taken) as refused:
        ports.choose({"a": [0, HERE]}, 40000, 40999)
    words = f"ports 40000-40999 lie inside this host's ephemeral range {lent[0]}-{lent[-1]}; {hint}"
    assert str(refused.value) == words


def test_what_a_host_has_reserved_is_lent_to_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "range").write_text("1000\t1009\n")
    (tmp_path / "reserved").write_text("1001,1004-1008\n")
    monkeypatch.setattr(ports, "RANGE", str(tmp_path / "range"))
    monkeypatch.setattr(ports, "RESERVED", str(tmp_path / "reserved"))
    assert ports.ephemeral() == {1000, 1002, 1003, 1009}
    (tmp_path / "reserved").write_text("\n")
    assert ports.ephemeral() == set(range(1000, 1010))
