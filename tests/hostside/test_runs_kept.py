"""Which runs of a process stay on disk, whatever rotates: the newest, and where the last series of failures began."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from supervisor.hostside import pump, rundir
from supervisor.hostside.rundir import Run, first_failure, prune
from tests.hostside.driver import Host, sabotaged

HOUR_MS = 3600_000


class Runs:
    """Records of runs of one process, made by hand. Each begins when the one before had ended."""

    def __init__(self, base: Path) -> None:
        self.base, self.ms, self.count = base, 0, 0

    def add(
        self, *, lived_ms: int = 500, asked: bool = False, ended: bool = True, born: bool = True, hash_: str = "h1",
        cause: str = "",
    ) -> str:  # fmt: skip
        self.count += 1
        run = Run(str(self.base), "d", "p", f"r{self.count:03d}")
        folder = Path(run.path)
        (folder / "log").mkdir(parents=True)
        (folder / "times").mkdir()
        for first in range(4):
            (folder / "log" / f"{first * 10:016d}").write_bytes(b"x" * 10)
            os.utime(folder / "log" / f"{first * 10:016d}", (0, (self.ms + lived_ms) / 1000))
            (folder / "times" / f"{first * 10:016d}").write_bytes(b"t" * 16)
        records = {"spec.json": {"about": {"hash": hash_}}}
        if born:
            records["run.json"] = {"at": self.ms}
        self.ms += lived_ms
        if ended:
            records |= {"exit.json": {"asked": asked, "at": self.ms, "code": 1, "cause": cause}, "gone.json": {"at": self.ms}}
        for name, record in records.items():
            (folder / name).write_text(json.dumps(record))
        return run.run

    @property
    def names(self) -> list[str]:
        return rundir.subdirectories(str(self.base / "runs" / "d" / "p"))

    @property
    def first(self) -> str | None:
        found = first_failure([Run(str(self.base), "d", "p", name) for name in self.names])
        return found.run if found else None

    def prune(self) -> list[str]:
        return prune(str(self.base), "d", "p")


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_crash_loop_keeps_its_first_failure_and_the_newest(runs: Runs) -> None:
    first = runs.add()
    for _ in range(50):
        before = runs.names
        forgotten = runs.prune()
        assert sorted([*runs.names, *forgotten]) == before
        assert len(runs.names) <= rundir.RUNS_KEPT + 1
        newest = runs.add()
        assert runs.first == first
    assert runs.names == [first, *(f"r{n:03d}" for n in range(47, 52))]
    assert runs.names[-1] == newest


def test_the_run_that_had_worked_begins_the_series(runs: Runs) -> None:
    for _ in range(3):
        runs.add()
    worked = runs.add(lived_ms=rundir.WORKED_MS)
    for _ in range(9):
        runs.add()
        runs.prune()
    assert runs.first == worked
    assert runs.names[0] == worked, "the series before it is old news"


def test_a_stop_by_hand_ends_a_series(runs: Runs) -> None:
    for _ in range(3):
        runs.add()
    runs.add(asked=True)
    first = runs.add()
    runs.add()
    assert runs.first == first


def test_another_definition_begins_another_series(runs: Runs) -> None:
    for _ in range(3):
        runs.add()
    first = runs.add(hash_="h2")
    runs.add(hash_="h2")
    assert runs.first == first


def test_a_run_that_lives_or_was_stopped_does_not_hide_the_last_series(runs: Runs) -> None:
    first = runs.add()
    runs.add()
    for _ in range(9):
        runs.add(asked=True)
        runs.prune()
    runs.add(ended=False)
    assert runs.first == first
    assert runs.names[0] == first


@pytest.mark.parametrize("cause", rundir.WITH_HOST)
def test_what_ended_with_its_host_is_no_failure_and_loses_no_log(runs: Runs, cause: str) -> None:
    runs.add(cause=cause)
    assert runs.first is None
    first = runs.add()
    for _ in range(9):
        runs.add(cause=cause)
        runs.add()
        runs.prune()
    assert runs.first == first
    assert len(runs.names) <= rundir.RUNS_KEPT + 1


def test_one_that_had_worked_until_the_power_cut_ends_the_series_before_it(runs: Runs) -> None:
    runs.add()
    runs.add(lived_ms=rundir.WORKED_MS, cause="reboot")
    first = runs.add()
    assert runs.first == first


def test_how_long_a_host_was_off_makes_no_run_a_good_one(runs: Runs) -> None:
    first = runs.add()
    runs.add(cause="reboot")
    record = Path(Run(str(runs.base), "d", "p", runs.names[-1]).file("exit.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "at": runs.ms + 2 * HOUR_MS}))
    runs.add()
    assert runs.first == first


def test_a_refused_start_is_a_failure(runs: Runs) -> None:
    first = runs.add(born=False)
    runs.add(born=False)
    assert runs.first == first


def test_where_nothing_failed_there_is_no_first_failure(runs: Runs) -> None:
    assert runs.first is None
    runs.add(asked=True)
    runs.add(ended=False)
    assert runs.first is None


def test_what_is_not_over_is_not_touched(runs: Runs) -> None:
    living = runs.add(ended=False)
    for _ in range(9):
        runs.add()
        runs.prune()
    assert living in runs.names


def test_older_runs_keep_the_end_of_their_logs(runs: Runs) -> None:
    first = runs.add()
    runs.add()
    newest = runs.add()
    runs.prune()
    logs = {name: pump.Log(Run(str(runs.base), "d", "p", name).file("log")) for name in runs.names}
    assert logs[newest].segments() == [0, 10, 20, 30]
    assert logs[first].segments() == [20, 30]
    assert sorted(p.name for p in Path(logs[first].times_folder).iterdir()) == [f"{n:016d}" for n in (20, 30)]


def test_a_link_forgets_the_runs_that_its_host_forgot(host: Host) -> None:
    """One connection may last for months."""
    told = ("            self._reply(message, data=", "            self._reply(message, known=len(self.states), data=")
    link = host.link(sabotaged(host.root, link=told))
    counts = []
    for number in range(2 * rundir.RUNS_KEPT + 3):
        link.start(f"r{number:02d}", ["true"])
        link.gone(f"r{number:02d}")
        counts.append(link.reply(op="tail", run=f"r{number:02d}")["known"])
    assert max(counts) == counts[-1] <= rundir.RUNS_KEPT + 2
