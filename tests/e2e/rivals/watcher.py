"""Looks every 10 ms whether anything has two owners. Knows nothing of noray: it reads the kernel, and where stubs are.

    python watcher.py GPUS      a line on standard input: one JSON line of what was seen since the last; its end: end

An owner of a process is a live stub whose working directory ends with that deployment and name; of a port, a listening
socket; of a GPU, a live stub with a file there. One look at /proc takes time, and what was seen first may be gone before
what is seen last has begun: two count only if the first are all still there afterwards.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

STUB = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stub.py").encode()
EVERY_S = 0.01
Owners = dict[str, set[tuple[int, str]]]  # what -> (pid or inode, since when)


def born(pid: int) -> str:
    """Its start time; empty if it is dead."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in b"ZX" else fields[19].decode()


def stubs() -> dict[int, str]:
    """Live stubs: deployment/name by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if STUB in words[:4]:
                    found[int(entry)] = "/".join(os.readlink(f"/proc/{entry}/cwd").split("/")[-2:])
            except OSError:
                continue
    return found


def listeners() -> Owners:
    found: Owners = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as file:
            rows = [line.split() for line in file.readlines()[1:]]
        for row in rows:
            if row[3] == "0A":
                port = int(row[1].rpartition(":")[2], 16)
                found.setdefault(f"port {port}", set()).add((int(row[9]), ""))
    return found


def look(gpus: str) -> Owners:
    found = listeners()
    live = stubs()
    for pid, name in live.items():
        found.setdefault(f"process {name}", set()).add((pid, born(pid)))
    for gpu in os.listdir(gpus):
        for entry in os.listdir(os.path.join(gpus, gpu)):
            if int(entry) in live:
                found.setdefault(f"gpu {gpu}", set()).add((int(entry), born(int(entry))))
    return found


def still_there(what: str, owners: set[tuple[int, str]]) -> bool:
    if what.startswith("port "):
        return owners <= listeners().get(what, set())
    return all(since and born(pid) == since for pid, since in owners)


def main(gpus: str) -> None:
    seen: dict[str, set[int]] = {}
    doubles: set[str] = set()
    looks, longest_s, last = 0, 0.0, time.monotonic()
    while True:
        for what, owners in look(gpus).items():
            seen.setdefault(what, set()).update(number for number, _ in owners)
            if len(owners) > 1 and still_there(what, owners):
                doubles.add(f"{what}: {sorted(number for number, _ in owners)}")
        now = time.monotonic()
        looks, longest_s, last = looks + 1, max(longest_s, now - last), now
        if select.select([sys.stdin], [], [], EVERY_S)[0]:
            if not sys.stdin.readline():
                return
            told = {what: sorted(owners) for what, owners in seen.items()}
            print(json.dumps({"doubles": sorted(doubles), "seen": told, "looks": looks, "longest_s": longest_s}), flush=True)
            seen, doubles, looks, longest_s, last = {}, set(), 0, 0.0, time.monotonic()


if __name__ == "__main__":
    main(sys.argv[1])
