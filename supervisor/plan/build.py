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
from supervisor.kinds import KINDS
from supervisor.kinds.base import MAX_SYSTEM_PORT, clashes
from supervisor.spec import Deployment, Host, Inventory, Model
from supervisor.spec.gpus import seats


@dataclass(frozen=True, slots=True)
class PlannedProcess:
    """One process before its host has been asked. `options` are the keywords of its kind's `launch`."""

    wanted: Wanted
    options: Mapping[str, object]
    env: Mapping[str, str]
    needs: tuple[str, ...] = ()  # paths that must exist on its host
    served_as: str = ""  # workers: what clients ask for


@dataclass(frozen=True, slots=True)
class Plan:
    deployment: str
    discovery: str
    lease_ttl_s: int
    hosts: Mapping[str, Host]  # only those used
    addresses: Mapping[str, str]  # host -> what peers dial there
    processes: Mapping[str, PlannedProcess]
    etcd_urls: tuple[str, ...] = ()
    request_plane: str = "tcp"
    event_plane: str = "zmq"
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> dict[str, Wanted]:
        return {name: process.wanted for name, process in self.processes.items()}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients come in."""
        fronts = [p for p in self.processes.values() if p.wanted.kind == "frontend"]
        return tuple(f"http://{reachable(str(p.options['bind']))}:{p.options['port']}" for p in fronts)

    def part(self, names: Collection[str]) -> Plan:
        """Of these processes and services only, and of the hosts that they use."""
        processes = {name: p for name, p in self.processes.items() if covers(names, p.wanted)}
        used = {p.wanted.host for p in processes.values()}
        return replace(self, processes=processes, hosts={name: host for name, host in self.hosts.items() if name in used})


def reachable(bind: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)


def build(deployment: Deployment, inventory: Inventory) -> Plan:
    """Raises FileError for what only shows when both files are seen together."""
    hosts = {name: inventory.hosts[name] for name in deployment.hosts}
    _check_ranges(hosts)
    addresses = {name: _address(host, alone=len(hosts) == 1) for name, host in hosts.items()}
    etcd = deployment.etcd
    urls = (f"http://{_bracket(addresses[etcd.host])}:{etcd.port}",) if etcd else ()
    plan = Plan(
        deployment=deployment.name,
        discovery=deployment.discovery,
        lease_ttl_s=etcd.lease_ttl if etcd else 60,
        hosts=hosts,
        addresses=addresses,
        processes={},
        etcd_urls=urls,
        request_plane=deployment.planes.request,
        event_plane=deployment.planes.event,
        env=deployment.env,
    )
    processes = {p.wanted.name: _stamped(plan, p) for p in _processes(deployment, addresses)}
    _check_ports(processes)
    return replace(plan, processes=processes)


def _processes(deployment: Deployment, addresses: Mapping[str, str]) -> Iterator[PlannedProcess]:
    if deployment.etcd:
        etcd = deployment.etcd
        options: dict[str, object] = {"name": "etcd-0", "client_port": etcd.port, "peer_port": etcd.peer_port}
        yield _process("etcd", "etcd", etcd.host, 0, options, {})
    front = deployment.frontend
    _refuse_owned("frontend", "frontend", front.args, front.extra_args)
    options = {
        "port": front.port,
        "bind": front.bind or addresses[front.host],
        "args": front.args,
        "extra_args": front.extra_args,
    }
    yield _process("frontend", "frontend", front.host, 0, options, front.env)
    for index, model in enumerate(deployment.models):
        _refuse_owned(f"models[{index}]", model.engine, model.args, model.extra_args)
        for replica in range(model.replicas):
            yield _worker(model, replica)


def _worker(model: Model, replica: int) -> PlannedProcess:
    options = {
        "service": model.name,
        "served_as": model.served_as,
        "model": model.model,
        "args": model.args,
        "extra_args": model.extra_args,
    }
    policy = RestartPolicy(model.restart.policy, model.restart.budget, model.restart.window)
    # Spread, either way: one host's death takes as few replicas as possible.
    host, own = seats(model)[replica] if model.gpus else (model.hosts[replica % len(model.hosts)], ())
    needs = (model.model,) if model.model.startswith("/") else ()
    return _process(model.name, model.engine, host, replica, options, model.env, needs=needs, served_as=model.served_as,
                    policy=policy, drain_s=model.stop.drain, term_s=model.stop.term, stall_s=model.ready.stall,
                    gpus=own)  # fmt: skip


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
    text = json.dumps(essence, sort_keys=True, default=list)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return replace(process, wanted=replace(process.wanted, launch_hash=digest))


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


def _refuse_owned(where: str, kind: str, args: Mapping[str, object], extra: tuple[str, ...]) -> None:
    bad = clashes(KINDS[kind].owned, args, extra)
    if bad:
        raise FileError(
            f"{where}: {', '.join(bad)} is set by noray itself", hint="leave it out; other keys of the file decide it"
        )


def _check_ranges(hosts: Mapping[str, Host]) -> None:
    for host in hosts.values():
        if host.ports[1] > MAX_SYSTEM_PORT:
            raise FileError(
                f"hosts.{host.name}.ports: found {host.ports[0]}-{host.ports[1]}, allowed: up to {MAX_SYSTEM_PORT}",
                hint="Dynamo reads DYN_SYSTEM_PORT as a 16-bit signed number",
            )


def _check_ports(processes: Mapping[str, PlannedProcess]) -> None:
    taken: dict[tuple[str, int], str] = {}
    for name, process in processes.items():
        for key in ("port", "client_port", "peer_port"):
            number = process.options.get(key)
            if isinstance(number, int) and number:
                other = taken.setdefault((process.wanted.host, number), name)
                if other != name:
                    raise FileError(f"{name} and {other} both want port {number} on {process.wanted.host}")
