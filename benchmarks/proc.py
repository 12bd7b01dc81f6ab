"""What the kernel says of processes: CPU seconds, memory, who carries a mark."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def living() -> dict[int, str]:
    """Arguments by pid, zombies excluded; of all pid namespaces below ours too."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[0]
                words = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if state not in "ZX":
                found[int(entry)] = words
    return found


def marked(*marks: str) -> list[int]:
    return [pid for pid, words in living().items() if any(mark in words for mark in marks)]


def cpu_s(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def pss_mb(pid: int) -> float:
    """Proportional set size: what is shared counts for each sharer in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def until(true: Callable[[], object], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)
