"""Lines of JSON over any two-way stream of bytes, and what to say when the stream ends.

`Pipe` is what a new way to reach hosts has to provide; everything above it (lines, limits, timeouts, sentences) is
written once, here and in `bootstrap.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import anyio

from supervisor.errors import HostUnreachable
from supervisor.transport.base import MAX_LINE_BYTES, SEND_TIMEOUT_S

TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Ending:
    """How a pipe ended. Neither code nor signal: the line was lost, and the program may well be alive."""

    code: int | None = None
    signal: str = ""
    complaint: str = ""  # the tail of its stderr, or what broke the line

    def __str__(self) -> str:
        if self.signal:
            return f"was killed by {self.signal}"
        return f"ended with exit code {self.code}"


class Pipe(Protocol):
    """Bytes to and from one host-side process. Only write() raises, and only HostUnreachable."""

    async def read(self) -> bytes:
        """Some bytes; b"" at the end, however it came, again and again. If cancelled, no byte is lost."""

    async def write(self, data: bytes) -> None:
        """All of it into the buffer at once, then wait for room. If cancelled, it is wholly on its way."""

    async def ending(self) -> Ending:
        """After read() gave b"": how it ended. Waits a moment for the answer to arrive."""

    def abort(self) -> None:
        """Break it now, so that whoever waits in read() or write() wakes up. Idempotent."""

    async def aclose(self) -> None:
        """Let go of process and descriptors. Bounded, idempotent, finishes also under cancellation."""


class LineReader:
    """Takes lines off a pipe. State survives cancellation; for one task at a time."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._buffer = bytearray()
        self._searched = 0  # so that a 4 MiB line in 32 KiB pieces is not searched from its start each time

    async def line(self) -> bytes | None:
        """The next line without its end; None at the end of the pipe; ValueError for one beyond MAX_LINE_BYTES."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched >= MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
            data = await self._pipe.read()
            if not data:
                return None
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    async def skip_past(self, marker: bytes) -> tuple[bytes, bool]:
        """What came before the marker (its last TAIL_BYTES), and whether the marker came at all."""
        while (at := self._buffer.find(marker)) < 0:
            del self._buffer[: -(TAIL_BYTES + len(marker))]
            data = await self._pipe.read()
            if not data:
                return bytes(self._buffer[-TAIL_BYTES:]), False
            self._buffer += data
        before = bytes(self._buffer[:at][-TAIL_BYTES:])
        del self._buffer[: at + len(marker)]
        return before, True


class LineChannel:
    """The Channel over any pipe; see base.py for the guarantees."""

    def __init__(self, host: str, pipe: Pipe, lines: LineReader, preamble: str, on_close: Callable[[LineChannel], None]):
        self.preamble = preamble
        self._host = host
        self._pipe = pipe
        self._lines = lines
        self._sending = anyio.Lock()
        self._lost = ""  # the first reason; later ones are only its echoes
        self._read_out = False  # a line lost in send() may still hold the program's last words
        self._on_close = on_close

    async def send(self, message: Mapping[str, object]) -> None:
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(data) > MAX_LINE_BYTES:
            raise ValueError(f"a message of {len(data)} bytes, the limit is {MAX_LINE_BYTES}")
        if self._lost:
            raise HostUnreachable(self._lost)
        try:
            with anyio.fail_after(SEND_TIMEOUT_S):
                async with self._sending:
                    await self._pipe.write(data)
        except TimeoutError:
            raise self._lose(f"{self._host} took no message for {SEND_TIMEOUT_S:g} s") from None
        except HostUnreachable as exc:
            raise self._lose(str(exc)) from exc

    def __aiter__(self) -> AsyncIterator[dict[str, object]]:
        return self

    async def __anext__(self) -> dict[str, object]:
        if self._read_out:
            raise HostUnreachable(self._lost)
        try:
            line = await self._lines.line()
            if line is not None:
                return parse(line)
            reason = obituary(self._host, await self._pipe.ending())
        except (ValueError, RecursionError) as exc:
            reason = f"cannot understand what {self._host} says: {exc}"
        self._read_out = True
        raise self._lose(reason)

    async def aclose(self) -> None:
        self._lost = self._lost or f"the line to {self._host} was closed here"
        self._read_out = True
        try:
            await self._pipe.aclose()
        finally:
            self._on_close(self)

    def _lose(self, reason: str) -> HostUnreachable:
        self._lost = self._lost or reason
        self._pipe.abort()
        return HostUnreachable(self._lost)


def parse(line: bytes) -> dict[str, object]:
    try:
        message = json.loads(line)
    except ValueError:
        raise ValueError(f"{line[:200]!r} is not JSON") from None
    if not isinstance(message, dict):
        raise ValueError(f"{line[:200]!r} is not a JSON object")
    return message


def obituary(host: str, ending: Ending) -> str:
    # Only a host that told us how its program ended is quoted on it; a silent end is a lost line, never an exit.
    if ending.code is None and not ending.signal:
        return f"the line to {host} was lost" + (f": {ending.complaint}" if ending.complaint else "")
    return f"the host program on {host} {ending}" + (f": {ending.complaint}" if ending.complaint else "")


def tail(raw: bytes) -> str:
    """The last bytes of what a program printed, for one sentence: its lines joined, control characters gone."""
    text = raw[-TAIL_BYTES:].decode("utf-8", "replace")
    lines = ("".join(ch for ch in line if ch.isprintable()).strip() for line in text.splitlines())
    return " | ".join(line for line in lines if line)
