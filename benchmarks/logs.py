"""What it costs to take a worker's output to a file: keeper and pump, beside `cat > file` and a bare loop in Python."""

from __future__ import annotations

import fcntl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import proc
from benchmarks.machine import HOST_PYTHON, load
from benchmarks.site import Site, here
from benchmarks.table import Table, ratio

NEEDS_ROOM = ""
RATE_MB = 10.0
PIPE_BYTES = 1 << 20  # what noray gives its FIFO; the same for all
WRITER = Path(__file__).with_name("writer.py")
LOOP = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"


def run(place: Path, quick: bool) -> Table:
    seconds = 0.5 if quick else 20.0
    before = load()
    writer = [HOST_PYTHON, "-I", "-S", str(WRITER), f"{RATE_MB:g}"]
    costs = {
        "`cat > file`": piped(["cat"], writer, place, seconds),
        "bare Python loop": piped([HOST_PYTHON, "-I", "-S", "-c", LOOP], writer, place, seconds),
    }
    with Site(place, writer, 1, here(place)) as site:
        (pump,), (keeper,) = site.helpers("pump", "w-"), site.helpers("keeper", "w-")
        costs["pump"] = busy(pump, seconds)
        costs["keeper"] = busy(keeper, seconds)
    costs["**keeper + pump**"] = costs["keeper"] + costs["pump"]
    cat, loop = costs["`cat > file`"], costs["bare Python loop"]
    rows = [(name, f"{cost * 1000:.1f} ms", ratio(cost, cat), ratio(cost, loop)) for name, cost in costs.items()]
    notes = [
        f"CPU time for each second of {RATE_MB:g} MB/s in lines of 100 bytes, over {seconds:g} s, through a pipe of 1 MiB "
        f"each. Load before: {before}.",
    ]
    return Table(f"Logs at {RATE_MB:g} MB/s", ("", "CPU per second", "of cat", "of a bare loop"), rows, notes)


def busy(pid: int, seconds: float) -> float:
    """CPU seconds per second of a process that has got going."""
    time.sleep(seconds / 10)
    began, used = time.monotonic(), proc.cpu_s(pid)
    time.sleep(seconds)
    return (proc.cpu_s(pid) - used) / (time.monotonic() - began)


def piped(reader: Sequence[str], writer: Sequence[str], place: Path, seconds: float) -> float:
    source = subprocess.Popen(writer, stdout=subprocess.PIPE)
    assert source.stdout is not None
    fcntl.fcntl(source.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    with (place / "out").open("wb") as file:
        sink = subprocess.Popen(reader, stdin=source.stdout, stdout=file)
        source.stdout.close()
        try:
            return busy(sink.pid, seconds)
        finally:
            source.kill()
            source.wait()
            sink.wait()
            (place / "out").unlink()
