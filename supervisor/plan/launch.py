"""One process + what its host said of itself -> exactly what will be executed there. `up` and `plan -v` both end here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from supervisor.kinds import KINDS
from supervisor.kinds.base import Cell, LaunchSpec, Site, namespace_of
from supervisor.plan import login
from supervisor.plan.build import Plan

NEVER_INHERITED = (
    "DYN_",
    "ETCD_",
    "NATS_",
    "VLLM_",
    "NVIDIA_VISIBLE",
    "CUDA_VISIBLE",
    "CUDA_DEVICE",
    "PROMETHEUS_",
    "PYTHONPATH",
)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host said when its link began. `login`: the part of its login environment that children may see."""

    base: str
    login: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = ""
    hostname: str = ""
    python_version: str = ""
    version: str = ""  # of the host-side program: the name of its bundle
    clock_ahead_ms: int = 0  # its wall clock minus ours, the line's delay included


@dataclass(frozen=True, slots=True)
class Launch:
    """`spec` goes to the keeper and on disk; `env` goes to the keeper only. `${port.NAME}` is filled in there."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    spec: Mapping[str, object]
    secret_keys: frozenset[str]


def launch(plan: Plan, name: str, facts: HostFacts, secrets: Mapping[str, str], controller: str) -> Launch:
    """`secrets` are the variables of the host's env_file: last word over everything but what Dynamo must agree on."""
    process = plan.processes[name]
    host = plan.hosts[process.wanted.host]
    root = f"{facts.base}/data/{plan.deployment}"
    cell = Cell(
        namespace=plan.deployment,
        discovery=plan.discovery,
        etcd_urls=(plan.gateway,) if plan.gateway else plan.etcd_urls,
        file_kv=f"{root}/file-kv",
        lease_ttl_s=plan.lease_ttl_s,
        request_plane=plan.request_plane,
        event_plane=plan.event_plane,
        nats_url=plan.nats_url,
    )
    address = plan.addresses[host.name]
    site = Site(python=host.python, data_dir=f"{root}/{name}", address=address)
    kind = KINDS[process.wanted.kind]
    wanted: LaunchSpec = kind.launch(site, cell, **process.options)
    low, high = host.ports
    spec: dict[str, object] = {
        "process": name,
        "argv": list(wanted.argv),
        "ports": {
            port: [number, wanted.binds.get(port, wanted.bind), wanted.counts.get(port, 1)]
            for port, number in wanted.ports.items()
        },
        "port_range": [low, high],
        "needs": list(process.needs),
        "gpus": list(process.wanted.gpus),  # the host knows their UUIDs, and claims those
        "gpu_free": wanted.gpu_free,
        "term_s": process.wanted.drain_s + process.wanted.term_s,
        "stop_rank": process.wanted.stop_rank,
        "about": {"hash": process.wanted.launch_hash, "controller": controller, "service": process.wanted.service},
    }
    # A member that is away costs a second.
    near_first = sorted(plan.etcd_urls, key=lambda url: urlsplit(url).hostname != address)
    etcd = login.target(near_first, secrets, host.name) if plan.external else {"urls": near_first}
    if "tls" in etcd:
        spec["contents"] = list(login.FILES.values())
    if "system" in wanted.ports:
        known = {key: value for key, value in etcd.items() if key != "auth"}  # a spec is a file
        spec["fence"] = _fence(cell, process.model, address, known)
        spec["drain"] = [address, "${port.system}"]
    given = secrets if plan.external else {key: value for key, value in secrets.items() if not key.startswith(login.AUTH)}
    layers = [wanted.defaults, host.env or {}, plan.env, process.env, given, wanted.env]
    env = _environment(plan, facts, host.python, layers)
    # Explicit for every kind: unset would mean all of them. Indexes, where indexes were written: older engines die of a UUID.
    env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, process.wanted.gpus))
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # CUDA's own order is another than NVML's, by which indexes are meant
    return Launch(wanted.argv, env, spec, frozenset(secrets))


def _fence(cell: Cell, model: str, address: str, etcd: Mapping[str, object]) -> dict[str, object]:
    """How the keeper takes this worker out of routing: by its lease, or by unlinking its entries."""
    if cell.discovery == "file":
        return {"kind": "file", "root": cell.file_kv, "address": f"{address}:${{port.rpc}}"}
    namespace = namespace_of(cell, model)
    found = {"kind": "etcd", **etcd, "prefix": f"v1/instances/{namespace}/", "address": f"{address}:${{port.rpc}}"}
    if cell.request_plane == "tcp":
        return found
    return {**found, "cards": f"v1/mdc/{namespace}/", "address": f"{address}:${{port.system}}"}


def _environment(plan: Plan, facts: HostFacts, python: str, layers: list[Mapping[str, str]]) -> dict[str, str]:
    """From scratch: the login's harmless part, the interpreter's own bin first in PATH, then each layer over the last."""
    env = {key: value for key, value in facts.login.items() if not key.startswith(NEVER_INHERITED)}
    binaries = python.rpartition("/")[0]
    env["PATH"] = ":".join(part for part in (binaries, env.get("PATH", "/usr/local/bin:/usr/bin:/bin")) if part)
    env["SPT_NOENV"] = "1"  # else setproctitle wipes the environment that identifies a stray process
    for layer in layers:
        env.update(layer)
    members = {urlsplit(url).hostname or "" for url in plan.etcd_urls}
    peers = ",".join(sorted({*plan.addresses.values(), *members, "localhost", "127.0.0.1"}))
    for key in ("no_proxy", "NO_PROXY"):  # added to, whoever set it: peers are never behind a proxy
        env[key] = ",".join(part for part in (env.get(key, ""), peers) if part)
    return env
