"""What a kind is: pure knowledge of how to launch one sort of process, and nothing else.

A kind turns what the operator wrote into a `LaunchSpec`. It never awaits, reads a file or opens a port. Ports may be
left to the host: a `${port.NAME}` in argv or env is replaced there by the number that was bind-tested and claimed, the first
of them where a process opens several in a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
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

    namespace: str  # the deployment's name; see `namespace_of` for what Dynamo is told
    discovery: str  # "etcd" or "file"
    etcd_urls: tuple[str, ...] = ()
    file_kv: str = ""  # directory of the file store, discovery "file" only
    lease_ttl_s: int = 60
    request_plane: str = "tcp"
    event_plane: str = "zmq"
    nats_url: str = ""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """How to run one process. `ports` maps a name to a fixed number, or 0 = chosen on the host at each start."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)  # what the operator's own env does not change
    defaults: Mapping[str, str] = field(default_factory=dict)  # what it may
    ports: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)  # how many in a row, of those that are more than one
    bind: str = "127.0.0.1"  # the address the ports are bind-tested on
    binds: Mapping[str, str] = field(default_factory=dict)  # ports that listen elsewhere than `bind`
    gpu_free: float = 0.0  # the part of its GPUs' memory that must be free before it starts, 0..1


@dataclass(frozen=True, slots=True)
class Stop:
    """Default times of a stop. One SIGTERM to the leader begins both: it is Dynamo's own drain.

    `drain_s`: for what is in flight. `term_s`: for the process itself. After both comes SIGKILL; a second Ctrl-C takes both
    away. `because` says to an operator where the numbers come from.
    """

    drain_s: float
    term_s: float
    because: str


# For every kind, in seconds: what SIGKILL does not end in time is stuck; so long may the memory of its GPUs take to come
# back. As in hostside/ladder.py, which nobody may import; a test compares them.
KILL_S = 10.0
RETURN_S = 30.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One line of the registry: how to launch, and what the rest of noray must know to treat it well.

    `alive_s`: how long one that was ready may give no sign of working before it is fenced, ended and started anew.
    Ranks order what must be ordered; equal ranks go together. `start_rank` gates *readiness*, not spawning: on a cold
    start all are spawned at once, since Dynamo itself retries etcd for 120 s and waiting costs 0.9 s.
    """

    launch: Callable[..., LaunchSpec]
    stop: Stop
    start_rank: int
    stop_rank: int
    alive_s: float
    cold_first: bool = field(default=False, kw_only=True)  # its first start on a host compiles what later ones only load
    ports: Mapping[str, str]  # every name `launch` uses, and what listens there
    owned: frozenset[str]  # engine flags in snake_case that noray sets itself; the operator's `args` must not


SEPARATOR = "_"

# Dynamo reads DYN_SYSTEM_PORT as a signed 16-bit number (1.4.2): a worker told 40000 exits 1 with "expected i16".
MAX_SYSTEM_PORT = 2**15 - 1


def namespace_of(cell: Cell, service: str) -> str:
    """The Dynamo namespace of one model. One each: a second model on one endpoint exits 0 and says nothing (1.4.2)."""
    return f"{cell.namespace}{SEPARATOR}{service}"


def namespace_prefix(cell: Cell) -> str:
    """What a frontend of this deployment looks for.

    Dynamo compares with a bare `startswith`. With a dash, deployment `lab` would serve the models of `lab-two`
    (measured); an underscore cannot stand in a deployment's name, so no prefix begins another. A dot cannot be the
    separator: `dyn://a.b.c.generate` is then cut in the wrong places and the worker never becomes ready.
    """
    return cell.namespace + SEPARATOR


def dynamo_env(cell: Cell) -> dict[str, str]:
    """The environment every Dynamo process of a cell shares."""
    env = {
        "DYN_DISCOVERY_BACKEND": cell.discovery,
        "DYN_REQUEST_PLANE": cell.request_plane,
        "DYN_EVENT_PLANE": cell.event_plane,
        # Plain lines without colours, not JSON lines: at 3 a.m. somebody reads them with `noray logs` or `less`. What
        # we need from them are a few phrases, which both forms contain; JSON would be half metadata, and never pure
        # (Python libraries and tracebacks write what they like).
        "DYN_LOG": "info",
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "PYTHONUNBUFFERED": "1",  # a crash must not take its last words along
    }
    if cell.nats_url:
        env["NATS_SERVER"] = cell.nats_url
    if cell.discovery == "etcd":
        env["ETCD_ENDPOINTS"] = ",".join(cell.etcd_urls)
        # Dynamo never registers again after a lost lease: everything exits 0. 60 s outlive an etcd restart; a dead
        # worker does not stay for 60 s, because its keeper revokes the lease.
        env["ETCD_LEASE_TTL"] = str(cell.lease_ttl_s)
    else:
        env["DYN_FILE_KV"] = cell.file_kv
    return env


def worker_env(site: Site, cell: Cell, service: str, model: str) -> dict[str, str]:
    """The environment of everything that registers in Dynamo and is routed to."""
    env = {
        **dynamo_env(cell),
        "DYN_NAMESPACE": namespace_of(cell, service),
        # Frontends fetch tokenizer and config here; without it a local model is never listed. Also the advertised
        # address, hence not 0.0.0.0.
        "DYN_SYSTEM_HOST": site.address,
        "DYN_SYSTEM_PORT": "${port.system}",
    }
    if cell.request_plane == "tcp":
        # The request plane. Its address is how we tell which instance in the registry is ours.
        env |= {"DYN_TCP_RPC_HOST": site.address, "DYN_TCP_RPC_PORT": "${port.rpc}"}
    if model.startswith("/"):
        env["HF_HUB_OFFLINE"] = "1"
    return env


def worker_ports(cell: Cell) -> dict[str, int]:
    """Over NATS it takes requests on no port of its own, and is told by its system port, which stands in its model card."""
    return {"system": 0, "rpc": 0} if cell.request_plane == "tcp" else {"system": 0}


WORKER_PORTS = {
    "system": "/health, /metrics, model metadata; at most MAX_SYSTEM_PORT",
    "rpc": "requests; names the instance in the registry",
}
# Of every worker's own flags: discovery and planes are the cell's.
WORKER_OWNED = frozenset({"namespace", "endpoint", "discovery_backend", "request_plane", "event_plane"})


def clashes(owned: frozenset[str], args: Mapping[str, object], extra_args: Sequence[str]) -> tuple[str, ...]:
    """The operator's flags that noray sets itself, as the operator wrote them."""
    bad = [key for key in args if key.replace("-", "_").removeprefix("no_") in owned]
    for word in extra_args:
        if word.startswith("--") and word[2:].partition("=")[0].replace("-", "_").removeprefix("no_") in owned:
            bad.append(word)
    return tuple(bad)


def parallel(args: Mapping[str, object], *sizes: str) -> int:
    """The product of an engine's parallel sizes; one that is not given, or no number, is 1."""
    values = (args.get(f"{size}_parallel_size") for size in sizes)
    return math.prod(value for value in values if type(value) is int and value > 0)


def given(key: str, args: Mapping[str, object], extra_args: Sequence[str]) -> bool:
    """Whether the operator gives this flag, either way."""
    words = (*args, *(word.partition("=")[0].removeprefix("--").replace("-", "_") for word in extra_args if word[:2] == "--"))
    return any(word.removeprefix("no_") == key for word in words)


def flags(args: Mapping[str, object]) -> tuple[str, ...]:
    """Engine flags from snake_case keys: true -> --x, false -> --no-x, mapping -> one JSON word, list -> its words."""
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
