"""The way to one host: what is used, hop by hop, each value with the place it comes from, and what is said and not used.

The inventory beats ssh_config. Its `address` is what one would type after `ssh`: a name may be an alias, and is whatever
HostName makes of it; an IP address is no alias, and is dialled as it stands.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from supervisor.errors import HostRefused
from supervisor.transport.base import HostAddress
from supervisor.transport.ssh import config
from supervisor.transport.ssh.config import ConfigError, Lookup, Said
from supervisor.transport.ssh.ignored import ALGORITHMS, Ignored, ignored

INVENTORY, DEFAULT = "hosts.yaml", "default"
DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")  # the order of ssh(1)

FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Setting:
    """One value that is used. `place`: file:line, "hosts.yaml" or "default"."""

    name: str
    value: str
    place: str


@dataclass(frozen=True, slots=True)
class Identity:
    path: Path
    must_exist: bool  # said in the inventory; what ssh_config names may be missing, as with ssh(1)


@dataclass(frozen=True, slots=True)
class Hop:
    """One login. `settings` say the same as the other fields, for people."""

    alias: str
    host: str
    port: int
    user: str
    identities: tuple[Identity, ...]
    identities_only: bool
    agent: str  # its socket; empty for none
    certificates: tuple[Path, ...]
    proxy_command: str
    host_key_alias: str
    family: str
    bind: str
    compression: bool
    algorithms: Mapping[str, str]  # asyncssh's name -> as written
    settings: tuple[Setting, ...]
    ignored: tuple[Ignored, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """All logins on the way to one host, the host's own last."""

    name: str
    hops: tuple[Hop, ...]
    known_hosts: Path


def _route(address: HostAddress) -> Route:
    """Reads the files; may run programs (`Match exec`), so not for the event loop. Raises ConfigError or OSError."""
    hops: list[Hop] = []
    wanted = _Wanted(address.address or address.name, address.user, address.port, INVENTORY)
    _visit(wanted, (), False, address, config.files(address.ssh_config), hops)
    return Route(address.name, tuple(hops), known_hosts(address))


async def settings(address: HostAddress) -> Route:
    """What a connection to this host uses, and what ssh_config says that it does not. Nothing is dialled.

    Raises HostRefused for files that cannot be read as ssh_config. May run the programs of `Match exec`.
    """
    try:
        return await anyio.to_thread.run_sync(_route, address, abandon_on_cancel=True)
    except (OSError, ValueError, RuntimeError) as exc:  # RuntimeError: Path, where nobody says what our home is
        raise HostRefused(f"cannot use the ssh settings for {address.name}: {exc}") from exc


def known_hosts(address: HostAddress) -> Path:
    return address.known_hosts or Path.home() / ".ssh" / "known_hosts"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A hop as somebody names it: the inventory, or a word of ProxyJump."""

    alias: str
    user: str | None
    port: int | None
    place: str


def _visit(
    wanted: _Wanted, over: tuple[str, ...], led: bool, address: HostAddress, paths: Sequence[Path], hops: list[Hop]
) -> None:
    """Add the hop, after those that its own ProxyJump asks for; `led`: it is reached through the one before, whatever it asks.

    `over`: who needs this one, and who needs that.
    """
    if wanted.alias in over:
        raise ConfigError(f"{wanted.place}: to reach {wanted.alias}, {wanted.alias} would have to be jumped over")
    is_ip = wanted.place == INVENTORY and address.address is not None and _is_ip(wanted.alias)
    found = Lookup(wanted.alias, wanted.user, wanted.port, wanted.alias if is_ip else "").read(paths)
    way = None if led else found.way
    if way is not None and way.keyword.lower() == "proxyjump":
        for n, jump in enumerate(_jumps(found, way)):
            _visit(jump, (*over, wanted.alias), n > 0, address, paths, hops)
    hops.append(_hop(wanted, found, address, way, led, is_ip))


def _jumps(found: Lookup, said: Said) -> Iterator[_Wanted]:
    for word in found.expanded(said, said.value, found.tokens()).split(","):
        parts = re.fullmatch(r"(?:ssh://)?(?:(?P<user>.+)@)?(?P<host>\[[^\]]+\]|[^\[\]:]+)(?::(?P<port>\d+))?/?", word.strip())
        if parts is None:
            raise said.error(f"found {word!r}, allowed: [user@]host[:port], several with commas between them")
        yield _Wanted(parts["host"].strip("[]"), parts["user"], int(parts["port"]) if parts["port"] else None, said.place)


def _hop(wanted: _Wanted, found: Lookup, address: HostAddress, way: Said | None, led: bool, is_ip: bool) -> Hop:
    last = wanted.place == INVENTORY
    pins = known_hosts(address)
    shown: list[Setting] = []

    def show(name: str, value: str, said: Said | None, place: str = DEFAULT) -> None:
        if value:
            shown.append(Setting(name, value, said.place if said else place))

    show("address", found.host, None if is_ip else found.first("hostname"), wanted.place)
    show("port", str(found.where), None if wanted.port else found.first("port"), wanted.place if wanted.port else DEFAULT)
    show("user", found.login, None if wanted.user else found.first("user"), wanted.place if wanted.user else DEFAULT)
    identities = tuple(_identities(found, address, last, shown))
    agent = _agent(found, shown)
    certificates = [said for said in found.all("certificatefile") if said.value.lower() != "none"]
    for each in certificates:
        show("certificate", str(_path(found, each)), each)
    command = found.expanded(way, way.value, found.tokens()) if way and way.keyword.lower() == "proxycommand" else ""
    if way is not None:
        show("proxy command" if command else "jump", command or way.value, way)
    key_alias, family, bind = (_word(found, key) for key in ("hostkeyalias", "addressfamily", "bindaddress"))
    show("host key alias", key_alias, found.first("hostkeyalias"))
    show("address family", family, found.first("addressfamily"))
    show("bind address", bind, found.first("bindaddress"))
    algorithms = {}
    for key, name in ALGORITHMS.items():
        if said := found.first(key):
            algorithms[name] = said.value
            show(said.keyword, said.value, said)
    show("known hosts", str(pins), None, INVENTORY if address.known_hosts else DEFAULT)
    return Hop(
        alias=wanted.alias, host=found.host, port=found.where, user=found.login, identities=identities,
        identities_only=_yes(found, "identitiesonly", shown), agent=agent,
        certificates=tuple(_path(found, each) for each in certificates), proxy_command=command, host_key_alias=key_alias,
        family=family, bind=bind, compression=_yes(found, "compression", shown), algorithms=algorithms,
        settings=tuple(shown), ignored=tuple(ignored(found, is_ip, pins, led)),
    )  # fmt: skip


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _identities(found: Lookup, address: HostAddress, last: bool, shown: list[Setting]) -> Iterator[Identity]:
    """The inventory's key instead of those of ssh_config; for a jump host, which has a key of its own, after them."""
    said = [] if last and address.key else [each for each in found.all("identityfile") if each.value.lower() != "none"]
    some: list[tuple[Identity, str]] = [(Identity(_path(found, each), False), each.place) for each in said]
    if address.key:
        some.append((Identity(address.key, True), INVENTORY))
    elif not found.all("identityfile"):
        keys = [Path.home() / ".ssh" / name for name in DEFAULT_KEYS]
        some = [(Identity(key, False), DEFAULT) for key in keys if key.exists()]
    for identity, place in some:
        shown.append(Setting("identity", str(identity.path), place))
        yield identity


def _agent(found: Lookup, shown: list[Setting]) -> str:
    said = found.first("identityagent")
    text = found.one("identityagent") or "SSH_AUTH_SOCK"
    if text.lower() == "none":
        agent = ""
    elif text == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    elif text.startswith("$") and not text.startswith("${"):
        agent = os.environ.get(text[1:], "")
    else:
        assert said is not None
        agent = str(_path(found, said))
    if agent or said:
        shown.append(Setting("agent", agent or "none", said.place if said else "SSH_AUTH_SOCK"))
    return agent


def _path(found: Lookup, said: Said) -> Path:
    if len(said.words) != 1:
        raise said.error(f"found {said.value!r}, allowed: one path")
    return Path(found.expanded(said, said.words[0], found.tokens(), environment=True)).expanduser()


def _yes(found: Lookup, keyword: str, shown: list[Setting]) -> bool:
    said = found.first(keyword)
    if said is None:
        return False
    if said.value.lower() not in ("yes", "true", "no", "false"):
        raise said.error(f"found {said.value!r}, allowed: yes or no")
    shown.append(Setting(said.keyword, said.value, said.place))
    return said.value.lower() in ("yes", "true")


def _word(found: Lookup, keyword: str) -> str:
    text = found.one(keyword) or ""
    if keyword == "addressfamily" and text.lower() not in ("", *FAMILIES):
        raise found.all(keyword)[0].error(f"found {text!r}, allowed: {', '.join(FAMILIES)}")
    return "" if text.lower() == "none" else text
