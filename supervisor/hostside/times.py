"""When which byte of a log was written: a sparse index beside each segment. The log itself stays bytes and nothing else.

A log is moved by splice(2) and never looked at, so times stand elsewhere: `times/<first>` beside `log/<first>`, records of 16
bytes, (offset, wall clock in ms), each put there before the move that brings the bytes from that offset on: whoever
sees the bytes finds their time. A byte's time is that of the last record at or before it. That is early by at most
`gap_ms`: 20, and where an index is full it is thinned until half is left, by records nearer to each other than a gap that
doubles. So a segment's index never takes more than 256 KiB (of 16 MiB), and one line after a silent night keeps its minute.
Losing an index, or a part of it, loses times only.
"""

from __future__ import annotations

import os
import struct
import time
from bisect import bisect_right
from typing import List, Optional, Tuple

RECORD = struct.Struct("<QQ")
GAP_MS = 20
MOST = 16384  # records in one index
END = 1 << 62  # an offset after every byte

Mark = Tuple[int, int]  # offset, wall ms


class Writer:
    """The index of the segment that is being written. Never raises: a disk too full for times is not too full to go on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._gap_ms = GAP_MS
        self._young_s = self._old_s = 0.0  # between them the last record's time is good enough
        self._count, self._fd = 0, -1
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            self._count = os.fstat(self._fd).st_size // RECORD.size
        except OSError:
            pass  # every write will fail as quietly

    def mark(self, offset: int) -> None:
        """Bytes from `offset` on are written now, or later."""
        now_s = time.time()
        if self._young_s < now_s < self._old_s:  # nearly always: this is asked at every move
            return
        # Whether or not it can be kept, so that a full disk is not asked more often.
        self._young_s, self._old_s = now_s - self._gap_ms / 1000, now_s + self._gap_ms / 1000
        now = int(now_s * 1000)
        try:
            if self._count >= MOST:
                self._thin()
            # By position, so that half a record is written over and not after.
            if os.pwrite(self._fd, RECORD.pack(offset, now), self._count * RECORD.size) == RECORD.size:
                self._count += 1
        except OSError:
            pass

    def _thin(self) -> None:
        """By time and not by number: dropping every second one would give the first line after a silence an old time."""
        marks = kept = read(self._path)
        while len(kept) > MOST // 2:
            self._gap_ms *= 2
            kept = []
            for mark in marks:
                if not kept or abs(mark[1] - kept[-1][1]) >= self._gap_ms:
                    kept.append(mark)
        draft = self._path + ".new"
        with open(draft, "wb") as file:
            file.write(b"".join(RECORD.pack(*mark) for mark in kept))
        os.rename(draft, self._path)
        os.close(self._fd)
        self._fd, self._count = os.open(self._path, os.O_RDWR | os.O_CLOEXEC), len(kept)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str, skip: int = 0) -> List[Mark]:
    """The records of one index from number `skip` on; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(skip * RECORD.size)
            data = file.read()
    except OSError:
        return []
    return list(RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]))


class Reader:
    """Times of one run's log, for a reader that goes forward through it."""

    def __init__(self, folder: str) -> None:
        """`folder`: where the indexes are, named as their segments."""
        self._folder = folder
        self._path, self._inode = "", 0
        self._offsets: List[int] = []
        self._times: List[int] = []

    def within(self, start: int, end: int) -> List[Mark]:
        """Which byte of start..end is how old; the first one stands at `start` if its time is known."""
        self._load(start)
        first = bisect_right(self._offsets, start) - 1
        last = bisect_right(self._offsets, end - 1)
        if last <= 0:
            return []
        found = [(max(self._offsets[n], start), self._times[n]) for n in range(max(first, 0), last)]
        # Of several at one offset (a move that found nothing) the last is true.
        return list(dict(found).items())

    def since(self, at_ms: int) -> Optional[int]:
        """The offset from which on everything was written at `at_ms` or later; None where that is not known."""
        later: Optional[int] = None
        for first in reversed(self._firsts()):
            marks = read(os.path.join(self._folder, "%016d" % first))
            found = next((offset for offset, at in marks if at >= at_ms), None)
            if found is not None:
                later = found
            if marks and marks[0][1] < at_ms:
                return later if later is not None else END
        return later

    @property
    def known(self) -> bool:
        return bool(self._firsts())

    def _firsts(self) -> List[int]:
        try:
            return sorted(int(name) for name in os.listdir(self._folder) if name.isdigit())
        except OSError:
            return []

    def _load(self, offset: int) -> None:
        first = max((f for f in self._firsts() if f <= offset), default=None)
        if first is None:
            self._path, self._offsets, self._times = "", [], []
            return
        path = os.path.join(self._folder, "%016d" % first)
        try:
            inode = os.stat(path).st_ino
        except OSError:
            return
        if (path, inode) != (self._path, self._inode):  # the next segment, or thinned
            self._path, self._inode, self._offsets, self._times = path, inode, [], []
        for mark_offset, at in read(path, len(self._offsets)):
            self._offsets.append(mark_offset)
            self._times.append(at)
