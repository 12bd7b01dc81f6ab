"""A fleet as the operator sees it: the dictionaries of `snapshot.py`, made from the state and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .cordon import out as is_out
from .cordon import words
from .exit import Exit
from .facts import GpuSeen, RunGpu
from .hand import Holds, held_by
from .known import NOT_YET_ASKED, Fleet, Host
from .process import Process, State
from .snapshot import ControllerStatus, ExitStatus, GpuStatus, HostStatus, ProcessStatus, ServiceStatus, Status
from .verdict import is_ready, verdict

Wall = Callable[[float], float]  # from the fleet's clock to seconds since the epoch
TAIL_LINES = 12
SHOWS_TAIL = {State.FAILED, State.BACKOFF, State.STOPPING, State.STUCK}


def status(
    fleet: Fleet,
    *,
    deployment: str,
    endpoints: Sequence[str],
    controller: ControllerStatus | None,
    now_s: float,
    gone_since: float | None = None,
) -> Status:
    """`now_s` is on the fleet's clock; every time in the result is seconds since the epoch."""

    def wall(at_s: float) -> float:
        return round(fleet.epoch_ms / 1000 + at_s - fleet.epoch_s, 3)

    out = {name: is_out(fleet.hosts.get(p.wanted.host), p) for name, p in fleet.processes.items()}
    processes = [_process(p, out[name], wall) for name, p in fleet.processes.items()]
    stand_ins = {want.replaces: name for name, want in fleet.wanted.items() if want.replaces}
    for process, p in zip(processes, fleet.processes.values(), strict=True):
        if hold := held_by(fleet.held, p.wanted):
            process["held"] = {"by": hold.by, "at": hold.at_ms / 1000}
            process["reason"] = "stopped by hand" if p.state is State.STOPPED else process["reason"]
        if names := words(fleet.cordons, p):
            first = fleet.cordons[names[0]]
            process["cordon"] = {"by": first.by, "at": first.at_ms / 1000, "names": names}
        if p.wanted.replaces:
            process["replaces"] = p.wanted.replaces
        if p.wanted.name in stand_ins:
            process["replaced_by"] = stand_ins[p.wanted.name]
    made: Status = {
        "deployment": deployment,
        "endpoints": list(endpoints),
        "verdict": "",
        "ready": False,
        "controller": controller,
        "asof": wall(now_s),
        "services": _services(fleet.processes, out),
        "processes": processes,
        "hosts": [_host(host, fleet.cordons, wall(now_s), wall) for host in fleet.hosts.values()],
    }
    if controller is None:
        made["controller_gone_since"] = gone_since
    made["verdict"] = verdict(made)
    made["ready"] = is_ready(made)
    return made


def _services(processes: Mapping[str, Process], out: Mapping[str, bool]) -> list[ServiceStatus]:
    services: dict[str, ServiceStatus] = {}
    for p in processes.values():
        service = services.setdefault(
            p.wanted.service,
            {"name": p.wanted.service, "kind": p.wanted.kind, "wanted": 0, "ready": 0, "serving": 0, "reason": ""},
        )
        service["wanted"] += int(p.up and not p.wanted.replaces)  # it is there instead of another, not beside it
        service["ready"] += int(p.up and p.state is State.READY)
        service["serving"] += int(p.up and p.state is State.READY and not out[p.wanted.name])
    return list(services.values())


def _process(p: Process, out: bool, wall: Wall) -> ProcessStatus:
    seen = p.seen
    made: ProcessStatus = {
        "name": p.wanted.name,
        "service": p.wanted.service,
        "replica": p.wanted.replica,
        "rank": p.wanted.rank,
        "kind": p.wanted.kind,
        "host": p.wanted.host,
        "desired": "running" if p.up else "stopped",
        "state": str(p.state),
        "last_known_state": str(p.last_known or p.state),
        "cordoned": out,
        "run": p.run or None,
        "pid": seen.pid if seen else None,
        "sid": seen.sid if seen else None,
        "gpus": [_gpu(gpu) for gpu in seen.gpus] if seen else [],
        "ports": dict(seen.ports) if seen else {},
        "restarts": p.restarts,
        "since": wall(p.since_s),
        "next_attempt_at": None if p.next_attempt_s is None else wall(p.next_attempt_s),
        "last_exit": _exit(p.last_exit) if p.last_exit else None,
        "reason": p.reason,
    }
    if p.stage:
        made["stage"] = p.stage
    if p.moves and p.state is State.STARTING:
        made["moves"] = p.moves
    if p.served_s is not None:
        made["served_until"] = wall(p.served_s)
        if p.was_ready and p.over and p.last_exit and p.last_exit.at_ms:  # its host knows better than who heard of it
            made["served_until"] = min(made["served_until"], p.last_exit.at_ms / 1000)
    if p.state in SHOWS_TAIL and p.tail:
        made["log_tail"] = p.tail.splitlines()[-TAIL_LINES:]
    if p.evidence and (p.state in SHOWS_TAIL or p.restarts) and p.state is not State.READY:
        made["evidence"] = list(p.evidence)
    if seen and seen.notes:
        made["notes"] = list(seen.notes)
    if seen and seen.stop_step and seen.stop_until_ms:
        made["stop_step"] = seen.stop_step
        made["stop_until"] = seen.stop_until_ms / 1000
        if seen.left:
            made["stop_left"] = list(seen.left)
    if seen and seen.gpu_note:
        made["gpu_note"] = seen.gpu_note
    return made


def _exit(last: Exit) -> ExitStatus:
    cause = last.message or last.cause
    made: ExitStatus = {"code": last.code, "signal": last.signal, "cause": cause, "at": last.at_ms / 1000}
    if last.fenced_ms:
        made["fenced_at"] = last.fenced_ms / 1000
    return made


def _gpu(gpu: RunGpu) -> GpuStatus:
    return {"index": gpu.index, "uuid": gpu.uuid, "proof": gpu.proof}


def _card(seen: GpuSeen) -> GpuStatus:
    made: GpuStatus = {
        "index": seen.index,
        "uuid": seen.uuid,
        "proof": "",
        "name": seen.name,
        "total_mib": seen.total_mib,
        "used_mib": seen.used_mib,
        "mig": seen.mig,
        "holders": list(seen.holders),
    }
    if seen.error:
        made["error"] = seen.error
    return made


def _host_state(host: Host) -> str:
    if host.up:
        return "up"
    if host.why == NOT_YET_ASKED:
        return "unasked"
    return "refused" if host.refused else "unreachable"


def _host(host: Host, cordons: Holds, asof: float, wall: Wall) -> HostStatus:
    made: HostStatus = {
        "name": host.name,
        "state": _host_state(host),
        "asof": asof if host.up else wall(host.since_s),
        "boot_id": host.boot_id,
        "gpus": [_card(seen) for seen in host.gpus],
    }
    if host.gpus_s is not None:
        made["gpus_asof"] = wall(host.gpus_s)
    if not host.up:
        made["reason"] = host.why
    elif host.gpus_error:
        made["reason"] = f"its GPUs cannot be seen: {host.gpus_error}"
    if host.witness:
        made["witness"] = host.witness
    if host.logout.why:
        made["logout"] = {"survives": host.logout.survives, "why": host.logout.why, "remedy": host.logout.remedy}
    if host.leaving:
        made["leaving"] = {"why": host.leaving, "since": wall(host.leaving_s)}
    if host.up and host.etcd:
        made["etcd"] = host.etcd
    if host.held_by:
        made["held_by"] = dict(host.held_by)
    if word := cordons.get(host.name):
        made["cordon"] = {"by": word.by, "at": word.at_ms / 1000}
    return made
