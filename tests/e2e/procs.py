"""Processes as /proc shows them, and waiting for what only /proc can tell."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    title: str
    state: str
    ppid: int


def everybody() -> Iterator[Seen]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
                title = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            state, ppid = stat.rpartition(")")[2].split()[:2]
            yield Seen(int(entry), title, state, int(ppid))


def environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def below(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo:
        parent = todo.pop()
        children = [seen.pid for seen in everybody() if seen.ppid == parent]
        found += children
        todo += children
    return found


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def until(true: Callable[[], object], timeout_s: float = 20.0) -> None:
    """For what only /proc can tell, and /proc tells nobody by itself."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"not so within {timeout_s:g} s"
        time.sleep(0.01)
