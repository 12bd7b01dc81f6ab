"""One host-side program on a channel of its own: its bytes both ways, and how it ended."""

from __future__ import annotations

import asyncio
from collections import deque

import anyio
import asyncssh

from supervisor.errors import HostUnreachable
from supervisor.transport.channel import TAIL_BYTES, Ending, tail

GOODBYE_S = 1.0

_UNREAD_BYTES = 1024 * 1024


class SshPipe(asyncssh.SSHClientSession[bytes]):
    def __init__(self, host: str) -> None:
        self._host = host
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._unread: deque[bytes] = deque()
        self._unread_size = 0
        self._stderr = b""
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = False
        self._closed = asyncio.Event()
        self._code: int | None = None
        self._signal = ""
        self._broken_by = ""

    async def read(self) -> bytes:
        while not self._unread and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        if not self._unread:
            return b""
        data = b"".join(self._unread)
        self._unread.clear()
        self._unread_size = 0
        if self._channel is not None:
            self._channel.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        try:
            if self._channel is None or self._closed.is_set():
                raise BrokenPipeError("closed")
            self._channel.write(data)
        except (asyncssh.Error, OSError) as exc:
            raise HostUnreachable(f"the line to {self._host} was lost") from exc
        await self._room.wait()

    async def ending(self) -> Ending:
        with anyio.move_on_after(GOODBYE_S):
            await self._closed.wait()
        known = self._code is not None or bool(self._signal)
        said = tail(self._stderr)
        return Ending(self._code, self._signal, said if known else ": ".join(filter(None, (self._broken_by, said))))

    def abort(self) -> None:
        if self._channel is not None:
            self._channel.abort()

    async def aclose(self) -> None:
        if self._channel is None:
            return
        with anyio.CancelScope(shield=True):
            self._channel.close()
            with anyio.move_on_after(GOODBYE_S):
                await self._closed.wait()
            self._channel.abort()

    # What asyncssh calls.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is not None:
            self._stderr = (self._stderr + data)[-TAIL_BYTES:]
            return
        self._unread.append(data)
        self._unread_size += len(data)
        self._arrived.set()
        if self._unread_size >= _UNREAD_BYTES and self._channel is not None:
            self._channel.pause_reading()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def exit_status_received(self, status: int) -> None:
        self._code = status
        # The program's end is the end, even while a child of its keeps the channel open. Its last words come first.
        asyncio.get_running_loop().call_later(GOODBYE_S / 2, self._end)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._signal = f"SIG{signal}"

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken_by = str(exc or "")
        self._end()
        self._closed.set()
        self._room.set()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()
