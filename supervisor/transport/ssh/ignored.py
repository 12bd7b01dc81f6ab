"""What ssh_config may say and noray does not do, and what it does instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisor.transport.ssh.config import Lookup

# ssh_config -> what asyncssh calls it; given on as they stand
ALGORITHMS = {
    "ciphers": "encryption_algs",
    "hostkeyalgorithms": "server_host_key_algs",
    "kexalgorithms": "kex_algs",
    "macs": "mac_algs",
}
HONOURED = {
    "addressfamily", "bindaddress", "certificatefile", "compression", "hostkeyalias", "hostname", "identitiesonly",
    "identityagent", "identityfile", "port", "proxycommand", "proxyjump", "tag", "user", *ALGORITHMS,
}  # fmt: skip

# What noray does instead, where that is worth a word.
_CHECKED = "host keys are always checked, against {known_hosts} alone"
_NO_SESSION = "noray's channels carry its own program and nothing else"
INSTEAD = {
    "stricthostkeychecking": _CHECKED,
    "userknownhostsfile": _CHECKED,
    "globalknownhostsfile": _CHECKED,
    "knownhostscommand": _CHECKED,
    "verifyhostkeydns": _CHECKED,
    "revokedhostkeys": _CHECKED + "; mark one there as @revoked",
    "updatehostkeys": "keys are pinned by noray hosts --trust, and by nothing else",
    "controlmaster": "noray keeps one connection of its own per host",
    "controlpath": "noray keeps one connection of its own per host",
    "controlpersist": "noray keeps one connection of its own per host",
    "serveraliveinterval": "noray asks every 2 s, and gives up after 3 without an answer",
    "serveralivecountmax": "noray asks every 2 s, and gives up after 3 without an answer",
    "connecttimeout": "noray has deadlines of its own",
    "connectionattempts": "noray tries again by itself",
    "forwardagent": "the agent is never forwarded",
    "forwardx11": _NO_SESSION,
    "forwardx11trusted": _NO_SESSION,
    "localforward": _NO_SESSION,
    "remoteforward": _NO_SESSION,
    "dynamicforward": _NO_SESSION,
    "remotecommand": _NO_SESSION,
    "localcommand": _NO_SESSION,
    "requesttty": _NO_SESSION,
    "sendenv": "variables are given in env: of the inventory or the deployment",
    "setenv": "variables are given in env: of the inventory or the deployment",
    "passwordauthentication": "noray logs in by key only",
    "kbdinteractiveauthentication": "noray logs in by key only",
    "challengeresponseauthentication": "noray logs in by key only",
    "preferredauthentications": "noray logs in by key only",
    "pubkeyauthentication": "noray logs in by key only",
    "gssapiauthentication": "noray logs in by key only",
    "hostbasedauthentication": "noray logs in by key only",
    "pkcs11provider": "noray uses key files and the agent",
    "canonicalizehostname": "names are dialled as they stand",
    "canonicaldomains": "names are dialled as they stand",
    "proxyusefdpass": "the program of ProxyCommand is spoken to by its standard input and output",
}


@dataclass(frozen=True, slots=True)
class Ignored:
    """A directive that holds for this host in ssh(1) and that noray does not honour. `instead` may be empty."""

    directive: str
    place: str
    instead: str = ""


def ignored(found: Lookup, is_ip: bool, pins: Path, led: bool) -> Iterator[Ignored]:
    for said in found.said:
        keyword, text = said.keyword.lower(), f"{said.keyword} {said.value}"
        if keyword not in HONOURED:
            yield Ignored(text, said.place, INSTEAD.get(keyword, "").format(known_hosts=pins))
        elif keyword == "hostname" and is_ip:
            yield Ignored(text, said.place, "the inventory's IP address is dialled")
        elif keyword in ("proxyjump", "proxycommand") and led:
            yield Ignored(text, said.place, "it is reached through the jump host before it")
    for said, word in found.passed_over:
        yield Ignored(f"Match {said.value}", said.place, f"noray does not judge {word}, so what follows there is left out")
