"""Knock at doors: which of these addresses takes a connection, seen from this host. Nothing is said there.

A door that opens is not all: who has connections to it from before a cut (a frontend keeps a pool) sends into them, and what
is not acknowledged is sent again after ever longer pauses (tcp(7)). 20 s after the cut the next try was 5 s away, and requests
over those connections waited for it (measured). The kernel tells of them in /proc/net/tcp (proc(5)).
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Callable, Dict, List, Tuple

from .reactor import WRITE, Reactor, Timer

ESTABLISHED = "01"
MAPPED = b"\0" * 10 + b"\xff\xff"  # an IPv4 address in an IPv6 one


def dial(reactor: Reactor, doors: List[Tuple[str, int]], timeout_s: float, done: Callable[[List[bool]], None]) -> None:
    """`done`, called once and from the loop, is given an answer for each door, in their order. A refusal is a no."""
    Round(reactor, doors, timeout_s, done)


def stalled(doors: List[Tuple[str, int]]) -> List[bool]:
    """To which of these a connection of this network namespace waits to send again what was not acknowledged."""
    waiting = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                lines = file.readlines()[1:]
        except OSError:
            continue  # no IPv6 here
        for line in lines:
            _, _, remote, state, _, _, again = line.split()[:7]
            if state == ESTABLISHED and int(again, 16):
                waiting.add(_door(remote))
    return [door in waiting for door in doors]


def _door(text: str) -> Tuple[str, int]:
    """`0100007F:1F90` -> ("127.0.0.1", 8080): each 32 bits of an address in the order of this machine's bytes."""
    digits, _, port = text.partition(":")
    raw = b"".join(struct.pack("=I", int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8))
    if len(raw) == 16 and raw.startswith(MAPPED):
        raw = raw[len(MAPPED) :]
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw), int(port, 16)


class Round:
    def __init__(
        self, reactor: Reactor, doors: List[Tuple[str, int]], timeout_s: float, done: Callable[[List[bool]], None]
    ) -> None:
        self._reactor, self._done = reactor, done
        self._open = [False] * len(doors)
        self._waiting: Dict[int, socket.socket] = {}
        for number, (host, port) in enumerate(doors):
            self._knock(number, host, port)
        self._timer: Timer = reactor.after(timeout_s if self._waiting else 0.0, self._end)

    def _knock(self, number: int, host: str, port: int) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setblocking(False)
        try:
            code = sock.connect_ex((host, port))
        except (OSError, OverflowError):  # a name that does not resolve, a port that is none
            code = errno.EINVAL
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            return
        self._waiting[number] = sock
        self._reactor.watch(sock.fileno(), WRITE, lambda _: self._answered(number))

    def _answered(self, number: int) -> None:
        sock = self._waiting[number]
        self._open[number] = not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._close(number)
        if not self._waiting:
            self._timer.cancel()
            self._end()

    def _close(self, number: int) -> None:
        sock = self._waiting.pop(number)
        self._reactor.unwatch(sock.fileno())
        sock.close()

    def _end(self) -> None:
        for number in list(self._waiting):
            self._close(number)
        self._done(self._open)
