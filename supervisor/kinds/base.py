"""What a kind is: pure knowledge of how to launch one sort of process, and nothing else.

A kind turns what the operator wrote into a `LaunchSpec`. It never awaits, reads a file or opens a port. Ports may be
left to the host: a `${port.NAME}` in argv or env is replaced there by the number that was bind-tested and claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Site:
    """One host as a launch sees it, told by the host itself."""

    python: str  # the interpreter of the Dynamo environment
    data_dir: str  # private to this deployment on this host; survives runs
    address: str  # what peers dial and services bind (`cluster_address`)


@dataclass(frozen=True, slots=True)
class Cell:
    """What all processes of one deployment agree on."""

    namespace: str
    discovery: str  # "etcd" or "file"
    etcd_urls: tuple[str, ...] = ()
    file_kv: str = ""  # directory of the file store, discovery "file" only
    lease_ttl_s: int = 60
    request_plane: str = "tcp"
    event_plane: str = "zmq"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """How to run one process. `ports` maps a name to a fixed number, or 0 = chosen on the host at each start."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    bind: str = "127.0.0.1"  # the address the ports are bind-tested on


def flags(args: Mapping[str, object]) -> tuple[str, ...]:
    """Engine flags from snake_case keys: true: --x, false: --no-x, mapping: one JSON word, list: repeated words."""
    import json

    words: list[str] = []
    for key, value in args.items():
        name = "--" + key.replace("_", "-")
        if value is None:
            continue
        if value is True:
            words.append(name)
        elif value is False:
            words.append("--no-" + key.replace("_", "-"))
        elif isinstance(value, Mapping):
            words += [name, json.dumps(value, separators=(",", ":"))]
        elif isinstance(value, (list, tuple)):
            words += [name, *(str(v) for v in value)]
        else:
            words += [name, str(value)]
    return tuple(words)
