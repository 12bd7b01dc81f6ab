"""Who of a fake worker's tree still exists? Looked at from outside: this file imports nothing of noray.

    python survivors.py MARK [EVERY_S]     a watcher: says {"t", "alive": {where: who}} on each change

The mark is a directory, and a process carries it as its working directory: kept over fork, exec, setsid, `env -i` and a
changed title, and read by the kernel's word alone (/proc/PID/cwd; root sees everybody's, a user their own).
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import NamedTuple


class Survivor(NamedTuple):
    pid: int
    started: int  # clock ticks since boot: with the pid, an identity
    state: str
    ppid: int
    sid: int
    at: str  # where below the mark
    command: str


def survivors(mark: str) -> dict[int, Survivor]:
    """The processes, zombies aside, whose working directory is the mark or below it, by pid."""
    found = {}
    root = os.path.realpath(mark)
    for name in os.listdir("/proc"):
        if name.isdigit() and (one := _look(int(name), root)):
            found[one.pid] = one
    return found


def _look(pid: int, root: str) -> Survivor | None:
    try:
        at = os.readlink(f"/proc/{pid}/cwd")
        if at not in (root, root + " (deleted)") and not at.startswith(root + "/"):
            return None
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it ended while we looked, or is a zombie, or not ours to see
        return None
    return Survivor(pid, int(fields[19]), fields[0].decode(), int(fields[1]), int(fields[3]), at[len(root) + 1 :], command)


def watch(mark: str, every_s: float) -> None:
    """Say where below the mark somebody is, whenever that changes, with one of them and the CLOCK_MONOTONIC of the look.

    Not every change of a pid: a fork bomb would be a flood of words.
    """
    before: set[str] | None = None
    while True:
        looked = time.monotonic()
        now = {one.at: f"{one.pid} {one.command}" for one in survivors(mark).values()}
        if now.keys() != before:
            print(json.dumps({"t": looked, "alive": now}), flush=True)
            before = set(now)
        # Not less the look: it must not starve what it looks at. And where nobody is, nobody's end needs a time.
        time.sleep(every_s if now else 10 * every_s)


if __name__ == "__main__":
    watch(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.01)
