"""The pump: moves a run's output from its FIFO into log segments, byte for byte.

Why a FIFO that the child holds read-write: with a plain pipe a dead reader kills etcd and nats-server by SIGPIPE within
0.25 s (measured); this way the death of a reader neither kills nor silences anybody, and the next reader goes on.
Why splice(2): the bytes go from pipe to file inside one system call, so there is no chunk in the pump's hands to lose when it
is killed. What a full disk makes impossible to keep is drained (the worker must go on), counted, told to the keeper, and
said in the log itself, where it is missing, as soon as there is room.

A log is one endless stream; a segment is named by the offset of its first byte, so the next pump finds its place by looking.
Of one run at most SEGMENTS_KEPT segments are kept; when what was written is in an index beside each (times.py).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import os
import select
import time
from typing import Iterator, List, Optional, Tuple

from . import times
from .libc import libc

SEGMENT_BYTES = 16 << 20
SEGMENTS_KEPT = 8
FIFO_BYTES = 1 << 20
F_SETPIPE_SZ = 1031
SPLICE_NONBLOCK = 2
SAY_S, SAY_MAX_S = 1.0, 60.0  # between two words about losses; they double while it goes on
ROOM_BYTES = 1 << 16  # after a loss, less free space is as good as none: a log that goes on for one line loses the next
AGAIN_S = 0.25  # between two tries where there is room and yet a write fails (a quota, a broken disk)


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

    def times(self, first: int) -> str:
        """Where the index of that segment is. Not among the segments: they alone, read in order, are the log."""
        return os.path.join(self.times_folder, "%016d" % first)

    @property
    def times_folder(self) -> str:
        return os.path.join(os.path.dirname(self.folder), "times")

    def forget(self, first: int) -> None:
        """Remove a segment, its index first: cut short, that loses times."""
        for path in (self.times(first), self.path(first)):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def end(self) -> int:
        """The offset after the last byte kept."""
        firsts = self.segments()
        return firsts[-1] + os.stat(self.path(firsts[-1])).st_size if firsts else 0

    def written_ms(self) -> int:
        """When it was last written to, on the wall clock; 0 if it never was."""
        firsts = self.segments()
        return int(os.stat(self.path(firsts[-1])).st_mtime * 1000) if firsts else 0

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
        self._open(firsts[-1] if firsts else 0)
        self.size = os.fstat(self.file).st_size
        self.lost_bytes = 0
        self.lost_why = ""
        self._unsaid = 0  # of them, what the log itself does not tell yet
        self._again = 0.0  # not to be tried before

    def _open(self, first: int) -> None:
        """OSError if there is no room; then nothing has changed."""
        self.file = os.open(self.log.path(first), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.first, self.size = first, 0
        self._times = times.Writer(self.log.times(first))

    def move(self) -> int:
        """Move what is there; returns how many bytes left the FIFO (kept or lost), 0 when it was empty."""
        if self._unsaid and not (self._room() and time.monotonic() >= self._again):
            return self._drop(self.lost_why)
        try:
            if self.size >= SEGMENT_BYTES:
                self._rotate()
            if self._unsaid:
                self._say_loss()
        except OSError as error:
            return self._failed(error.strerror or str(error))
        self._times.mark(self.first + self.size)
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
        return self._failed(os.strerror(code))

    def finish(self, until_s: float = math.inf) -> None:
        """Move all that is there (`until_s`: monotonic); what is lost at the very end is said there, if that can be."""
        self._again = 0.0
        while self.move() and time.monotonic() < until_s:
            pass
        try:
            if self._unsaid and self._room():
                self._say_loss()
        except OSError:
            pass  # the keeper is told in any case

    def close(self) -> None:
        os.close(self.file)
        self._times.close()

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
            self._lost(len(data) - kept, error.strerror or str(error))
        self.size += kept
        return len(data)

    def _drop(self, why: str) -> int:
        try:
            dropped = len(os.read(self.fifo, 1 << 16))
        except BlockingIOError:
            return 0
        self._lost(dropped, why)
        return dropped

    def _lost(self, count: int, why: str) -> None:
        self.lost_bytes += count
        self._unsaid += count
        self.lost_why = why

    def _failed(self, why: str) -> int:
        if self._room():
            self._again = time.monotonic() + AGAIN_S
        return self._drop(why)

    def _room(self) -> bool:
        space = os.fstatvfs(self.file)
        return space.f_bavail * space.f_frsize >= ROOM_BYTES

    def _say_loss(self) -> None:
        """A line where the lost bytes would be; OSError while there is no room."""
        cut = self.size > 0 and os.pread(self.file, 1, self.size - 1) != b"\n"
        words = "%s[noray: %d bytes were lost here: %s]\n" % ("\n" if cut else "", self._unsaid, self.lost_why)
        self._times.mark(self.first + self.size)
        if os.pwrite(self.file, words.encode(), self.size) != len(words):
            os.ftruncate(self.file, self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += len(words)
        self._unsaid = 0

    def _rotate(self) -> None:
        for old in self.log.segments()[: 1 - SEGMENTS_KEPT]:
            self.log.forget(old)
        full, index = self.file, self._times
        self._open(self.first + self.size)
        os.close(full)
        index.close()


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
    told, told_at, pause_s = 0, -SAY_MAX_S, SAY_S
    while True:
        for fd, _ in poll.poll(SAY_S * 1000 if pump.lost_bytes != told else None):
            if fd == pump.fifo:
                pump.move()
            elif not _finish_asked(keeper):
                pump.close()
                return "heir"
            else:
                pump.finish()
                os.fsync(pump.file)
                _tell_loss(keeper, pump)
                return None
        quiet_s = time.monotonic() - told_at
        if pump.lost_bytes != told and quiet_s >= pause_s:
            pause_s = SAY_S if quiet_s > SAY_MAX_S + pause_s else min(2 * pause_s, SAY_MAX_S)
            told, told_at = pump.lost_bytes, time.monotonic()
            _tell_loss(keeper, pump)


def _tell_loss(keeper: int, pump: Pump) -> None:
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
