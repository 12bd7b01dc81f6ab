"""Host keys: what known_hosts says of one, and the refusal when it does not vouch for it.

Every connection is checked by asyncssh against known_hosts and nothing else; here is only what is told about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncssh

from supervisor.errors import HostRefused


@dataclass(frozen=True, slots=True)
class Sight:
    """A key that was shown, under the name by which known_hosts is asked."""

    host: str
    addr: str
    port: int
    is_alias: bool  # HostKeyAlias: a name without a port, to ssh(1)
    key: asyncssh.SSHKey


@dataclass(frozen=True, slots=True)
class Shown:
    """The same for people: whose key, and the line that would pin it."""

    name: str  # gpu01, or jump host gate of gpu01
    entry: str  # its name in known_hosts
    address: str
    kind: str
    fingerprint: str
    line: str
    known_hosts: Path
    pinned: str  # the fingerprints that are there instead, if any


class HostKeyRefused(HostRefused):
    """The host is not known, or not by this key."""

    def __init__(self, message: str, hint: str, shown: Shown) -> None:
        super().__init__(message, hint)
        self.shown = shown


def host_key_refused(name: str, seen: Sight, known_hosts: Path, pins: asyncssh.SSHKnownHosts) -> HostKeyRefused:
    entry = seen.host if seen.port == 22 or seen.is_alias else f"[{seen.host}]:{seen.port}"
    kind, blob, *_ = seen.key.export_public_key().decode().split()
    pinned = ", ".join(key.get_fingerprint("sha256") for key in known(pins, seen.host, seen.addr, seen.port, seen.is_alias))
    fingerprint = seen.key.get_fingerprint("sha256")
    shown = Shown(name, entry, seen.addr, kind, fingerprint, f"{entry} {kind} {blob}", known_hosts, pinned)
    message = f"{name} shows the host key {fingerprint}, "
    if pinned:
        message += f"but {known_hosts} pins {pinned}: another machine, or a new key"
        return HostKeyRefused(message, f"if the change is meant: {forget(shown)}, then: noray hosts --trust", shown)
    message += f"which {known_hosts} does not know"
    hint = f"to see and pin the keys of all hosts: noray hosts --trust (by hand, add to that file: {shown.line})"
    return HostKeyRefused(message, hint, shown)


def forget(shown: Shown) -> str:
    """The command that takes a pinned key away."""
    return f"ssh-keygen -R '{shown.entry}' -f {shown.known_hosts}"


def known(pins: asyncssh.SSHKnownHosts, host: str, addr: str, port: int, is_alias: bool) -> list[asyncssh.SSHKey]:
    """What is pinned for that very port. (With another one pinned, the host may be known all the same; it is not changed.)"""
    if port == 22:
        return list(pins.match(host, addr, None)[0])
    names = [f"[{name}]:{port}" for name in (host, addr) if name] + [host] * is_alias
    return [key for name in names for key in pins.match(name, "", None)[0]]
