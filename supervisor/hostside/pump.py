"""The pump: moves a run's output from its FIFO into log segments, byte for byte.

Why a FIFO that the child holds read-write: with a plain pipe a dead reader kills etcd and nats-server by SIGPIPE within
0.25 s (measured); this way the death of a reader neither kills nor silences anybody, and the next reader goes on.
Why splice(2): the bytes go from pipe to file inside one system call, so there is no chunk in the pump's hands to lose when it
is killed. What a full disk makes impossible to keep is drained (the worker must go on), counted and said.

A log is one endless stream; a segment is named by the offset of its first byte, so the next pump finds its place by looking.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import time
from typing import Iterator, List, Optional, Tuple

from .tree import libc

SEGMENT_BYTES = 16 << 20
SEGMENTS_KEPT = 8
FIFO_BYTES = 1 << 20
F_SETPIPE_SZ = 1031
SPLICE_NONBLOCK = 2
SAY_S = 1.0  # between two words about losses, and no sooner


class Log:
    """The segments in one directory; used by the one pump that writes and by anybody who reads."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def segments(self) -> List[int]:
        """First offsets, ascending."""
        try:
            return sorted(int(name) for name in os.listdir(self.folder) if name.isdigit())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def path(self, first: int) -> str:
        return os.path.join(self.folder, "%016d" % first)

    def end(self) -> int:
        """The offset after the last byte kept."""
        firsts = self.segments()
        return firsts[-1] + os.stat(self.path(firsts[-1])).st_size if firsts else 0

    def read(self, offset: int, limit: int) -> Tuple[int, bytes]:
        """Up to `limit` bytes from `offset`, or from the oldest byte kept; returns (offset of the first byte, bytes)."""
        firsts = self.segments()
        if not firsts:
            return offset, b""
        offset = max(offset, firsts[0])
        first = max(f for f in firsts if f <= offset)
        try:
            with open(self.path(first), "rb") as file:
                data = os.pread(file.fileno(), limit, offset - first)
        except FileNotFoundError:
            return self.read(offset + 1, limit)  # rotated away under our eyes
        later = [f for f in firsts if f > first]
        if not data and later:
            return self.read(later[0], limit)
        return offset, data

    def tail(self, limit: int) -> bytes:
        """The last bytes kept, from the start of a line where there is one."""
        data = b"".join(self._from(max(0, self.end() - limit)))
        cut = data.find(b"\n") + 1 if len(data) >= limit else 0
        return data[cut:]

    def _from(self, offset: int) -> Iterator[bytes]:
        while True:
            offset, data = self.read(offset, 1 << 16)
            if not data:
                return
            yield data
            offset += len(data)


class Pump:
    """`fifo` is open read-write and non-blocking: it never reports end of file while it is pumped."""

    def __init__(self, log: Log, fifo: int) -> None:
        self.log, self.fifo = log, fifo
        firsts = log.segments()
        self.first = firsts[-1] if firsts else 0
        self.file = os.open(log.path(self.first), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.file).st_size
        self.lost_bytes = 0
        self.lost_why = ""

    def move(self) -> int:
        """Move what is there; returns how many bytes left the FIFO (kept or lost), 0 when it was empty."""
        if self.size >= SEGMENT_BYTES:
            try:
                self._rotate()
            except OSError as error:
                return self._drop(str(error))
        offset = ctypes.c_longlong(self.size)
        want = min(FIFO_BYTES, SEGMENT_BYTES - self.size) if self.size < SEGMENT_BYTES else FIFO_BYTES
        moved = int(libc.splice(self.fifo, None, self.file, ctypes.byref(offset), ctypes.c_size_t(want), SPLICE_NONBLOCK))
        if moved > 0:
            self.size += moved
            return moved
        code = ctypes.get_errno()
        if moved == 0 or code == errno.EAGAIN:  # empty
            return 0
        if code == errno.EINVAL:
            return self._copy()
        return self._drop(os.strerror(code))

    def _copy(self) -> int:
        """For a file system that cannot splice: these bytes are in our hands for a moment."""
        try:
            data = os.read(self.fifo, 1 << 16)
        except BlockingIOError:
            return 0
        kept = 0
        try:
            while kept < len(data):
                kept += os.pwrite(self.file, data[kept:], self.size + kept)
        except OSError as error:
            self.lost_bytes += len(data) - kept
            self.lost_why = str(error)
        self.size += kept
        return len(data)

    def _drop(self, why: str) -> int:
        try:
            dropped = len(os.read(self.fifo, 1 << 16))
        except BlockingIOError:
            return 0
        self.lost_bytes += dropped
        self.lost_why = why
        return dropped

    def _rotate(self) -> None:
        for old in self.log.segments()[: 1 - SEGMENTS_KEPT]:
            os.unlink(self.log.path(old))
        first = self.first + self.size
        file = os.open(self.log.path(first), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        os.close(self.file)
        self.first, self.file, self.size = first, file, 0


def open_fifo(path: str) -> int:
    """The readers' end of the FIFO; makes it 1 MiB large where the user's limit allows."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, FIFO_BYTES)
    except OSError:
        pass  # /proc/sys/fs/pipe-user-pages-soft is used up: 64 KiB will do
    return fd


def run(log: Log, fifo: int, keeper: int) -> Optional[str]:
    """Pump until the keeper (the other end of the socket `keeper`) says "finish", or is gone.

    Tells the keeper about losses as text lines. Returns None when finished, "heir" when the keeper died.
    """
    pump = Pump(log, fifo)
    poll = select.poll()
    poll.register(pump.fifo, select.POLLIN)
    poll.register(keeper, select.POLLIN)
    told, told_at = 0, 0.0
    while True:
        for fd, _ in poll.poll(SAY_S * 1000 if pump.lost_bytes != told else None):
            if fd == pump.fifo:
                pump.move()
            elif not _finish_asked(keeper):
                os.close(pump.file)
                return "heir"
            else:
                while pump.move():
                    pass
                os.fsync(pump.file)
                _say_loss(keeper, pump)
                return None
        if pump.lost_bytes != told and time.monotonic() - told_at >= SAY_S:
            told, told_at = pump.lost_bytes, time.monotonic()
            _say_loss(keeper, pump)


def _say_loss(keeper: int, pump: Pump) -> None:
    if pump.lost_bytes:
        try:
            os.write(keeper, ("%d %s\n" % (pump.lost_bytes, pump.lost_why)).encode())
        except OSError:
            pass  # the keeper is full or gone; the next word says it again


def _finish_asked(keeper: int) -> bool:
    try:
        return os.read(keeper, 1) == b"F"
    except OSError:
        return False
