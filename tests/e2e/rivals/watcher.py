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
import socket
import struct
import sys
import time

STUB = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stub.py").encode()
EVERY_S = 0.01
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, NLM_F_DUMP, NLMSG_DONE, TCP_LISTEN = 4, 20, 1, 0x300, 3, 10
diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
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
    """By sock_diag(7): /proc/net/tcp walks over every bucket of the machine, 10 ms of a core for each look (measured)."""
    found: Owners = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBBI48s", family, socket.IPPROTO_TCP, 0, 0, 1 << TCP_LISTEN, b"")
        diag.send(struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + request)
        while rows(diag.recv(1 << 16), found):
            pass
    return found


def rows(data: bytes, found: Owners) -> bool:
    """Whether more follows."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        if kind == NLMSG_DONE:
            return False
        assert kind == SOCK_DIAG_BY_FAMILY, f"sock_diag answers {kind}"
        (port,) = struct.unpack_from("!H", data, at + 16 + 4)
        (inode,) = struct.unpack_from("=I", data, at + 16 + 4 + 48 + 16)
        found.setdefault(f"port {port}", set()).add((inode, ""))
        at += size + 3 & ~3
    return True


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
