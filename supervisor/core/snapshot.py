"""What `noray status --json` prints: the whole truth about a deployment at one moment, as plain dictionaries.

The controller makes it, or a CLI without a controller does from what the hosts say; every view is made from it alone.
Times are seconds since the epoch. Words are strings, not enums: a reader meets words of newer writers and must
show them. Keys that are not required are beyond the printed contract: they may be missing.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ControllerStatus(TypedDict):
    pid: int
    version: str
    since: float


class GpuStatus(TypedDict):
    index: int
    uuid: str
    proof: str  # proved | refuted | cannot tell | "" while nobody has looked
    name: NotRequired[str]  # these below only under `hosts`, as NVML last told
    total_mib: NotRequired[int | None]
    used_mib: NotRequired[int | None]
    mig: NotRequired[bool]
    error: NotRequired[str]  # why this card cannot be used
    holders: NotRequired[list[str]]  # who has memory on it: pid, command, user, MiB, since


class ExitStatus(TypedDict):
    code: int | None  # None with signal None: it ended, and nobody was left to hear how
    signal: int | None
    cause: str
    at: float
    fenced_at: NotRequired[float]  # when its keeper took it out of routing


class HeldStatus(TypedDict):
    by: str
    at: float


class CordonStatus(HeldStatus):
    names: list[str]  # that were said: its own, its service's, its host's, its GPU's


class ServiceStatus(TypedDict):
    name: str
    kind: str
    wanted: int  # replicas
    ready: int
    serving: int  # of the ready ones, those that get requests; for etcd and nats the same as ready
    reason: str  # a few words why it is short: "crash loop", "no host has 2 free GPUs"; else ""


class ProcessStatus(TypedDict):
    name: str
    service: str
    replica: int
    rank: int
    kind: str
    host: str
    desired: str  # running | stopped
    state: str  # pending starting ready draining stopping stopped backoff failed stuck unknown
    last_known_state: str  # what it was before it became unknown
    cordoned: bool
    run: str | None
    pid: int | None
    sid: int | None
    gpus: list[GpuStatus]
    ports: dict[str, int]
    restarts: int
    since: float | None  # when it entered this state
    next_attempt_at: float | None
    last_exit: ExitStatus | None
    reason: str
    stage: NotRequired[str]  # how far a start has come: "importing", "registered, not proven"
    moves: NotRequired[str]  # what has moved of a start so far: "12.3 GB read, 41.0 GB on its GPUs"
    evidence: NotRequired[list[str]]  # what the cause of its last end is concluded from: a line of its log, its host's words
    served_until: NotRequired[float]  # when it last ceased to serve, while it does not
    log_tail: NotRequired[list[str]]  # the last lines it wrote, where its state makes them worth reading
    notes: NotRequired[list[str]]  # what befell its keeper and its pump
    gpu_note: NotRequired[str]  # why it cannot be told whether it sits on its own GPUs
    stop_left: NotRequired[list[str]]  # what is in the way of that step's end
    stop_step: NotRequired[str]  # of the stop ladder: drain, term_leader, term_rest, kill, stuck, gpu_return, gpu_held
    stop_until: NotRequired[float]  # when the next step comes
    held: NotRequired[HeldStatus]  # stopped by hand, and so until `noray start`
    cordon: NotRequired[CordonStatus]  # cordoned by hand, and so until `noray uncordon` of these names
    replaces: NotRequired[str]  # whom it stands in for, whose host is lost
    replaced_by: NotRequired[str]  # who stands in for it


class LogoutStatus(TypedDict):
    survives: bool | None  # None: nobody can tell
    why: str
    remedy: str  # a command to type on that host; "" where nothing is wrong


class LeavingStatus(TypedDict):
    why: str  # how it shows
    since: float


class HostStatus(TypedDict):
    name: str
    state: str  # up | anything else
    asof: float | None  # when it was last heard
    boot_id: str
    gpus: list[GpuStatus]
    reason: NotRequired[str]  # why it is not up, or what is wrong with it though it is
    witness: NotRequired[str]  # while it is silent: what the frontends' hosts see of its workers
    gpus_asof: NotRequired[float]  # when its GPUs were last looked at
    logout: NotRequired[LogoutStatus]  # whether what runs there outlives the login that started it
    leaving: NotRequired[LeavingStatus]  # it is shutting down: nothing is started there before it is up again
    etcd: NotRequired[str]  # why an etcd that is not ours cannot be used from there: nothing is started there before it can
    cordon: NotRequired[HeldStatus]  # by hand: its workers get no requests, and nobody is placed there
    held_by: NotRequired[dict[str, str]]  # the other controller that runs the deployment: controller, user, since


class Status(TypedDict):
    deployment: str
    endpoints: list[str]
    verdict: str
    ready: bool
    controller: ControllerStatus | None
    asof: float
    services: list[ServiceStatus]
    processes: list[ProcessStatus]
    hosts: list[HostStatus]
    controller_gone_since: NotRequired[float | None]  # without a controller: when the last one was last heard
