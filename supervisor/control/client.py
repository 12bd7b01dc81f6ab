"""The CLI's side of the control socket.

Three ways of not getting an answer, because something different is to be done about each. Nobody is there
(NoController): ask the hosts instead, or become the controller. It died while answering (ControllerLost, a
NoController): an order may or may not have been taken. It is there and silent (ControllerSilent): never start a second
one beside it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from supervisor.control import wire
from supervisor.control.address import address, peer
from supervisor.control.stream import Gone, Stream, dial
from supervisor.errors import HostRefused, NorayError

HELLO_S = 5.0


class NoController(NorayError):
    """No socket there, or nobody behind it."""


class ControllerLost(NoController):
    """It went away in the middle of an answer."""


class ControllerSilent(NorayError):
    """It holds its socket and says nothing: stopped, or stuck. `pid` is the kernel's word."""

    def __init__(self, pid: int, patience_s: float) -> None:
        super().__init__(
            f"the controller (pid {pid}) has said nothing for {patience_s:g} s",
            f"it may be stopped: kill -CONT {pid}; work is not affected if you end it: kill -9 {pid}",
        )
        self.pid = pid


class Client:
    """One conversation, one request at a time. `pid` is the controller's; `lost` counts what a follower has missed."""

    def __init__(self, stream: Stream, path: Path) -> None:
        self._stream = stream
        self._lines = wire.Lines(wire.MAX_REPLY)
        self._idle = True
        self.pid, uid = peer(stream.socket)
        if os.getuid() not in (0, uid) and uid != 0:
            raise HostRefused(f"who listens at {path} is uid {uid}, not you", "set NORAY_SOCKET to your own controller's")
        self.version = ""
        self.lost = 0

    async def hello(self, patience_s: float) -> None:
        with anyio.move_on_after(patience_s) as patience:
            hello = (await self._message()).get("hello")
            self.version = str(hello.get("version", "")) if isinstance(hello, dict) else ""
        if patience.cancelled_caught:
            raise ControllerSilent(self.pid, patience_s)

    async def request(self, verb: str, **args: object) -> AsyncIterator[Mapping[str, object]]:
        """Yield the items of the answer; raise what the controller raised.

        Leaving the loop early leaves the answer unread: close the conversation, which also takes the request back.
        """
        if not self._idle:
            raise RuntimeError("the answer before this request was not read to its end")
        self._idle = False
        try:
            await self._stream.send(wire.encode_request(wire.Request(verb, args)))
        except Gone:
            pass  # why it hung up may still be there to read
        while True:
            message = await self._message()
            if "data" in message:
                item = message["data"]
                yield item if isinstance(item, dict) else {}
            elif "lost" in message:
                lost = message["lost"]
                self.lost += lost if isinstance(lost, int) else 0
            elif "done" in message:
                self._idle = True
                return

    async def _message(self) -> dict[str, object]:
        try:
            while (line := self._lines.next()) is None:
                self._lines.feed(await self._stream.receive(1 << 18))
        except wire.LineTooLong:
            raise NorayError(f"the controller sent a line over {wire.MAX_REPLY >> 20} MiB") from None
        except Gone:
            raise ControllerLost(
                f"the controller (pid {self.pid}) went away while answering", "see what is true now: noray status"
            ) from None
        message = wire.decode(line)
        if "error" in message:
            self._idle = True
            raise wire.decode_error(message["error"])
        return message


@asynccontextmanager
async def connect(path: Path, *, patience_s: float = HELLO_S) -> AsyncIterator[Client]:
    """A conversation with the controller at `path`. Leaving the block hangs up.

    `patience_s` is for its first word; an answer may take as long as it takes.
    """
    try:
        with address(path) as where, anyio.fail_after(patience_s):
            connected = await dial(where)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise NoController(f"no controller at {path}", "start one: noray up") from None
    except PermissionError:
        raise HostRefused(f"{path} belongs to somebody else", "ask its owner, or use sudo") from None
    except TimeoutError:
        raise NorayError(f"the controller at {path} takes no more clients", "see: ss -xlp") from None
    with connected:
        client = Client(Stream(connected), path)
        await client.hello(patience_s)
        yield client
