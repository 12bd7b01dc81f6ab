"""What one client has yet to read: bounded, so that a stopped client costs the controller a buffer and nothing more.

Two promises, by the request. An answer is complete: its producer waits for room (it waits in the client's own task;
whoever feeds it must not). A follower is current: its producer never waits, and when the buffer is full everything
unread is dropped for the newest item, counted, and said.
"""

from __future__ import annotations

from collections import deque

import anyio
import anyio.lowlevel

from supervisor.control import wire

ROOM = 1 << 18  # bytes; one item more than fits is always taken


class Outbox:
    """One producer, one consumer."""

    def __init__(self, *, follow: bool, room: int = ROOM) -> None:
        self._follow = follow
        self._room = room
        self._unread: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._closed = False
        self._changed = anyio.Event()

    async def put(self, line: bytes) -> None:
        if self._follow:
            await anyio.lowlevel.checkpoint()  # a producer that never waits must still let others run
            if self._unread and self._size + len(line) > self._room:
                self._lost += len(self._unread)
                self._unread.clear()
                self._size = 0
        while self._size > self._room and not self._follow:
            await self._changed.wait()
        self._unread.append(line)
        self._size += len(line)
        self._notify()

    def close(self, line: bytes) -> None:
        """`line` is the last. It neither waits nor drops anything; `take` still hands out what is there."""
        self._unread.append(line)
        self._closed = True
        self._notify()

    async def take(self) -> bytes | None:
        """Everything unread in one piece, or None after the end."""
        while not self._unread:
            if self._closed:
                return None
            await self._changed.wait()
        if self._lost:
            self._unread.appendleft(wire.encode({"lost": self._lost}))
            self._lost = 0
        taken = b"".join(self._unread)
        self._unread.clear()
        self._size = 0
        self._notify()
        return taken

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
