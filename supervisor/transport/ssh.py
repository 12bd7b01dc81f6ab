"""Hosts over SSH: the only file that knows asyncssh and asyncio, and the only one that translates their errors.

One connection per transport, made by the first open(); each host-side program has a channel of its own on it, with
its own window, so bulk on one never holds up another.

Scars. A channel whose connection died ends like one whose program ended, only without an exit status: that is a lost
line. `UserKnownHostsFile none` in somebody's ssh_config switches host key checks off, for a jump host too: so
known_hosts is always given, and jumps are made here, not by asyncssh. Keepalives are off by default.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import asyncssh

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.transport import bootstrap
from supervisor.transport.base import HostAddress
from supervisor.transport.channel import TAIL_BYTES, Ending, tail

KEEPALIVE_S = 2
KEEPALIVE_MISSES = 3
GOODBYE_S = 1.0

_UNREAD_BYTES = 1024 * 1024

asyncssh.set_log_level("WARNING")  # at INFO it tells of every channel


class SshDialer:
    """Opens channels on one connection. A lost connection stays lost: another generation is another dialer."""

    def __init__(self, address: HostAddress) -> None:
        self._address = address
        self._dialing = anyio.Lock()
        self._connections: list[asyncssh.SSHClientConnection] = []  # jump hosts first; the last one is the host's

    async def dial(self) -> SshPipe:
        command = bootstrap.command(self._address)
        async with self._dialing:
            if not self._connections:
                self._connections = await self._connect()
            connection = self._connections[-1]
        session = SshPipe(self._address.name)
        try:
            await connection.create_session(lambda: session, command, encoding=None, request_pty=False)
        except asyncssh.ChannelOpenError as exc:
            if not connection.is_closed():  # the code does not tell: OpenSSH uses that of a broken line for MaxSessions
                raise HostRefused(
                    f"{self._address.name} refused a session: {exc.reason}",
                    hint="see MaxSessions and ForceCommand in its sshd_config",
                ) from exc
            raise HostUnreachable(f"the line to {self._address.name} was lost: {exc.reason}") from exc
        except (asyncssh.Error, OSError) as exc:
            raise HostUnreachable(f"the line to {self._address.name} was lost: {exc}") from exc
        except BaseException:
            session.abort()
            raise
        return session

    async def aclose(self) -> None:
        connections, self._connections = self._connections[::-1], []
        with anyio.CancelScope(shield=True):
            await _hang_up(connections)

    async def _connect(self) -> list[asyncssh.SSHClientConnection]:
        """The host's connection, with those to its jump hosts before it."""
        address = self._address
        made: list[asyncssh.SSHClientConnection] = []
        try:
            settings = self._settings(address.address or address.name, address.user, address.port)
            for hop in await self._jumps(settings):
                user, _, place = hop.strip().rpartition("@")
                host, _, port = place.partition(":")
                jump = self._settings(host, user or None, int(port) if port.isdigit() else None)
                made.append(await self._login(f"jump host {host} of {address.name}", jump, made))
            made.append(await self._login(address.name, settings, made))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _hang_up(made[::-1])
            raise
        return made

    def _settings(self, host: str, user: str | None, port: int | None) -> dict[str, Any]:
        return {
            "host": host,
            "config": (),  # ~/.ssh/config; and () below means: whatever that says
            "port": port or (),
            "username": user or (),
            "known_hosts": str(self._known_hosts()),
            "x509_trusted_certs": None,  # known_hosts alone decides
            "client_keys": [str(self._address.key)] if self._address.key else (),
            "preferred_auth": "publickey",
            "gss_kex": False,
            "gss_auth": False,
            "agent_forwarding": False,
            "x11_forwarding": False,
            "keepalive_interval": KEEPALIVE_S,
            "keepalive_count_max": KEEPALIVE_MISSES,
        }

    async def _jumps(self, settings: dict[str, Any]) -> list[str]:
        try:
            options = await asyncssh.SSHClientConnectionOptions.construct(**settings)
        except (OSError, ValueError) as exc:  # ValueError: a key or an ssh_config that cannot be read as one
            raise HostRefused(f"cannot use the ssh settings for {self._address.name}: {exc}") from exc
        return options.tunnel.split(",") if isinstance(options.tunnel, str) else []

    def _known_hosts(self) -> Path:
        path = self._address.known_hosts or Path("~/.ssh/known_hosts").expanduser()
        if not path.is_file():
            raise HostRefused(
                f"{self._address.name}: host keys are always checked, and there is no known_hosts file {path}",
                hint=f"after comparing fingerprints: ssh-keyscan {_where(self._address)} >> {path}",
            )
        return path

    async def _login(
        self, name: str, settings: dict[str, Any], via: list[asyncssh.SSHClientConnection]
    ) -> asyncssh.SSHClientConnection:
        witness = _Witness()
        tunnel = via[-1] if via else None  # None: whatever ssh_config says, asyncssh makes no jumps of its own
        try:
            return await asyncssh.connect(tunnel=tunnel, client_factory=lambda: witness, **settings)
        except asyncssh.HostKeyNotVerifiable as exc:
            raise self._host_key_refused(witness, exc, name) from exc
        except asyncssh.PermissionDenied as exc:
            raise self._login_refused(settings, exc.reason, name) from exc
        except (asyncssh.KeyExchangeFailed, asyncssh.ProtocolNotSupported, asyncssh.IllegalUserName) as exc:
            raise HostRefused(
                f"{name} and noray cannot agree on an ssh connection: {exc.reason}",
                hint="a host key of another type than the pinned one looks like this too: compare with known_hosts",
            ) from exc
        except (asyncssh.Error, OSError) as exc:
            if "authentication failures" in str(exc):  # how OpenSSH says "too many keys tried"
                raise self._login_refused(settings, str(exc), name) from exc
            hint = f"if it stays so, look closer with: ssh -v {_where(self._address)}"
            raise HostUnreachable(f"cannot reach {name}: {exc}", hint) from exc
        except ValueError as exc:
            raise HostRefused(f"cannot use the ssh settings for {name}: {exc}") from exc

    def _host_key_refused(self, witness: _Witness, exc: asyncssh.HostKeyNotVerifiable, name: str) -> HostRefused:
        path = self._known_hosts()
        if witness.key is None:
            return HostRefused(f"{name}: {exc.reason}", hint=f"compare with {path}")
        shown = witness.key.get_fingerprint("sha256")
        entry = witness.host if witness.port == 22 else f"[{witness.host}]:{witness.port}"
        port = None if witness.port == 22 else witness.port
        pinned, *_ = asyncssh.read_known_hosts(str(path)).match(witness.host, witness.addr, port)
        if pinned:
            known = ", ".join(key.get_fingerprint("sha256") for key in pinned)
            return HostRefused(
                f"{name} shows the host key {shown}, but {path} pins {known}: another machine, or a new key",
                hint=f"if the change is meant: ssh-keygen -R '{entry}' -f {path}, then add the new key",
            )
        line = f"{entry} {witness.key.export_public_key().decode().strip()}"
        return HostRefused(
            f"{name} shows the host key {shown}, which {path} does not know",
            hint=f"if the host itself says the same (ssh-keygen -lf its key), add to that file: {line}",
        )

    def _login_refused(self, settings: dict[str, Any], reason: str, name: str) -> HostRefused:
        user = settings["username"]
        return HostRefused(
            f"{name} refused the login" + (f" of {user}" if user else "") + f": {reason}",
            hint=f"this must work: ssh -o BatchMode=yes {f'-l {user} ' if user else ''}{_where(self._address)}",
        )


class _Witness(asyncssh.SSHClient):
    """Sees the key of a host that known_hosts does not vouch for, and never vouches for it either."""

    def __init__(self) -> None:
        self.host, self.addr, self.port = "", "", 22
        self.key: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.host, self.addr, self.port, self.key = host, addr, port, key
        return False


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


async def _hang_up(connections: list[asyncssh.SSHClientConnection]) -> None:
    for connection in connections:
        connection.close()
        with anyio.move_on_after(GOODBYE_S):
            await connection.wait_closed()
        connection.abort()


def _where(address: HostAddress) -> str:
    return f"{f'-p {address.port} ' if address.port else ''}{address.address or address.name}"
