"""One thread, one poll(2), timers, and JSON lines: all the concurrency the host side has.

Not asyncio: a keeper lives for weeks beside a worker, and asyncio doubles its memory (8 against 14 MB, measured).
"""

from __future__ import annotations

import errno
import heapq
import itertools
import json
import os
import select
import signal
import socket
import time
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

READ = select.POLLIN
WRITE = select.POLLOUT
CHUNK = 1 << 16


class Timer:
    """A pending call; `cancel()` is idempotent."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Optional[Callable[[], None]] = call

    def cancel(self) -> None:
        self.call = None


class Reactor:
    """Runs callbacks until `stop()`. A callback that raises ends the process: there is nobody to pretend for."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._calls: Dict[int, Callable[[int], None]] = {}
        self._timers: List[Tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._running = True

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        self._poll.register(fd, events)
        self._calls[fd] = call

    def unwatch(self, fd: int) -> None:
        if self._calls.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._count), timer))
        return timer

    def every(self, period_s: float, call: Callable[[], None]) -> None:
        def again() -> None:
            call()
            self.after(period_s, again)

        self.after(period_s, again)

    def on_signals(self, handlers: Dict[int, Callable[[], None]]) -> None:
        """Deliver these signals as callbacks of the loop. Call once: the wake-up pipe is the process's own."""
        ours, kernels = socket.socketpair()
        ours.setblocking(False)
        kernels.setblocking(False)
        signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
        for number in handlers:
            signal.signal(number, lambda *_: None)

        def woken(_: int) -> None:
            try:
                numbers = ours.recv(256)
            except BlockingIOError:
                return
            for number in sorted(set(numbers)):
                if number in handlers:
                    handlers[number]()

        self._wakeup = (ours, kernels)
        self.watch(ours.fileno(), READ, woken)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Until `stop()`, which may have been called already."""
        while self._running:
            timeout_ms = None
            while self._timers and self._timers[0][2].call is None:
                heapq.heappop(self._timers)
            if self._timers:
                timeout_ms = max(0.0, self._timers[0][0] - time.monotonic()) * 1000
            for fd, events in self._poll.poll(timeout_ms):
                call = self._calls.get(fd)
                if call is not None:
                    call(events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                due = heapq.heappop(self._timers)[2].call
                if due is not None:
                    due()


class Lines:
    """JSON objects, one per line, over a pair of descriptors it owns. `closed` is called once, from the loop or from `send`."""

    LIMIT = 64 << 20  # a peer that leaves this much unread is gone for us

    def __init__(
        self,
        reactor: Reactor,
        fd_in: int,
        fd_out: int,
        received: Callable[[Dict[str, Any]], None],
        closed: Callable[[], None],
    ) -> None:
        self._reactor, self._in, self._out = reactor, fd_in, fd_out
        self._received, self._closed = received, closed
        self._inbuf = bytearray()
        self._outbuf = bytearray()
        self.open = True
        for fd in {fd_in, fd_out}:
            os.set_blocking(fd, False)
        reactor.watch(fd_in, READ, self._ready)

    @property
    def descriptors(self) -> Set[int]:
        return {self._in, self._out}

    def send(self, message: Dict[str, Any]) -> None:
        if not self.open:
            return
        self._outbuf += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        for fd in {self._in, self._out}:
            self._reactor.unwatch(fd)
            os.close(fd)
        self._closed()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self.open and events & ~WRITE:
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._in, CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            return self.close()
        self._inbuf += data
        if b"\n" not in data:
            return None
        *lines, rest = bytes(self._inbuf).split(b"\n")
        self._inbuf = bytearray(rest)
        for line in lines:
            if line.strip() and self.open:
                try:
                    message = json.loads(line)
                except ValueError:
                    return self.close()
                if not isinstance(message, dict):
                    return self.close()
                self._received(message)
        return None

    def _flush(self) -> None:
        try:
            while self._outbuf:
                sent = os.write(self._out, self._outbuf[: 1 << 20])
                del self._outbuf[:sent]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK) or len(self._outbuf) > self.LIMIT:
                return self.close()
        self._want_write(bool(self._outbuf))
        return None

    def _want_write(self, wanted: bool) -> None:
        if self._in == self._out:
            self._reactor.watch(self._in, READ | (WRITE if wanted else 0), self._ready)
        elif wanted:
            self._reactor.watch(self._out, WRITE, lambda _: self._flush())  # also of its death
        else:
            self._reactor.unwatch(self._out)
