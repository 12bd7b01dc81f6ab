"""A transport in memory, scripted from the host's end; the contract suite keeps it honest.

host = FakeHost("gpu01", {"link": answer})     answer(channel, message) is called for every message that arrives
transport = host.transport()                   a new generation, as often as wanted
host.channels[-1].say({...})                   the program speaks
host.channels[-1].exit(3)                      the program ends
host.cut()                                     the line breaks, the programs live on (`host.running`)
host.refuses = HostRefused(...)                the next open() is told so; likewise `host.unreachable`
host.silent = True                             the next open() gets no answer
host.goodbye_s = 5                             to hang up takes so long
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping

import anyio
import anyio.lowlevel

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.transport.base import MAX_CHANNELS, MAX_LINE_BYTES
from supervisor.transport.channel import parse

Program = Callable[["FakeChannel", Mapping[str, object] | None], None]
"""Called with None when it starts, then with each message."""


class FakeHost:
    def __init__(self, name: str, programs: Mapping[str, Program]) -> None:
        self.name = name
        self.programs = programs
        self.refuses: HostRefused | None = None
        self.unreachable: HostUnreachable | None = None
        self.silent = False
        self.goodbye_s = 0.0
        self.knocks: list[float] = []  # when somebody tried to open a channel
        self.channels: list[FakeChannel] = []
        self.running: list[FakeChannel] = []  # programs that have not ended, whatever their lines do

    def transport(self) -> FakeTransport:
        return FakeTransport(self)

    def cut(self) -> None:
        for channel in self.channels:
            channel.lose(f"the line to {self.name} was lost")


class FakeTransport:
    def __init__(self, scripted: FakeHost) -> None:
        self.host = scripted.name
        self._scripted = scripted
        self._channels: list[FakeChannel] = []
        self._closed = False

    async def open(self, program: str, timeout_s: float) -> FakeChannel:
        await anyio.lowlevel.checkpoint()
        self._scripted.knocks.append(anyio.current_time())
        if self._closed:
            raise HostUnreachable(f"the line to {self.host} was closed here")
        if sum(not channel.closed for channel in self._channels) >= MAX_CHANNELS:
            raise HostRefused(f"{self.host} already holds {MAX_CHANNELS} conversations", hint="end one of them first")
        if self._scripted.refuses or self._scripted.unreachable:
            raise self._scripted.refuses or self._scripted.unreachable  # type: ignore[misc]
        if self._scripted.silent:
            with anyio.move_on_after(timeout_s):
                await anyio.sleep_forever()
            raise HostUnreachable(f"cannot reach {self.host} within {timeout_s:g} s: it does not answer")
        channel = FakeChannel(self._scripted, program)
        self._channels.append(channel)
        self._scripted.channels.append(channel)
        self._scripted.running.append(channel)
        self._scripted.programs[program](channel, None)
        return channel

    async def aclose(self) -> None:
        self._closed = True
        if self._scripted.goodbye_s:
            await anyio.sleep(self._scripted.goodbye_s)
        for channel in self._channels:
            channel.hang_up()


class FakeChannel:
    def __init__(self, scripted: FakeHost, program: str) -> None:
        self.preamble = ""
        self.program = program
        self.sent: list[dict[str, object]] = []  # by the controller
        self.closed = False
        self._scripted = scripted
        self._said: deque[str] = deque()
        self._lost = ""
        self._news = anyio.Event()

    # The controller's end.

    async def send(self, message: Mapping[str, object]) -> None:
        text = json.dumps(message, separators=(",", ":"))
        if len(text) >= MAX_LINE_BYTES:
            raise ValueError(f"a message of {len(text)} bytes, the limit is {MAX_LINE_BYTES}")
        await anyio.lowlevel.checkpoint()
        if self._lost:
            raise HostUnreachable(self._lost)
        self.sent.append(json.loads(text))
        self._scripted.programs[self.program](self, self.sent[-1])

    def __aiter__(self) -> AsyncIterator[dict[str, object]]:
        return self

    async def __anext__(self) -> dict[str, object]:
        await anyio.lowlevel.checkpoint()
        while not self._said or self.closed:
            if self._lost:
                raise HostUnreachable(self._lost)
            self._news = anyio.Event()
            await self._news.wait()
        try:
            return parse(self._said.popleft().encode())
        except ValueError as exc:
            self.lose(f"cannot understand what {self._scripted.name} says: {exc}")
            raise HostUnreachable(self._lost) from exc

    async def aclose(self) -> None:
        self.hang_up()

    # The host's end.

    def say(self, message: Mapping[str, object]) -> None:
        self.say_text(json.dumps(message))

    def say_text(self, text: str) -> None:
        if not self._lost:
            self._said.append(text)
            self._news.set()

    def exit(self, code: int, complaint: str = "") -> None:
        self._scripted.running.remove(self)
        reason = f"the host program on {self._scripted.name} ended with exit code {code}"
        self.lose(reason + (f": {complaint}" if complaint else ""))

    def lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._news.set()

    def hang_up(self) -> None:
        self.closed = True
        self.lose(f"the line to {self._scripted.name} was closed here")
        if self in self._scripted.running:
            self._scripted.running.remove(self)  # it saw the end of its input
