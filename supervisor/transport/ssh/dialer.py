"""One connection per host, made by the first channel, hop by hop; and what a refusal means, in our words."""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path
from typing import Any

import anyio
import asyncssh

from supervisor.errors import HostRefused, HostUnreachable
from supervisor.transport import bootstrap
from supervisor.transport.base import HostAddress
from supervisor.transport.ssh.hostkeys import Sight, host_key_refused, known
from supervisor.transport.ssh.keys import keys
from supervisor.transport.ssh.pipe import GOODBYE_S, SshPipe
from supervisor.transport.ssh.settings import FAMILIES, Hop, settings

KEEPALIVE_S = 2
KEEPALIVE_MISSES = 3
# For TCP to an address. Longer is no use: TCP asks again after 1, 2, 4, 8 s (since Linux 6.5 the first few are a second apart),
# and a host that is back would wait for one of those. A name has the time of a resolver whose first server is dead.
KNOCK_S = 3.0

asyncssh.set_log_level("WARNING")  # at INFO it tells of every channel


class SshDialer:
    """Opens channels on one connection. A lost connection stays lost: another generation is another dialer."""

    def __init__(self, address: HostAddress, asking: bool = False) -> None:
        """`asking`: only for its host keys, so known_hosts may be missing: then no key is known."""
        self._address = address
        self._asking = asking
        self._dialing = anyio.Lock()
        self._connections: list[asyncssh.SSHClientConnection] = []  # jump hosts first; the last one is the host's

    async def dial(self) -> SshPipe:
        command = bootstrap.command(self._address)
        connection = await self.login()
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

    async def login(self) -> asyncssh.SSHClientConnection:
        """The host's connection, made once. Raises HostRefused or HostUnreachable."""
        async with self._dialing:
            if not self._connections:
                self._connections = await self._connect()
            return self._connections[-1]

    async def aclose(self) -> None:
        connections, self._connections = self._connections[::-1], []
        with anyio.CancelScope(shield=True):
            await _hang_up(connections)

    async def _connect(self) -> list[asyncssh.SSHClientConnection]:
        """The host's connection, with those to its jump hosts before it."""
        name = self._address.name
        way = await settings(self._address)
        made: list[asyncssh.SSHClientConnection] = []
        try:
            for hop in way.hops:
                who = name if hop is way.hops[-1] else f"jump host {hop.alias} of {name}"
                made.append(await self._login(who, hop, way.known_hosts, made))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _hang_up(made[::-1])
            raise
        return made

    async def _login(
        self, name: str, hop: Hop, known_hosts: Path, via: list[asyncssh.SSHClientConnection]
    ) -> asyncssh.SSHClientConnection:
        pins = self._pins(name, hop, known_hosts)
        witness = _Witness()
        try:
            async with keys(hop) as pairs:
                said = {**options(hop, pins), "client_keys": pairs or None, "tunnel": via[-1] if via else None}
                if not via and not hop.proxy_command and _is_address(hop.host):
                    witness.knocking.deadline = anyio.current_time() + KNOCK_S
                with witness.knocking:
                    return await asyncssh.connect(client_factory=lambda: witness, **said)
                raise HostUnreachable(f"cannot reach {name}: nobody answers at {hop.host} within {KNOCK_S:g} s")
        except asyncssh.HostKeyNotVerifiable as exc:
            if witness.key is None:
                raise HostRefused(f"{name}: {exc.reason}", hint=f"compare with {known_hosts}") from exc
            raise host_key_refused(name, witness.sight(bool(hop.host_key_alias)), known_hosts, pins) from exc
        except asyncssh.PermissionDenied as exc:
            raise _login_refused(name, hop, exc.reason) from exc
        except (asyncssh.KeyExchangeFailed, asyncssh.ProtocolNotSupported, asyncssh.IllegalUserName) as exc:
            if seen := await _other_key(hop, pins, via):
                raise host_key_refused(name, seen, known_hosts, pins) from exc
            raise HostRefused(f"{name} and noray cannot agree on an ssh connection: {exc.reason}") from exc
        except (asyncssh.Error, OSError) as exc:
            if "authentication failures" in str(exc):  # how OpenSSH says "too many keys tried"
                raise _login_refused(name, hop, str(exc)) from exc
            # OpenSSH hangs up where there is nothing to agree on, often before we have found out ourselves.
            if witness.at_kex and (seen := await _other_key(hop, pins, via)):
                raise host_key_refused(name, seen, known_hosts, pins) from exc
            raise HostUnreachable(f"cannot reach {name}: {exc}", f"to look closer: ssh -v {_where(hop)}") from exc
        except ValueError as exc:
            raise HostRefused(f"cannot use the ssh settings for {name}: {exc}") from exc

    def _pins(self, name: str, hop: Hop, known_hosts: Path) -> asyncssh.SSHKnownHosts:
        try:
            text = known_hosts.read_text(errors="replace")
        except FileNotFoundError:
            if not self._asking:
                raise HostRefused(
                    f"{name}: host keys are always checked, and there is no known_hosts file {known_hosts}",
                    hint=f"to see and pin the keys of all hosts: noray hosts --trust (by hand: ssh-keyscan {_where(hop)})",
                ) from None
            text = ""
        except OSError as exc:
            raise HostRefused(f"{name}: cannot read {known_hosts}: {exc.strerror}") from exc
        try:
            return asyncssh.import_known_hosts(text)
        except ValueError as exc:
            raise HostRefused(f"{known_hosts}: {exc}") from exc


def options(hop: Hop, pins: asyncssh.SSHKnownHosts) -> dict[str, Any]:
    """What asyncssh is told, all of it: `config: None` keeps it from reading ssh_config by itself."""
    said = {
        "config": None,
        "host": hop.host,
        "port": hop.port,
        "username": hop.user,
        "known_hosts": pins,
        "host_key_alias": hop.host_key_alias or None,
        "x509_trusted_certs": None,  # known_hosts alone decides
        "family": FAMILIES[hop.family or "any"],
        "local_addr": (hop.bind, 0) if hop.bind else None,
        # ssh(1) gives it to a shell as well, and asyncssh would split it by itself.
        "proxy_command": ["/bin/sh", "-c", f"exec {hop.proxy_command}"] if hop.proxy_command else None,
        "agent_path": None,  # its keys are among client_keys, in the order of ssh(1)
        "preferred_auth": "publickey",
        "gss_host": None,
        "gss_kex": False,
        "gss_auth": False,
        "agent_forwarding": False,
        "x11_forwarding": False,
        "keepalive_interval": KEEPALIVE_S,
        "keepalive_count_max": KEEPALIVE_MISSES,
        **{name: usable for name, text in hop.algorithms.items() if (usable := _usable(name, text))},
    }
    return {**said, "compression_algs": "zlib@openssh.com,none"} if hop.compression else said


def _usable(name: str, text: str) -> str:
    """The list without what asyncssh has never heard of: lists are written for newer and older programs than ours."""
    sign = text[0] if text[0] in "+-^" else ""
    kept = []
    for each in text.removeprefix(sign).split(","):
        try:
            asyncssh.SSHClientConnectionOptions(config=None, client_keys=None, x509_trusted_certs=None, **{name: sign + each})
        except ValueError:
            continue
        kept.append(each)
    return sign + ",".join(kept) if kept else ""


async def _other_key(hop: Hop, pins: asyncssh.SSHKnownHosts, via: list[asyncssh.SSHClientConnection]) -> Sight | None:
    """The key of a host that has none of the pinned types. None: that is not why there was no agreement."""
    name, is_alias = hop.host_key_alias or hop.host, bool(hop.host_key_alias)
    pinned = [each.public_data for each in known(pins, name, "", hop.port, is_alias)]
    if not pinned:
        return None
    said = options(hop, pins)
    asked = ("config", "port", "family", "local_addr", "proxy_command", "kex_algs", "server_host_key_algs")
    arguments = {each: said[each] for each in asked if each in said}
    try:
        key = await asyncssh.get_server_host_key(hop.host, tunnel=via[-1] if via else None, **arguments)
    except (asyncssh.Error, OSError):
        return None
    return Sight(name, "", hop.port, is_alias, key) if key and key.public_data not in pinned else None


class _Witness(asyncssh.SSHClient):
    """Sees the key of a host that known_hosts does not vouch for, and never vouches for it either."""

    def __init__(self) -> None:
        self.host, self.addr, self.port = "", "", 22
        self.key: asyncssh.SSHKey | None = None
        self.at_kex = False  # connected, and no key agreed on
        self.knocking = anyio.CancelScope()  # whatever deadline it has: until somebody answers

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.at_kex = True
        self.knocking.deadline = math.inf

    def begin_auth(self, username: str) -> None:
        self.at_kex = False

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.host, self.addr, self.port, self.key = host, addr, port, key
        return False

    def sight(self, is_alias: bool) -> Sight:
        assert self.key is not None
        return Sight(self.host, self.addr, self.port, is_alias, self.key)


async def _hang_up(connections: list[asyncssh.SSHClientConnection]) -> None:
    for connection in connections:
        connection.close()
        with anyio.move_on_after(GOODBYE_S):
            await connection.wait_closed()
        connection.abort()


def _login_refused(name: str, hop: Hop, reason: str) -> HostRefused:
    return HostRefused(
        f"{name} refused the login of {hop.user}: {reason}",
        hint=f"this must work: ssh -o BatchMode=yes -l {hop.user} {_where(hop)}",
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _where(hop: Hop) -> str:
    return f"{f'-p {hop.port} ' if hop.port != 22 else ''}{hop.alias}"
