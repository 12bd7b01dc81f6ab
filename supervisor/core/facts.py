"""Facts: what the world told us, in the past tense. Each names the run it is about; a stale one dies at the door."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from .exit import Exit
from .wanted import Wanted


class Phase(enum.StrEnum):
    """How far a run has come, as its keeper says it."""

    RUNNING = "running"
    ENDED = "ended"  # the leader is gone, its tree is not
    STUCK = "stuck"  # SIGKILL did not end the tree within its deadline, or its GPUs have not got their memory back
    GONE = "gone"  # the tree is proven empty, its claims have fallen


@dataclass(frozen=True, slots=True)
class RunGpu:
    """A GPU that a run has claimed. `proof` that it sits there, by NVML: proved, refuted, cannot tell; "" = too early."""

    index: int
    uuid: str
    proof: str = ""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that befell a run, in its host's words. `n`: 1, 2, … in this run; what is missing there was not kept."""

    n: int
    at_ms: int  # wall clock of the host
    what: str  # born, note, fenced, stop, exit, gone, …
    text: str = ""


@dataclass(frozen=True, slots=True)
class RunState:
    """One run, whole, as its host tells it. Facts are states and not changes: a missed one is made up for by the next."""

    run: str
    process: str
    phase: Phase
    pid: int | None = None
    sid: int | None = None
    started_ms: int | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    gpus: tuple[RunGpu, ...] = ()
    gpu_note: str = ""  # why the proof is what it is
    launch_hash: str = ""
    exit: Exit | None = None
    stop_step: str | None = None
    stop_until_ms: int | None = None
    left: tuple[str, ...] = ()  # what is in the way of its end: requests in flight, what SIGKILL does not end, memory
    fenced_ms: int | None = None
    notes: tuple[str, ...] = ()
    asked: bool = False
    heir: bool = False  # its first keeper is dead
    tail: str = ""  # the last lines of its log, of runs that ended
    events: tuple[RunEvent, ...] = ()  # the newest, in order; older host sides tell none

    @property
    def door(self) -> int:
        """The port of its request plane; over NATS it has none, and its system port stands for it. 0: no worker."""
        return self.ports.get("rpc") or self.ports.get("system", 0)


@dataclass(frozen=True, slots=True)
class Told:
    """A host told us the state of one of its runs."""

    host: str
    state: RunState


@dataclass(frozen=True, slots=True)
class Logout:
    """Whether what runs on a host outlives the login that started it, as the host judges. `remedy`: a command for there."""

    survives: bool | None = None
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class HostFound:
    """A host answered, with every run it has on record: the newest finished one of a process, and every live one."""

    host: str
    runs: tuple[RunState, ...]
    boot_id: str = ""
    logout: Logout = field(default_factory=Logout)
    held_by: Mapping[str, str] = field(default_factory=dict)  # the controller that runs the deployment, told to onlookers
    leaving: str = ""  # how it shows that it is shutting down; "" = it is not
    etcd: str | None = ""  # why an etcd that is not ours cannot be used from there; None = it has not answered yet


@dataclass(frozen=True, slots=True)
class LeavingTold:
    """A host begins to shut down; with "" that was called off."""

    host: str
    leaving: str


@dataclass(frozen=True, slots=True)
class EtcdTold:
    """An etcd that is not ours can be used from a host, or why it cannot."""

    host: str
    etcd: str | None


@dataclass(frozen=True, slots=True)
class LogoutTold:
    """A host judges anew what a logout does: somebody acted on the remedy, or undid it."""

    host: str
    logout: Logout


@dataclass(frozen=True, slots=True)
class HostLost:
    """The line to a host broke, or it never answered. Says nothing about what runs there."""

    host: str
    why: str
    refused: bool = False  # the host said no: a human must act, nobody retries
    held_by: Mapping[str, str] = field(default_factory=dict)  # the controller that runs the deployment there, if that is why
    heard_s: float | None = None  # when it last said anything, on the fleet's clock; None if this line never did


@dataclass(frozen=True, slots=True)
class HostDue:
    """A `WakeHostAt` came due."""

    host: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """One worker that Dynamo's registry has at a host's address, looked at from where its requests come from."""

    port: int  # of its request plane
    answers: bool  # to at least one of those who looked
    out: bool = False  # it is cordoned: its entry is kept aside
    stalled: bool = False  # it answers, but connections from before still wait: what is sent there now is late


@dataclass(frozen=True, slots=True)
class Witnessed:
    """What the frontends' hosts see of the workers of a host."""

    host: str
    seen: tuple[Sighting, ...] = ()
    blind: str = ""  # why nobody could look, which says nothing about the host
    ever: bool = True  # whether somebody may be able to another time


@dataclass(frozen=True, slots=True)
class Routed:
    """A `Route` was carried out for these workers of a host, by the port of their request plane."""

    host: str
    out: frozenset[int] = frozenset()
    back: frozenset[int] = frozenset()  # or there was nothing to put back
    dead: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class RegistryLost:
    """etcd answers, and knows nothing of those who serve: its data is gone, and nobody registers a second time."""


@dataclass(frozen=True, slots=True)
class GpuSeen:
    """One card, or one MIG slice of one, as NVML told of it."""

    index: int
    uuid: str
    name: str = ""
    total_mib: int | None = None
    used_mib: int | None = None
    mig: bool = False
    error: str = ""
    holders: tuple[str, ...] = ()  # sentences: pid, command, user, MiB, since
    strangers: tuple[str, ...] = ()  # those of them that are nobody's furniture and of no run that claims this GPU
    claim: Mapping[str, str] = field(default_factory=dict)  # of a run: deployment, process, run, user, since, controller
    numa: int | None = None  # the NUMA node it is nearest to
    nvlink: tuple[int, ...] = ()  # indexes of the cards that it reaches over NVLink


@dataclass(frozen=True, slots=True)
class GpusSeen:
    """A host looked at its GPUs. `error`: it could not see them, which says nothing about who holds them."""

    host: str
    gpus: tuple[GpuSeen, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a look at a run's readiness found."""

    process: str
    run: str
    stage: str  # for humans: "importing", "registered, not proven", …
    ready: bool
    well: bool = False  # it does all that it can by itself: if it is not ready, others are in the way
    proven: bool = False  # this very instance answered a request
    instance: str = ""  # its id in Dynamo's discovery, decimal; "" = not registered
    progress: int = 0  # anything that moves while it starts (bytes of log, of weights): standing still is what fails a start
    busy: int = 0  # seconds of CPU while it starts: a sign of life, but a hang may spin
    moves: str = ""  # for humans: what has moved so far


@dataclass(frozen=True, slots=True)
class Due:
    """A `WakeAt` came due."""

    process: str
    run: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The operator wants everything down, in order. Asked again with `skip_drain`: at once."""

    skip_drain: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """The operator's word about some processes or services, by name. It beats files and policies until the next one.

    Up: also what had failed, with a new budget. `runs`: live ones to be replaced by new ones (a restart). Down: they stay
    down; asked again with `skip_drain`: at once.
    """

    names: frozenset[str]
    up: bool
    by: str = ""  # who said it
    at_ms: int = 0  # and when, on the wall clock
    runs: frozenset[str] = frozenset()
    skip_drain: bool = False


@dataclass(frozen=True, slots=True)
class CordonAsked:
    """The operator's word that nothing new is to reach these (processes, services, hosts, `HOST:GPU`), or may again."""

    names: frozenset[str]
    on: bool
    by: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """The operator's files say this is what should run. Anything else of this deployment is surplus."""

    wanted: Mapping[str, Wanted]


@dataclass(frozen=True, slots=True)
class Placed:
    """The same files, where more of the processes have a place now, or another reason to have none."""

    wanted: Mapping[str, Wanted]


@dataclass(frozen=True, slots=True)
class Beat:
    """It changes nothing: that it was taken in shows that the loop goes round."""


Fact = (
    Planned | Placed | Told | HostFound | HostLost | HostDue | Witnessed | Routed | RegistryLost | GpusSeen
    | LeavingTold | EtcdTold | LogoutTold | Probed | Due | StopAsked | Asked | CordonAsked | Beat
)  # fmt: skip
