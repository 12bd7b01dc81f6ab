"""Claims: GPUs, ports and process names, exclusive on this host by the kernel's word.

A claim is a listening abstract unix socket (unix(7)), bound by the keeper and inherited by its pump. It needs no file and no
cleaning: it falls with its last holder. Whoever connects is told who holds it. An flock inherited by the tree would
not do: `multiprocessing` spawn closes it in the middle of a worker's life (measured).
The names live in a network namespace: two containers with one GPU and two namespaces are outside this guarantee.
"""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import time
from typing import Any, Dict, Optional

PREFIX = "\0noray/"
NAME_BYTES = 100  # sun_path holds 108, the prefix takes 7
HOLD_TRIES = 10


def address(name: str) -> str:
    """Where a claim is held: its name, or a digest of one too long for a socket address."""
    return PREFIX + (name if len(name) <= NAME_BYTES else hashlib.sha256(name.encode()).hexdigest())


class Held(Exception):
    """Somebody else holds it; `holder` is what they say of themselves, {} if they say nothing."""

    def __init__(self, name: str, holder: Dict[str, Any]) -> None:
        super().__init__(name)
        self.name, self.holder = name, holder

    def __str__(self) -> str:
        who = self.holder
        if not who:
            return "%s is held by a process that does not say who it is" % self.name
        return "%s is held by %s of deployment %s (user %s, run %s, since %s, started by controller %s)" % (
            self.name, who.get("process"), who.get("deployment"), who.get("user"), who.get("run"), who.get("since"),
            who.get("controller"),
        )  # fmt: skip


def hold(name: str) -> socket.socket:
    """Take the claim or raise `Held`. Close the socket (in every process that has it) to let it fall."""
    sock = take(name)
    if sock is None:
        raise Held(name, ask(name) or {})
    return sock


def hold_patiently(name: str) -> socket.socket:
    """A start that will be refused because of this very run holds its claims for the moment it needs to find that out."""
    for _ in range(HOLD_TRIES):
        try:
            return hold(name)
        except Held:
            time.sleep(0.02)
    return hold(name)


def take(name: str) -> Optional[socket.socket]:
    """The claim; None if somebody holds it, without asking who."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address(name))
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    sock.listen(16)
    sock.setblocking(False)
    return sock


def ask(name: str, timeout_s: float = 1.0) -> Optional[Dict[str, Any]]:
    """Who holds it; None if nobody, {} if the holder does not say within `timeout_s`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(address(name))
        except OSError as error:
            return None if error.errno == errno.ECONNREFUSED else {}
        try:
            answer = json.loads(sock.recv(4096) or b"{}")
        except (OSError, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}


def tell(sock: socket.socket, holder: Dict[str, Any]) -> None:
    """Answer one visitor of a claim we hold. Keeper and pump may both be woken: who comes second finds nobody."""
    try:
        visitor, _ = sock.accept()
    except OSError:
        return
    with visitor:
        visitor.setblocking(False)
        try:
            visitor.send(json.dumps(holder).encode())
        except OSError:
            pass  # they left before the answer
