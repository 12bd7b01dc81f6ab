"""Ports: chosen on the host that will use them, bind-tested on the address used, claimed until the tree is gone.

A name may want several in a row: `${port.NAME}` is the first, and all of them are claimed. What the host itself chooses lies
outside the range from which its kernel serves outgoing connections, which could have a port while it is ours but not yet open.
"""

from __future__ import annotations

import os
import random
import socket
from typing import Any, Dict, List, NamedTuple, Set, Tuple

from . import claims, procfs

RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
RESERVED = "/proc/sys/net/ipv4/ip_local_reserved_ports"  # of that range: never given to an outgoing connection


class Taken(Exception):
    """A fixed port somebody else listens on, or a range with nothing left. The message names whom it can."""

    cause = "port"


class Block(NamedTuple):
    """What one name wants: `size` numbers from `number` on, 0 = wherever there is room."""

    name: str
    number: int
    bind: str
    size: int

    def __str__(self) -> str:
        what = "no free port" if self.size == 1 else "no %d free ports in a row" % self.size
        return "%s for %s on %s" % (what, self.name, self.bind)


def block(name: str, said: List[Any]) -> Block:
    """`said`: [number, address to bind], and how many, which is 1 in the specs of older controllers."""
    return Block(name, said[0], said[1], said[2] if len(said) > 2 else 1)


def numbers(wanted: Dict[str, List[Any]], chosen: Dict[str, int]) -> List[int]:
    """Every number of every block, as a run's spec and its record tell them."""
    sizes = {name: block(name, said).size for name, said in wanted.items()}
    return [first + n for name, first in chosen.items() for n in range(sizes.get(name, 1))]


def choose(wanted: Dict[str, List[Any]], low: int, high: int) -> Tuple[Dict[str, int], List[socket.socket]]:
    """The first number of each of `wanted` (name -> see `block`), the open ones within low..high, and the claims on all.

    Raises Taken or claims.Held, holding nothing.
    """
    held: List[socket.socket] = []
    blocks = [block(name, said) for name, said in wanted.items()]
    fixed, anywhere = [b for b in blocks if b.number], [b for b in blocks if not b.number]
    try:
        chosen = {b.name: _fixed(b, held) for b in fixed}
        if anywhere:
            chosen.update(Room(low, high, ephemeral()).place(anywhere, held))
    except BaseException:
        _release(held, 0)
        raise
    return chosen, held


def _fixed(wanted: Block, held: List[socket.socket]) -> int:
    for number in range(wanted.number, wanted.number + wanted.size):
        held.append(claims.hold("port-%d" % number))
        if not free(wanted.bind, number):
            told = "port %d (%s) on %s is taken by %s" % (number, wanted.name, wanted.bind, owner(number))
            if number in ephemeral():
                told += "; it is one of this host's ephemeral ports"
            raise Taken(told)
    return wanted.number


class Room:
    """The numbers low..high of a host, but those it uses for outgoing connections."""

    def __init__(self, low: int, high: int, lent: Set[int]) -> None:
        self._range = "%d-%d" % (low, high)
        self._open = set(range(low, high + 1)) - lent
        self._mine: Set[int] = set()
        self._useless: Set[Tuple[str, int]] = set()  # seen to be claimed by others, or in use at that address
        if not self._open and low <= high:
            lie = "ports %s lie inside this host's ephemeral range %d-%d" % (self._range, min(lent), max(lent))
            raise Taken("%s; %s" % (lie, _hint(lent)))

    def place(self, blocks: List[Block], held: List[socket.socket]) -> Dict[str, int]:
        """The first number of each; the claims on all are added to `held`. Raises Taken if there is no way to place all."""
        try:
            return self._search(sorted(blocks, key=lambda b: -b.size), held, again=False)
        except Taken:  # hardly ever: every number is looked at, and every way tried, those with the least choice first
            choice = {one: len(self._starts(one)) for one in blocks}
            return self._search(sorted(blocks, key=lambda b: choice[b]), held, again=True)

    def _search(self, blocks: List[Block], held: List[socket.socket], again: bool) -> Dict[str, int]:
        if not blocks:
            return {}
        wanted, rest = blocks[0], blocks[1:]
        none = Taken("%s in %s" % (wanted, self._range))
        # Random, not first-fit: a port freed by a crash keeps half-open peers for a while, and a fresh one never does.
        for first in random.sample(sorted(self._open), len(self._open)):
            before, mine = len(held), self._take(wanted, first, held)
            if mine:
                self._mine |= mine
                try:
                    return dict(self._search(rest, held, again), **{wanted.name: first})
                except Taken as deeper:
                    none = deeper
                self._mine -= mine
            _release(held, before)
            if mine and not again:
                break
        raise none

    def _starts(self, wanted: Block) -> List[int]:
        held: List[socket.socket] = []
        found = []
        for first in self._open:
            if self._take(wanted, first, held):
                found.append(first)
            _release(held, 0)
        if not found:
            raise Taken("%s in %s" % (wanted, self._range))
        return found

    def _take(self, wanted: Block, first: int, held: List[socket.socket]) -> Set[int]:
        """The numbers from `first` on, their claims added to `held`; empty if one cannot be had (some may be in `held`)."""
        block = range(first, first + wanted.size)
        if not self._open.issuperset(block) or not self._mine.isdisjoint(block):
            return set()
        for number in block:
            claim = None if (wanted.bind, number) in self._useless else claims.take("port-%d" % number)
            if claim is not None:
                held.append(claim)
            if claim is None or not free(wanted.bind, number):
                self._useless.add((wanted.bind, number))
                return set()
        return set(block)


def _release(held: List[socket.socket], kept: int) -> None:
    while len(held) > kept:
        held.pop().close()


def ephemeral() -> Set[int]:
    """The ports that this host's kernel gives to outgoing connections (ip(7), ip-sysctl); empty if it does not say."""
    try:
        with open(RANGE) as file:
            low, high = map(int, file.read().split())
    except (OSError, ValueError):
        return set()
    lent = set(range(low, high + 1))
    try:
        with open(RESERVED) as file:
            for part in filter(None, file.read().strip().split(",")):
                first, _, last = part.partition("-")
                lent -= set(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        pass  # then nothing is reserved
    return lent


def _hint(lent: Set[int]) -> str:
    # Up to 32767: what Dynamo can read as a port of its status server.
    for low in (18000, 10000, 2000, 28000):
        if not lent.intersection(range(low, low + 2000)):
            return "set `ports` in hosts.yaml, e.g. %d-%d" % (low, low + 1999)
    return "reserve some: sysctl net.ipv4.ip_local_reserved_ports=18000-19999"


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
