"""From a worker's SIGKILL, stamped by who sends it, to the end of its key in etcd, as a third process sees it; over ssh.

A real mocker, each time anew, alone on its host; etcd and the frontend on another.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import load
from benchmarks.recovery import PATIENCE_S
from benchmarks.stage import by_noray, stage
from benchmarks.table import Table
from tests.e2e.lab import Lab, pids
from tests.hosts.bed import missing

NEEDS_ROOM = "it makes hosts, which needs root"
KILLS = 200
WATCH = Path(__file__).with_name("etcd_watch.py")


def run(place: Path, quick: bool) -> Table:
    if why := missing():
        return Table("Fence", ("",), [], [f"left out: {why}"])
    before = load()
    with stage(place, "round-robin", window_s=1) as (lab, _), by_noray(lab), watched(lab) as gone:
        took = [kill(lab, gone, number % 2) for number in range(3 if quick else KILLS)]
    dead, key = [dead for dead, _ in took], [key for _, key in took]
    rows = [
        ("SIGKILL → its key is gone", *shown(key)),
        ("SIGKILL → the kernel says that it is dead", *shown(dead)),
    ]
    note = (
        f"{len(took)} kills, of a mocker on each of two hosts in turn, the next when the last serves again. The kernel "
        f"takes a process's memory back before it tells anybody that it is dead. Load before: {before}."
    )
    return Table("SIGKILL of a worker → its key is gone", ("", "median", "p99", "most"), rows, [note])


def shown(took_s: list[float]) -> tuple[str, str, str]:
    ms = sorted(1000 * each for each in took_s)
    return f"{statistics.median(ms):.1f} ms", f"{ms[int(0.99 * (len(ms) - 1))]:.1f} ms", f"{ms[-1]:.1f} ms"


def kill(lab: Lab, gone: queue.SimpleQueue[tuple[float, str]], number: int) -> tuple[float, float]:
    """Seconds until it was dead, and until its key was seen to go; returns when the next run of it serves."""
    name = f"mock-{number}"
    pid, old = lab.pid(name), pids(lab.status())[name]
    while not gone.empty():
        gone.get()
    pidfd = os.pidfd_open(pid)
    try:
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [], PATIENCE_S)
        dead_s = time.monotonic()
    finally:
        os.close(pidfd)
    at_s, _ = gone.get(timeout=PATIENCE_S)
    lab.wait(lambda s: s["ready"] and pids(s)[name] != old, PATIENCE_S)
    return dead_s - killed_s, at_s - killed_s


@contextmanager
def watched(lab: Lab) -> Iterator[queue.SimpleQueue[tuple[float, str]]]:
    """When which key of a `generate` endpoint went."""
    assert lab.bed is not None
    url = f"http://{lab.bed['a'].address}:{lab.etcd_port}"
    argv = [sys.executable, "-I", "-S", str(WATCH), url, f"v1/instances/{lab.name}_"]
    gone: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it watches

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                told = json.loads(line)
                if "/generate/" in told["key"]:
                    gone.put((told["t"], told["key"]))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield gone
        finally:
            process.kill()
            reader.join()
