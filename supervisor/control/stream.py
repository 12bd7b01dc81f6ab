"""Bytes over unix sockets: accept, dial, read, write.

anyio's own streams and listeners for these have a race on asyncio: a wait cancelled in the very tick in which its
socket becomes readable reports InvalidStateError, from the event loop or (older ones, anyio issue 1267) from `aclose`.
Here that tick is ordinary: a client with its answer hangs up while we stop listening to it. And their listener takes
"too many open files" for its end; a controller must not. `wait_readable` and a plain socket have neither trouble.
"""

from __future__ import annotations

import socket

import anyio
import anyio.lowlevel

PAUSE_S = 0.05  # before asking again for what may be had in a moment


class Gone(Exception):
    """The other side has hung up."""


class Stream:
    """One reader and one writer at a time. Cancelling a receive loses nothing."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    async def receive(self, size: int = 1 << 16) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                piece = self.socket.recv(size)
            except BlockingIOError:
                await anyio.wait_readable(self.socket)
            except OSError as error:
                raise Gone from error
            else:
                if not piece:
                    raise Gone
                return piece

    async def send(self, data: bytes) -> None:
        """All of it, or Gone. If cancelled, an unknown part was sent: hang up."""
        await anyio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self.socket)
            except OSError as error:
                raise Gone from error


async def accept(listener: socket.socket) -> socket.socket:
    """The next client. Out of descriptors or memory, it waits in the queue until there are some again."""
    await anyio.lowlevel.checkpoint()
    while True:
        try:
            connected, _ = listener.accept()
        except BlockingIOError:
            await anyio.wait_readable(listener)
        except OSError:
            await anyio.sleep(PAUSE_S)
        else:
            connected.setblocking(False)
            return connected


async def dial(address: str) -> socket.socket:
    """Connected, or the OSError. Waits for room in a full queue."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        while True:
            try:
                connecting.connect(address)
            except BlockingIOError:
                await anyio.sleep(PAUSE_S)
            else:
                return connecting
    except BaseException:
        connecting.close()
        raise
