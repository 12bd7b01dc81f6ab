"""What moves of a run that is loading: what it writes, reads, computes, and holds on its GPUs. A watch asks (watches.py).

    {"end": of its log, "read": bytes, "cpu_s": seconds, "gpu_mib": of memory}

A loader of weights may write nothing for half an hour, and one that hangs is never quite still: an event loop turns, a probe is
answered. So each number stands until it has moved by more than an idle process ever does, and is then told as it is. They are
sums over the tree, as its keeper saw it last; what one reads that is mapped counts as far as it came from a disk.
"""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, List, Optional

from . import gpus, procfs, pump, roster
from .reactor import Reactor
from .rundir import Run

READ_LEAST = 1 << 20  # bytes from one look to the next
CPU_LEAST = 0.2  # of one core
GPU_FRESH_S = 5.0  # a look at the GPUs, which costs 40 ms, serves all runs of a host for so long
GPU_ASK_S = 5.0
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")

Said = Dict[str, Any]


class Sign:
    """A sum over a tree, which falls when processes end; `told` only ever rises, and not by trifles."""

    def __init__(self) -> None:
        self._last = self._total = 0.0
        self.told = 0

    def see(self, now: float, least: float) -> None:
        grew = max(0.0, now - self._last)
        self._last, self._total = now, self._total + grew
        if grew >= least:
            self.told = int(self._total)


class GpuLooks:
    """One look at the GPUs at a time, for whoever asks meanwhile and shortly after."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._last: Optional[gpus.Look] = None
        self._at = float("-inf")
        self._waiting: List[Callable[[gpus.Look], None]] = []

    def ask(self, done: Callable[[gpus.Look], None]) -> None:
        if self._last is not None and time.monotonic() - self._at < GPU_FRESH_S:
            return done(self._last)
        self._waiting.append(done)
        if len(self._waiting) == 1:
            gpus.ask(self._reactor, GPU_ASK_S, self._seen)
        return None

    def _seen(self, look: gpus.Look) -> None:
        self._last, self._at = look, time.monotonic()
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(look)


class Loading:
    """Of one run, for as long as it is watched."""

    def __init__(self, run: Run, looks: GpuLooks, now: Callable[[], float] = time.monotonic) -> None:
        self._run, self._looks, self._now = run, looks, now
        self._read, self._cpu = Sign(), Sign()
        self._at = now()
        self._before: Optional[Dict[str, int]] = None  # in use on its GPUs before it, by UUID
        self._gpu_mib = 0

    def look(self, done: Callable[[Said], None]) -> None:
        """`done` is called once, now or when its GPUs have been asked."""
        now = self._now()
        read, cpu_s = used(roster.seen(self._run))
        self._read.see(read, READ_LEAST)
        self._cpu.see(cpu_s, max(CPU_LEAST * (now - self._at), TICK_S))
        self._at = now
        if self._before is None:
            record = self._run.record("run.json")
            self._before = None if record is None else {one["uuid"]: one["before_mib"] for one in record.get("gpus", ())}
        if self._before:
            return self._looks.ask(lambda look: done(self._said(look)))
        return done(self._said(None))

    def _said(self, look: Optional[gpus.Look]) -> Said:
        mine = [gpu for gpu in look.gpus if gpu.uuid in (self._before or {})] if look is not None else []
        held = sum(max(0, (gpu.used_mib or 0) - (self._before or {})[gpu.uuid]) for gpu in mine)
        if held > self._gpu_mib + gpus.SLACK_MIB:
            self._gpu_mib = held
        end = pump.Log(self._run.file("log")).end()
        return {"end": end, "read": self._read.told, "cpu_s": self._cpu.told, "gpu_mib": self._gpu_mib}


def used(tree: Dict[int, int]) -> "tuple[int, float]":
    """(bytes read, seconds of CPU) of these processes (pid -> start time) and of those that they have waited for."""
    read, ticks = 0, 0
    for pid, start in tree.items():
        found = procfs.usage(pid)
        if found is not None and found.start == start:
            read += found.read
            ticks += found.ticks
    return read, ticks * TICK_S
