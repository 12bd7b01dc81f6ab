"""What one run costs its host in memory: keeper and pump, beside an interpreter that does nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks import proc
from benchmarks.machine import HOST_PYTHON, load
from benchmarks.site import Site, here
from benchmarks.table import Table, ratio

NEEDS_ROOM = ""
TARGET_MB = 8.0


def run(place: Path, quick: bool) -> Table:
    runs = 3 if quick else 50
    before = load()
    bare = floor(runs)
    with Site(place, ["sleep", "100000"], runs, here(place)) as site:
        roles = {role: [proc.pss_mb(pid) for pid in site.helpers(role, "w-")] for role in ("keeper", "pump")}
        assert all(len(sizes) == runs for sizes in roles.values()), {role: len(sizes) for role, sizes in roles.items()}
        assert site.down().returncode == 0
    keeper, pump = mean(roles["keeper"]), mean(roles["pump"])
    rows = [
        ("bare interpreter (`-I -S`, waits)", f"{bare:.2f} MB", "1.00"),
        ("keeper", f"{keeper:.2f} MB", ratio(keeper, bare)),
        ("pump", f"{pump:.2f} MB", ratio(pump, bare)),
        ("**keeper + pump**", f"**{keeper + pump:.2f} MB**", ratio(keeper + pump, bare)),
    ]
    notes = [
        f"PSS of each (`smaps_rollup`), mean over {runs} at once. Target: at most {TARGET_MB:g} MB for a run. "
        f"Load before: {before}.",
        "A pump is forked from its keeper and shares with it what neither has written since: only the sum means something.",
    ]
    return Table(f"Memory per run, {runs} on one host", ("", "PSS", "of a bare interpreter"), rows, notes)


def floor(count: int) -> float:
    """PSS of an interpreter that was told to wait, that many at once."""
    argv: Sequence[str] = [HOST_PYTHON, "-I", "-S", "-c", "import signal; print(flush=True); signal.pause()"]
    waiting = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in waiting:
            assert process.stdout is not None
            process.stdout.read(1)
        return mean(proc.pss_mb(process.pid) for process in waiting)
    finally:
        for process in waiting:
            process.kill()
            process.communicate()
