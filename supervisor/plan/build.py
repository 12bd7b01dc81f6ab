"""Deployment + inventory -> Plan: every process by name, the host it runs on, and what its kind must know."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from supervisor.core.hand import covers
from supervisor.core.restart import RestartPolicy
from supervisor.core.wanted import Wanted
from supervisor.errors import FileError
from supervisor.kinds import KINDS, vllm
from supervisor.kinds.base import given
from supervisor.plan import checks
from supervisor.plan.place import Ask, Seat
from supervisor.spec import Deployment, Host, Inventory, Model
from supervisor.spec.deployment import Restart
from supervisor.spec.gpus import placed, size
from supervisor.spec.gpus import seats as seats_by_hand

WAITS = "waits for its hosts to tell which GPUs are free"

LOOPBACK = "127.0.0.1"
SYNC = "router_replica_sync"  # else each KV router counts the load of its own requests only


@dataclass(frozen=True, slots=True)
class PlannedProcess:
    """One process before its host has been asked. `options` are the keywords of its kind's `launch`."""

    wanted: Wanted
    options: Mapping[str, object]
    env: Mapping[str, str]
    needs: tuple[str, ...] = ()  # paths that must exist on its host
    served_as: str = ""  # workers: what clients ask for
    task: str = "completion"  # workers: what they may ask it for
    why: str = ""  # its place, when noray chose it

    @property
    def model(self) -> str:
        """By its name in the file: whose Dynamo namespace it is in, its other role's too."""
        return str(self.options.get("service", self.wanted.service))

    @property
    def role(self) -> str:
        """prefill, decode, or "" where each worker does both."""
        return str(self.options.get("role", ""))


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A process whose GPUs nobody chose yet."""

    wanted: Wanted
    ask: Ask


@dataclass(frozen=True, slots=True)
class Plan:
    deployment: str
    discovery: str
    lease_ttl_s: int
    hosts: Mapping[str, Host]  # only those used
    addresses: Mapping[str, str]  # host -> what peers dial there
    processes: Mapping[str, PlannedProcess]
    etcd_urls: tuple[str, ...] = ()
    external: bool = False  # the etcd is somebody else's
    gateway: str = ""  # where Dynamo's processes find it, if not there
    request_plane: str = "tcp"
    event_plane: str = "zmq"
    nats_url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    unplaced: Mapping[str, Unplaced] = field(default_factory=dict)

    @property
    def wanted(self) -> dict[str, Wanted]:
        """Of all that should run, what has no place yet included."""
        placed = {name: process.wanted for name, process in self.processes.items()}
        return placed | {name: process.wanted for name, process in self.unplaced.items()}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients come in."""
        fronts = [p for p in self.processes.values() if p.wanted.kind == "frontend"]
        spread = len({p.wanted.host for p in fronts}) > 1
        doors = [self.addresses[p.wanted.host] if spread else str(p.options["bind"]) for p in fronts]  # 0.0.0.0 tells no host
        return tuple(f"http://{reachable(door)}:{p.options['port']}" for door, p in zip(doors, fronts, strict=True))

    def part(self, names: Collection[str]) -> Plan:
        """Of these processes and services only, and of the hosts that they use."""
        processes = {name: p for name, p in self.processes.items() if covers(names, p.wanted)}
        unplaced = {name: u for name, u in self.unplaced.items() if covers(names, u.wanted)}
        used = {p.wanted.host for p in processes.values()}.union(*(u.ask.hosts for u in unplaced.values()))
        hosts = {name: host for name, host in self.hosts.items() if name in used}
        return replace(self, processes=processes, unplaced=unplaced, hosts=hosts)


def reachable(bind: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)


def build(
    deployment: Deployment,
    inventory: Inventory,
    seats: Mapping[str, Seat] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Plan:
    """`seats`: of processes that noray placed, as long as the files allow them. `refused`: why others could not be placed.

    Raises FileError for what only shows when both files are seen together.
    """
    hosts = {name: inventory.hosts[name] for name in deployment.hosts}
    checks.ranges(hosts)
    addresses = {name: _address(host, alone=len(hosts) == 1) for name, host in hosts.items()}
    checks.no_credentials(deployment, hosts)
    etcd, discovery, nats = deployment.etcd, deployment.discovery, deployment.nats
    members = tuple(f"http://{_bracket(addresses[host])}:{etcd.port}" for host in etcd.hosts) if etcd else ()
    plan = Plan(
        deployment=deployment.name,
        discovery=discovery.backend,
        lease_ttl_s=etcd.lease_ttl if etcd else discovery.lease_ttl,
        hosts=hosts,
        addresses=addresses,
        processes={},
        etcd_urls=members or discovery.endpoints,
        external=bool(discovery.endpoints),
        gateway=f"http://{LOOPBACK}:{deployment.gateway_port}" if deployment.gateway_port else "",
        request_plane=deployment.planes.request,
        event_plane=deployment.planes.event,
        nats_url=f"nats://{_bracket(addresses[nats.host])}:{nats.port}" if nats else "",
        env=deployment.env,
    )
    all_ = tuple(_processes(deployment, plan, seats or {}))
    checks.lent((p.wanted for p in all_), hosts)
    unplaced: dict[str, Unplaced] = {}
    processes: dict[str, PlannedProcess] = {}
    taken = {(p.wanted.host, gpu) for p in all_ for gpu in p.wanted.gpus}
    for process in all_:
        away = processes.get(process.wanted.replaces)
        found = _placed(process, deployment, hosts, seats or {}, refused or {}, taken, away.wanted.host if away else "")
        if isinstance(found, Unplaced):
            unplaced[found.wanted.name] = found
        else:
            processes[found.wanted.name] = _stamped(plan, found)
    checks.ports((p.wanted, p.options) for p in processes.values())
    return replace(plan, processes=processes, unplaced=unplaced)


def _placed(
    process: PlannedProcess,
    deployment: Deployment,
    hosts: Mapping[str, Host],
    seats: Mapping[str, Seat],
    refused: Mapping[str, str],
    taken: set[tuple[str, int | str]],
    lost: str,
) -> PlannedProcess | Unplaced:
    """On its seat, if the files still allow that and nobody else sits there; unplaced, if it needs one and has none.

    `lost`: the host of whom it stands in for.
    """
    wanted = process.wanted
    model = next((m for m in deployment.models if m.name == wanted.service and (placed(m) or wanted.replaces)), None)
    if model is None:
        return process
    candidates = tuple(host for host in model.hosts if host != lost)
    ask, seat = Ask(wanted.name, wanted.service, size(model) if placed(model) else 0, candidates), seats.get(wanted.name)
    if seat is not None and seat.host in ask.hosts and len(seat.gpus) == ask.need:
        mine, lent = {(seat.host, gpu) for gpu in seat.gpus}, hosts[seat.host].gpus
        # Of a host's list in UUIDs only the host knows the indexes: its seats were checked when they were given.
        allowed = lent is None or not all(isinstance(gpu, int) for gpu in lent) or set(seat.gpus) <= set(lent)
        if allowed and not mine & taken:
            taken |= mine
            why = f"in place of {wanted.replaces}, {seat.why}" if wanted.replaces else seat.why
            return replace(process, wanted=replace(wanted, host=seat.host, gpus=seat.gpus), why=why)
    why = refused.get(wanted.name, WAITS)
    return Unplaced(replace(wanted, host="", unplaced=why), ask)


def _processes(deployment: Deployment, plan: Plan, seats: Mapping[str, Seat]) -> Iterator[PlannedProcess]:
    options: dict[str, object]
    addresses = plan.addresses
    etcd = deployment.etcd
    if etcd:
        peers = {f"etcd-{n}": f"http://{_bracket(addresses[host])}:{etcd.peer_port}" for n, host in enumerate(etcd.hosts)}
        for number, (name, host) in enumerate(zip(peers, etcd.hosts, strict=True)):
            options = {"name": name, "client_port": etcd.port, "peer_port": etcd.peer_port}
            options |= {"peers": peers} if len(peers) > 1 else {}
            yield _process("etcd", "etcd", host, number, options, {})
    if deployment.nats:
        yield _process("nats", "nats", deployment.nats.host, 0, {"client_port": deployment.nats.port}, {})
    front = deployment.frontend
    if deployment.gateway_port:
        options = {"port": deployment.gateway_port, "bind": LOOPBACK, "endpoints": plan.etcd_urls}
        dynamos = dict.fromkeys((*front.hosts, *(host for model in deployment.models for host in model.hosts)))
        for number, host in enumerate(dynamos):
            yield _process("etcd-gateway", "gateway", host, number, options, {})
    checks.owned("frontend", "frontend", front.args, front.extra_args)
    synced = dict(front.args)
    if front.replicas > 1 and front.args.get("router_mode") == "kv" and not given(SYNC, front.args, front.extra_args):
        synced[SYNC] = True
    for replica, (host, port) in enumerate(front.seats):
        options = {"port": port, "bind": front.bind or addresses[host], "args": synced, "extra_args": front.extra_args}
        yield _process("frontend", "frontend", host, replica, options, front.env, policy=_policy(front.restart))
    written = list(dict.fromkeys(model.whole for model in deployment.models))
    for model in deployment.models:
        where = f"models[{written.index(model.whole)}]{model.role and f'.{model.role}'}"
        checks.owned(where, model.engine, model.args, model.extra_args)
        checks.routed(where, _task(model), front.args)
        for replica in range(model.replicas):
            yield _worker(model, replica, _routes_by_kv(front.args))
        for replica, replaces in _standing_in(model, seats):
            yield _worker(model, replica, _routes_by_kv(front.args), replaces)


def _standing_in(model: Model, seats: Mapping[str, Seat]) -> Iterator[tuple[int, str]]:
    """Numbers beyond the replicas of the file, as long as it still wants whom they stand in for, and that at all."""
    meant = {f"{model.name}-{replica}" for replica in range(model.replicas)} if model.on_lost == "replace" else set()
    for name, seat in seats.items():
        service, _, number = name.rpartition("-")
        if service == model.name and seat.stands_in in meant and name not in meant:
            yield int(number), seat.stands_in


def _policy(restart: Restart) -> RestartPolicy:
    return RestartPolicy(restart.policy, restart.budget, restart.window)


def _routes_by_kv(args: Mapping[str, object]) -> bool:
    """Whether the router listens to what workers tell of their caches."""
    return args.get("router_mode") == "kv" and args.get("router_kv_events") is not False


def _task(model: Model) -> str:
    return vllm.task(model.args, model.extra_args) if model.engine == "vllm" else "completion"


def _worker(model: Model, replica: int, kv_events: bool, replaces: str = "") -> PlannedProcess:
    options: dict[str, object] = {
        "service": model.whole,
        "served_as": model.served_as,
        "model": model.model,
        "args": model.args,
        "extra_args": model.extra_args,
    }
    if model.role:
        options["role"] = model.role
    if model.engine == "vllm":
        options["kv_events"] = kv_events
    # Spread, either way: one host's death takes as few replicas as possible.
    host, own = seats_by_hand(model)[replica] if model.gpus else (model.hosts[replica % len(model.hosts)], ())
    needs = (model.model,) if model.model.startswith("/") else ()
    made = _process(model.name, model.engine, host, replica, options, model.env, needs=needs, served_as=model.served_as,
                    policy=_policy(model.restart), drain_s=model.stop.drain, term_s=model.stop.term, stall_s=model.ready.stall,
                    gpus=own)  # fmt: skip
    lost_after_s = model.lost_after if model.on_lost == "replace" else None
    return replace(made, task=_task(model), wanted=replace(made.wanted, replaces=replaces, lost_after_s=lost_after_s))


def _process(
    service: str,
    kind: str,
    host: str,
    replica: int,
    options: Mapping[str, object],
    env: Mapping[str, str],
    *,
    needs: tuple[str, ...] = (),
    served_as: str = "",
    policy: RestartPolicy | None = None,
    drain_s: float | None = None,
    term_s: float | None = None,
    stall_s: float = 300.0,
    gpus: tuple[int | str, ...] = (),
) -> PlannedProcess:
    stop = KINDS[kind].stop
    wanted = Wanted(
        name=f"{service}-{replica}",
        service=service,
        kind=kind,
        host=host,
        launch_hash="",
        replica=replica,
        stop_rank=KINDS[kind].stop_rank,
        restart=policy or RestartPolicy(),
        drain_s=stop.drain_s if drain_s is None else drain_s,
        term_s=stop.term_s if term_s is None else term_s,
        stall_s=stall_s,
        alive_s=KINDS[kind].alive_s,
        gpus=gpus,
    )
    return PlannedProcess(wanted, options, env, needs, served_as)


def _stamped(plan: Plan, process: PlannedProcess) -> PlannedProcess:
    """With the hash of everything that makes a launch what it is. A running process with another hash is outdated.

    Not in it: secrets (a hash of a weak one can be guessed back), stop and restart rules (they do not need a new run).
    """
    host = plan.hosts[process.wanted.host]
    essence = {
        "kind": process.wanted.kind,
        "host": [host.name, host.python, dict(host.env or {}), plan.addresses[host.name]],
        "options": process.options,
        "gpus": process.wanted.gpus,
        "env": [plan.env, process.env],
        "cell": [plan.deployment, plan.discovery, plan.lease_ttl_s, plan.etcd_urls, plan.request_plane, plan.event_plane],
    }
    if plan.nats_url:
        essence["nats"] = plan.nats_url
    cold = _digest({**essence, "gpus": ()}) if KINDS[process.wanted.kind].cold_first else ""
    return replace(process, wanted=replace(process.wanted, launch_hash=_digest(essence), cold=cold))


def _digest(essence: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(essence, sort_keys=True, default=list).encode()).hexdigest()[:12]


def _address(host: Host, alone: bool) -> str:
    if host.cluster_address:
        return host.cluster_address
    if alone:
        return "127.0.0.1"
    for candidate in (host.address, host.name):
        try:
            return str(ipaddress.ip_address(candidate or ""))
        except ValueError:
            continue
    raise FileError(
        f"host {host.name} has no cluster_address, and the deployment spans several hosts",
        hint="give it the IP address at which the other hosts reach it",
    )


def _bracket(address: str) -> str:
    return f"[{address}]" if ":" in address else address
