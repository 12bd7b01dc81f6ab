"""The keeper's side of a run's output: it holds the FIFO, starts the pump, hears it, replaces it, and ends it.

The keeper has the FIFO open too: bytes in it outlive a pump that dies when nobody else is left to hold them.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Callable, Optional, Set

from . import pump
from .reactor import READ, Reactor
from .rundir import Run

YOUNG_S = 1.0  # a pump that dies younger than this is replaced with a delay: whatever killed it may last
DELAY_S = 0.2
FINISH_S = 5.0  # for the pump to drain what is left; somebody out of our sight may still be writing


class Output:
    def __init__(self, run: Run, reactor: Reactor, note: Callable[[str], None], fifo: Optional[int] = None) -> None:
        """`fifo`: open already, in an heir."""
        self._log, self._reactor, self._note = pump.Log(run.file("log")), reactor, note
        self.fifo = pump.open_fifo(run.file("out")) if fifo is None else fifo
        self.pids: Set[int] = set()  # of our pump: a helper of ours, no part of the tree
        self._lost = self._lost_before = 0  # bytes: by this pump, by those before it
        self._line: Optional[socket.socket] = None
        self._born = 0.0

    def start(self, become: Callable[[int], None]) -> None:
        """Fork the pump: before the child, so that no byte of output ever lacks a reader. `become` gets its line to us."""
        self._become = become
        self._drop_line()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                become(theirs.detach())
            finally:
                os._exit(70)
        theirs.close()
        self._line, self._born = ours, time.monotonic()
        self.pids.add(pid)
        self._reactor.watch(ours.fileno(), READ, lambda _: self._hear())

    def reaped(self, pid: int) -> None:
        """Some child of ours ended; if it was the pump, the next one takes over."""
        if pid not in self.pids:
            return
        self.pids.clear()
        self._lost, self._lost_before = 0, self._lost_before + self._lost
        self._note("pump died at byte %d; another took over, no byte was in its hands" % self._log.end())
        if time.monotonic() - self._born > YOUNG_S:
            self.start(self._become)
        else:
            self._reactor.after(DELAY_S, lambda: self.start(self._become))

    def _hear(self) -> None:
        assert self._line is not None
        try:
            words = self._line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if not words:
            self._drop_line()  # it died: SIGCHLD brings its successor
        self._count(words)

    def _count(self, words: bytes) -> None:
        for line in words.decode(errors="replace").splitlines():
            lost, _, why = line.partition(" ")
            self._lost = int(lost)
            self._note("lost %d bytes of log: %s" % (self._lost_before + self._lost, why))

    def _drop_line(self) -> None:
        if self._line is not None:
            self._reactor.unwatch(self._line.fileno())
            self._line.close()
            self._line = None

    def finish(self) -> None:
        """Let the pump drain what is there and end. It holds the claims too: they fall with it, so it must be gone."""
        try:
            if self._line is not None:
                self._line.setblocking(True)
                self._line.settimeout(FINISH_S)
                self._line.sendall(b"F")
                words = self._line.recv(4096)
                while words:
                    self._count(words)
                    words = self._line.recv(4096)
        except OSError:
            pass  # dead, or not to be waited for
        for pid in self.pids:
            _end(pid)
        self.pids.clear()
        self._drop_line()
        self._drain()

    def _drain(self) -> None:
        """What a pump left that died when there was no time for another: nothing, nearly always."""
        try:
            last = pump.Pump(self._log, self.fifo)
            last.finish(time.monotonic() + FINISH_S)
        except OSError as error:
            return self._note("what was left in the FIFO is lost: %s" % error)
        finally:
            os.close(self.fifo)
        if last.lost_bytes:
            self._note("lost %d bytes of log: %s" % (self._lost_before + self._lost + last.lost_bytes, last.lost_why))
        return None


def _end(pid: int) -> None:
    """Our own child, not yet reaped: its pid is nobody else's."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
