"""Clocks that are really off: a wall clock for who is told so, monotonic ones for a host. Never the machine's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.world import set_clock, wall_clock
from tests.hosts.bed import Bed, missing

TELL = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.time_ns() / 1e9, time.monotonic(), flush=True)"


def test_a_wall_clock_steps_while_somebody_goes_by_it(tmp_path: Path) -> None:
    library, offset = wall_clock(tmp_path), tmp_path / "offset"
    if library is None:
        pytest.skip("no C compiler on this machine")
    offset.write_bytes(bytes(8))
    env = {**os.environ, "LD_PRELOAD": str(library), "CHAOS_CLOCK": str(offset)}
    argv = [sys.executable, "-I", "-S", "-c", TELL]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for ahead in (0, 86_400, -30):
            set_clock(offset, ahead)
            process.stdin.write("\n")
            process.stdin.flush()
            told = [float(word) for word in process.stdout.readline().split()]
            expected = (time.time() + ahead, time.time() + ahead, time.monotonic())
            assert all(abs(was - is_) < 10.0 for was, is_ in zip(told, expected, strict=True)), (ahead, told)


@pytest.mark.root
def test_a_host_boots_with_monotonic_clocks_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    if why := missing():
        pytest.skip(why)
    with Bed(tmp_path_factory.mktemp("b"), ["a"]) as bed:
        for ahead in (10_000_000, 0):
            bed["a"].power_cut()
            bed["a"].ahead_s = ahead
            bed["a"].boot()
            assert (
                abs(float(bed["a"].ssh("cat /proc/uptime").split()[0]) - time.clock_gettime(time.CLOCK_BOOTTIME) - ahead) < 10
            )
