"""When which byte was written: bounded whatever is written, early by no more than the gap, and only ever lost as times."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from supervisor.hostside import times

START_MS = 1_700_000_000_000
SILENCE_MS = 10 * 3600_000


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = START_MS
        monkeypatch.setattr(times.time, "time", lambda: self.ms / 1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def worst_ms(folder: Path, moves: list[tuple[int, int]]) -> int:
    """By how much the time of a move's first byte is wrong, at most; it is never late."""
    reader = times.Reader(str(folder))
    errors = []
    for offset, at in moves:
        [(_, said)] = reader.within(offset, offset + 1)
        assert said <= at
        errors.append(at - said)
    return max(errors)


def test_moves_that_are_far_apart_have_their_own_times(tmp_path: Path, clock: Clock) -> None:
    writer = times.Writer(str(tmp_path / f"{0:016d}"))
    moves = []
    for n in range(100):
        writer.mark(n * 10)
        moves.append((n * 10, clock.ms))
        clock.ms += 20 + n
    assert worst_ms(tmp_path, moves) == 0


def test_an_index_is_bounded_and_a_line_after_a_silence_keeps_its_time(tmp_path: Path, clock: Clock) -> None:
    chance = random.Random(3)
    path = tmp_path / f"{0:016d}"
    writer = times.Writer(str(path))
    moves = []
    for n in range(60_000):
        writer.mark(n)
        if n % 97 == 0:
            moves.append((n, clock.ms))
        clock.ms += chance.choice((5, 20, 21, 40))
        if n == 30_000:
            clock.ms += SILENCE_MS
            moves.append((n + 1, clock.ms))
        assert n % 1000 or path.stat().st_size <= times.MOST * times.RECORD.size
    assert 0 < worst_ms(tmp_path, moves) < 1000, "by less than a second, and not by ten hours"


def test_the_next_pump_goes_on_in_the_same_index(tmp_path: Path, clock: Clock) -> None:
    path = str(tmp_path / f"{0:016d}")
    for n in range(5):
        writer = times.Writer(path)
        writer.mark(n)
        writer.close()
    assert [offset for offset, _ in times.read(path)] == list(range(5))


def test_half_a_record_is_no_record_and_is_written_over(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / f"{0:016d}"
    times.Writer(str(path)).mark(0)
    with path.open("ab") as file:
        file.write(b"\xff" * 7)
    assert len(times.read(str(path))) == 1
    clock.ms += 50
    times.Writer(str(path)).mark(77)
    assert times.read(str(path)) == [(0, START_MS), (77, START_MS + 50)]


def test_without_an_index_nothing_is_known_and_nothing_breaks(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    times.Writer(str(tmp_path / "file" / f"{0:016d}")).mark(5)  # cannot be
    reader = times.Reader(str(tmp_path / "none"))
    assert (reader.within(0, 100), reader.since(0), reader.known) == ([], None, False)


def test_a_reader_follows_a_writer_through_segments_and_thinning(tmp_path: Path, clock: Clock) -> None:
    reader, offset = times.Reader(str(tmp_path)), 0
    for first in (0, 20_000):
        writer = times.Writer(str(tmp_path / f"{first:016d}"))
        for _ in range(20_000):
            writer.mark(offset)
            if offset % 61 == 0:
                assert reader.within(offset, offset + 1)[0][1] == clock.ms or offset > times.MOST // 2
            offset += 1
            clock.ms += 20
    assert reader.within(30_000, 40_000)[0][0] == 30_000
    found = [at for _, at in reader.within(20_000, 40_000)]
    assert found == sorted(found)


def test_since_finds_the_first_byte_written_then(tmp_path: Path, clock: Clock) -> None:
    for first in range(3):
        writer = times.Writer(str(tmp_path / f"{first * 1000:016d}"))
        for n in range(10):
            writer.mark(first * 1000 + n * 100)
            clock.ms += 1000
    reader = times.Reader(str(tmp_path))
    assert reader.since(START_MS - 5000) == 0
    for n in range(30):
        assert reader.since(START_MS + n * 1000) == n * 100
        assert reader.since(START_MS + n * 1000 - 500) == n * 100
    assert reader.since(clock.ms) == times.END, "nothing since"
    os.unlink(tmp_path / f"{0:016d}")
    assert reader.since(START_MS) == 1000, "what is left"
