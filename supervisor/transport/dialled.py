"""The Transport over any dialer: at most four channels, each opened within its time or not at all."""

from __future__ import annotations

from typing import Protocol

import anyio

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.transport.base import MAX_CHANNELS, HostAddress
from supervisor.transport.bootstrap import handshake
from supervisor.transport.bundle import Bundle
from supervisor.transport.channel import LineChannel, Pipe


class Dialer(Protocol):
    """Starts the bootstrap command on one host. Raises only HostRefused and HostUnreachable."""

    async def dial(self) -> Pipe:
        """A pipe to a fresh interpreter. If cancelled, nothing stays behind."""

    async def aclose(self) -> None:
        """Let go of what the pipes shared. Bounded, idempotent, finishes also under cancellation."""


class DialledTransport:
    def __init__(self, address: HostAddress, dialer: Dialer, bundle: Bundle) -> None:
        self.host = address.name
        self._address = address
        self._dialer = dialer
        self._bundle = bundle
        self._channels: set[LineChannel] = set()
        self._opening = 0
        self._closed = False

    async def open(self, program: str, timeout_s: float) -> LineChannel:
        if self._closed:
            raise HostUnreachable(f"the line to {self.host} was closed here")
        if len(self._channels) + self._opening >= MAX_CHANNELS:
            raise HostRefused(f"{self.host} already holds {MAX_CHANNELS} conversations", hint="end one of them first")
        self._opening += 1
        step = "it does not answer"
        try:
            with anyio.fail_after(timeout_s):
                pipe = await self._dialer.dial()
                step = "it took the connection, but the host program did not start"
                return await self._converse(pipe, program)
        except TimeoutError:
            raise HostUnreachable(f"cannot reach {self.host} within {timeout_s:g} s: {step}") from None
        finally:
            self._opening -= 1
            if self._closed:  # closed while we dialled: what came up since belongs to nobody
                await self._dialer.aclose()

    async def _converse(self, pipe: Pipe, program: str) -> LineChannel:
        try:
            lines, preamble = await handshake(pipe, self._address, program, self._bundle)
            if self._closed:
                raise HostUnreachable(f"the line to {self.host} was closed here")
        except BaseException:
            await pipe.aclose()
            raise
        channel = LineChannel(self.host, pipe, lines, preamble, self._channels.discard)
        self._channels.add(channel)
        return channel

    async def aclose(self) -> None:
        self._closed = True
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for channel in list(self._channels):
                    tasks.start_soon(channel.aclose)
            await self._dialer.aclose()
