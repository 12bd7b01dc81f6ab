"""The controller's ear: many clients, each in a task of its own, none of which can hold up the controller or another.

`handle` answers one request by yielding items. It may raise NorayError: that is an answer. Anything else it raises is
a bug: the client is told, and the exception goes on to end the controller. It is cancelled when its client hangs up, so
a verb that changes something hands its order to the inbox first and then only watches.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from supervisor.control import wire
from supervisor.control.address import listening, peer
from supervisor.control.outbox import Outbox
from supervisor.control.stream import Gone, Stream, accept
from supervisor.errors import HostRefused, NorayError, UsageError

Handle = Callable[[wire.Request], AsyncIterator[Mapping[str, object]]]

CLEANUP_S = 2.0  # what a handler may still do once its client is gone
FAREWELL_S = 2.0  # for the last line to a client that may not be reading


async def serve(path: Path, handle: Handle, *, version: str = "", task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
    """Answer at `path` until cancelled. Raises AlreadyRunning before `started` if a live controller is there."""
    async with listening(path) as listener, anyio.create_task_group() as clients:
        task_status.started()
        while True:
            clients.start_soon(converse, await accept(listener), handle, version)


async def converse(connected: socket.socket, handle: Handle, version: str) -> None:
    lines = wire.Lines(wire.MAX_REQUEST)
    stream = Stream(connected)
    with connected:
        try:
            admit(stream)
            await stream.send(wire.encode({"hello": {"v": wire.VERSION, "pid": os.getpid(), "version": version}}))
            while True:
                line = lines.next()
                if line is None:
                    lines.feed(await stream.receive())
                    continue
                if not await answer(stream, lines, wire.decode_request(line), handle):
                    return
        except NorayError as error:
            await farewell(stream, error)
        except wire.LineTooLong:
            await farewell(stream, UsageError(f"a request is longer than {wire.MAX_REQUEST >> 20} MiB"))
        except Gone:
            pass  # gone: its own business


def admit(stream: Stream) -> None:
    """Ours or root's, or out. The file mode says so already; this holds where the file was passed on."""
    _, uid = peer(stream.socket)
    if uid not in (0, os.getuid()):
        raise HostRefused(f"this controller belongs to uid {os.getuid()}, you are uid {uid}")


async def farewell(stream: Stream, error: NorayError) -> None:
    with anyio.move_on_after(FAREWELL_S):
        try:
            await stream.send(wire.encode_error(error))
        except Gone:
            pass


async def answer(stream: Stream, lines: wire.Lines, request: wire.Request, handle: Handle) -> bool:
    """One request, whole. False if the client is gone: then the handler has been cancelled."""
    outbox = Outbox(follow=request.follow)
    bug: Exception | None = None
    sent = False

    async def write() -> None:
        nonlocal sent
        try:
            while (piece := await outbox.take()) is not None:
                await stream.send(piece)
            sent = True
        except Gone:
            pass
        group.cancel_scope.cancel()

    async def listen_on() -> None:
        # The next request may come early; the end of the stream means that nobody is there to read the answer.
        try:
            while len(lines) <= wire.MAX_REQUEST:
                lines.feed(await stream.receive())
        except Gone:
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        group.start_soon(listen_on)
        try:
            outbox.close(wire.encode({"done": {"items": await produce(request, handle, outbox)}}))
        except NorayError as error:
            outbox.close(wire.encode_error(error))
        except Exception as error:
            bug = error
            told = NorayError(f"the controller has a bug: {error!r}", "its log has the traceback: noray events")
            outbox.close(wire.encode_error(told))
        if bug is not None:
            with anyio.move_on_after(FAREWELL_S):
                await anyio.sleep_forever()  # until the writer has told the client, which cancels the group
            group.cancel_scope.cancel()
    if bug is not None:
        raise bug
    return sent


async def produce(request: wire.Request, handle: Handle, outbox: Outbox) -> int:
    """Run the handler to its end, here and in one task, as generators with cancel scopes inside demand."""
    items = handle(request)
    count = 0
    try:
        async for item in items:
            await outbox.put(wire.encode({"data": item}))
            count += 1
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            with anyio.move_on_after(CLEANUP_S, shield=True):
                await close()
    return count
