"""Ports: chosen on the host that will use them, bind-tested on the address used, claimed until the tree is gone."""

from __future__ import annotations

import os
import random
import socket
from typing import Any, Dict, List, Tuple

from . import claims, procfs


class Taken(Exception):
    """A fixed port somebody else listens on, or a range with nothing left. The message names whom it can."""

    cause = "port"


def choose(wanted: Dict[str, List[Any]], low: int, high: int) -> Tuple[Dict[str, int], List[socket.socket]]:
    """Numbers for `wanted` (name -> [number, or 0 = any of low..high; address to bind]) and the claims on them.

    Raises Taken or claims.Held, holding nothing.
    """
    chosen: Dict[str, int] = {}
    held: List[socket.socket] = []
    try:
        for name, (number, bind) in wanted.items():
            if number:
                held.append(claims.hold("port-%d" % number))
                if not free(bind, number):
                    raise Taken("port %d (%s) on %s is taken by %s" % (number, name, bind, owner(number)))
                chosen[name] = number
            else:
                chosen[name] = _any(name, bind, low, high, held)
    except BaseException:
        for claim in held:
            claim.close()
        raise
    return chosen, held


def _any(name: str, bind: str, low: int, high: int, held: List[socket.socket]) -> int:
    # Random, not first-fit: a port freed by a crash keeps half-open peers for a while, and a fresh one never does.
    for number in random.sample(range(low, high + 1), high - low + 1):
        try:
            claim = claims.hold("port-%d" % number)
        except claims.Held:
            continue
        if free(bind, number):
            held.append(claim)
            return number
        claim.close()
    raise Taken("no free port for %s on %s in %d-%d" % (name, bind, low, high))


def free(bind: str, number: int) -> bool:
    """True if a server could listen there now. SO_REUSEADDR as servers set it: TIME_WAIT is no owner, a listener is."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((bind, number))
            sock.listen(1)
        except OSError:
            return False
    return True


def owner(number: int) -> str:
    """Who listens on it, as far as /proc tells us."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rsplit(":", 1)[1], 16) == number}
    targets = {"socket:[%s]" % inode for inode in inodes}
    for process in procfs.everybody() if targets else ():
        folder = "/proc/%d/fd" % process.pid
        try:
            if any(os.readlink(os.path.join(folder, fd)) in targets for fd in os.listdir(folder)):
                return procfs.describe(process.pid)
        except OSError:
            continue  # not ours to look into, or gone
    return "a process this user may not see" if targets else "nobody who listens (bound, or a bad address)"
