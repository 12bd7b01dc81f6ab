"""Work that may hang, done in a child that can be killed: what it costs its owner is a deadline, never more.

The child has nothing of ours but the pipe for its answer, dies with us (PR_SET_PDEATHSIG, prctl(2)) and is ended by pidfd. One
that even SIGKILL does not end (state D in a driver) stays in `children()`, and `stuck_since()` says since when.
Somebody else's waitpid(-1) in the same process may reap it: that is "gone" too.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Callable, Dict, Optional, Set

from . import procfs
from .libc import libc
from .reactor import CHUNK, READ, Reactor
from .tree import send

PR_SET_PDEATHSIG = 1
KILLED_S = 0.2  # how long the kernel is given to end what was killed

_under_way: Dict[int, "Aside"] = {}  # also those that were killed and have not ended


class Aside:
    """One piece of work; OSError when the host has no process left for it.

    `fd` becomes readable when there is some of its answer, or its end.
    """

    def __init__(self, work: Callable[[], bytes]) -> None:
        self.began, self.answer, self.killed = time.time(), b"", False
        self.fd, write = os.pipe()
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.fd)
            os.close(write)
            raise
        if self.pid == 0:
            try:
                _alone(parent, write)
                left = work()
                while left:
                    left = left[os.write(write, left) :]
            finally:
                os._exit(0)
        os.close(write)
        born = procfs.read(self.pid)
        self.start = born.start if born else 0
        _under_way[self.pid] = self

    def read(self) -> bool:
        """Take what has come; True if that was all."""
        part = os.read(self.fd, CHUNK)
        self.answer += part
        return not part

    def end(self) -> None:
        """Close it; kill it unless it has ended. Waits a moment for that. Idempotent."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        found = self._process()
        if found is not None:
            send(found, signal.SIGKILL)
        until = time.monotonic() + KILLED_S
        while not self.gone() and time.monotonic() < until:
            time.sleep(0.002)
        self.killed = True

    def gone(self) -> bool:
        """It is nobody's any more, not even a zombie."""
        if self._process() is not None:  # its pid may be another child's by now, which is not ours to wait for
            try:
                os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pass
        return self._process() is None

    def _process(self) -> Optional[procfs.Process]:
        found = procfs.read(self.pid)
        return found if found is not None and found.start == self.start else None


def _alone(parent: int, write: int) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it died before it could be heard to
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        if number != write:
            os.dup2(null, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != write:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor of the listing itself


def children() -> Set[int]:
    """Our children of this kind that still exist, zombies included."""
    for pid, aside in list(_under_way.items()):
        if aside.gone():
            del _under_way[pid]
    return set(_under_way)


def stuck_since() -> Optional[float]:
    """When the oldest that was killed and has not ended began (seconds of the epoch); None if there is none."""
    children()
    return min((aside.began for aside in _under_way.values() if aside.killed), default=None)


def do(work: Callable[[], bytes], deadline_s: float) -> Optional[bytes]:
    """Its answer, b"" if it died without one; None if that took longer than `deadline_s`."""
    aside = Aside(work)
    until = time.monotonic() + deadline_s
    poll = select.poll()
    poll.register(aside.fd, READ)
    try:
        while poll.poll(max(0.0, until - time.monotonic()) * 1000):
            if aside.read():
                return aside.answer
        return None
    finally:
        aside.end()


def begin(reactor: Reactor, work: Callable[[], bytes], deadline_s: float, done: Callable[[Optional[bytes]], None]) -> None:
    """The same without waiting: `done` is called once, from the loop."""
    aside = Aside(work)

    def finish(answer: Optional[bytes]) -> None:
        timer.cancel()
        reactor.unwatch(aside.fd)
        aside.end()
        done(answer)

    timer = reactor.after(deadline_s, lambda: finish(None))
    reactor.watch(aside.fd, READ, lambda _: finish(aside.answer) if aside.read() else None)
