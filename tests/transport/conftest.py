"""One host behind each transport, with the same few handles for the suite."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import pytest

from supervisor.transport import HostAddress, Transport, bundle, transport_for
from tests.fakes import sshd
from tests.fakes.fake import FakeChannel, FakeHost

ECHO_HOST = bundle.build(Path(__file__).parent.parent / "fakes" / "echo_host")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Host(Protocol):
    name: str

    def transport(self) -> Transport: ...

    def cut(self) -> None:
        """Break every line to the host, not the programs on it."""

    def still_running(self) -> list[object]:
        """The host programs that have not ended, after giving those that are about to a moment."""


@dataclass
class RealHost:
    """Whatever transport_for() makes of the address, with the echo programs on the other side."""

    address: HostAddress
    transports: list[Transport] = field(default_factory=list)
    server: sshd.Sshd | None = None

    @property
    def name(self) -> str:
        return self.address.name

    @property
    def base(self) -> Path:
        """The host's own directory below host_dir."""
        assert self.address.host_dir
        (base,) = Path(self.address.host_dir).iterdir()
        return base

    def but(self, **changes: object) -> RealHost:
        """The same host under a changed address."""
        return replace(self, address=replace(self.address, **changes))  # type: ignore[arg-type]

    def transport(self) -> Transport:
        self.transports.append(transport_for(self.address, ECHO_HOST))
        return self.transports[-1]

    def cut(self) -> None:
        assert self.server is not None
        self.server.kill_sessions()

    def still_running(self) -> list[object]:
        return [pid for path in self.base.glob("pid-*") if not gone(pid := int(path.name[4:]))]


class ScriptedHost(FakeHost):
    """The echo programs once more, in memory."""

    def __init__(self) -> None:
        super().__init__("gpu01", {"echo": echo, "die": die, "flood": flood, "garbage": garbage, "hang": hang})

    def still_running(self) -> list[object]:
        return list(self.running)


def echo(channel: FakeChannel, message: object) -> None:
    if isinstance(message, dict):
        channel.say(message)


def die(channel: FakeChannel, message: object) -> None:
    if message is not None:
        channel.say({"last": "words"})
        channel.exit(3, "it was | all too much")


def flood(channel: FakeChannel, message: object) -> None:
    for _ in range(10_000):
        channel.say({"flood": "x"})


def garbage(channel: FakeChannel, message: object) -> None:
    channel.say_text("Traceback (most recent call last)")


def hang(channel: FakeChannel, message: object) -> None:
    pass


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    if sshd.MISSING:
        pytest.skip(sshd.MISSING)
    with sshd.Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def address_of(server: sshd.Sshd, host_dir: Path) -> HostAddress:
    return HostAddress(
        "gpu01",
        transport="ssh",
        address=server.address,
        port=server.port,
        user=server.user,
        python=sys.executable,
        known_hosts=server.known_hosts,
        key=server.key,
        host_dir=str(host_dir),
    )


@pytest.fixture
def host_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a short name: sockets must fit below it."""
    return tmp_path_factory.mktemp("h") / "host"


@pytest.fixture
async def local(host_dir: Path) -> AsyncIterator[RealHost]:
    host = RealHost(HostAddress("gpu01", python=sys.executable, host_dir=str(host_dir)))
    yield host
    for transport in host.transports:
        await transport.aclose()


@pytest.fixture
async def ssh(ssh_server: sshd.Sshd, host_dir: Path) -> AsyncIterator[RealHost]:
    host = RealHost(address_of(ssh_server, host_dir), server=ssh_server)
    yield host
    for transport in host.transports:
        await transport.aclose()


@pytest.fixture(params=["fake", "local", "ssh"])
def host(request: pytest.FixtureRequest) -> Host:
    if request.param == "fake":
        return ScriptedHost()
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def gone(pid: int, within_s: float = 5.0) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], within_s)[0])
    finally:
        os.close(pidfd)
