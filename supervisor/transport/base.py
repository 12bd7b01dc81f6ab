"""The contract every transport keeps: reach one host, hold conversations with programs there.

A transport is one *generation* of the way to a host: once its line is lost it stays lost, and reconnecting means a new
object. So a late answer of an old connection can never be taken for one of the new.

The only two errors are HostRefused (the host, or its configuration, says no: a human must act) and HostUnreachable (no
answer, or the line broke: says nothing about what runs there). `tests/transport/test_contract.py` holds every
transport to this file, the fake one too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_CHANNELS = 4  # sshd's MaxSessions is 10, and a person's own ssh may share the connection limit of a jump host
MAX_LINE_BYTES = 4 * 1024 * 1024
SEND_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class HostAddress:
    """How to reach one host. For ssh, what is None is asked from ssh_config, where `name` or `address` may be an alias.

    `ssh_config`: the only file read, instead of the user's and the system's.
    """

    name: str
    transport: str = "local"
    address: str | None = None
    port: int | None = None
    user: str | None = None
    python: str = "python3"
    known_hosts: Path | None = None
    key: Path | None = None
    ssh_config: Path | None = None
    host_dir: str | None = None


class Channel(Protocol):
    """One conversation with one host-side program: JSON objects, one per line, both ways, in order."""

    @property
    def preamble(self) -> str:
        """What login scripts printed before the conversation began, at most 4 KiB."""

    async def send(self, message: Mapping[str, object]) -> None:
        """Hand the message to the line; raises HostUnreachable when that is broken or does not move for 10 s.

        Safe from several tasks. If cancelled, the message was sent whole or not at all. Returning means "on its way",
        never "received".
        """

    def __aiter__(self) -> AsyncIterator[dict[str, object]]:
        """What the program says. Ends only by raising HostUnreachable, never quietly, also after our own `aclose`.

        For one task at a time. If cancelled, no message is lost: iterate again. Whoever does not read stops the
        program, never another channel.
        """

    async def aclose(self) -> None:
        """Hang up; idempotent, also under cancellation. The program sees the end of its input."""


class Transport(Protocol):
    @property
    def host(self) -> str:
        """The name of the host in the inventory."""

    async def open(self, program: str, timeout_s: float) -> Channel:
        """Start a host-side program and talk to it; raises HostRefused or HostUnreachable.

        If it fails or is cancelled, nothing of it stays behind here, and the program there, if it got so far, sees the
        end of its input. At most MAX_CHANNELS at a time: one more is HostRefused.
        """

    async def aclose(self) -> None:
        """Hang up every channel and the connection under them; idempotent, also under cancellation."""
