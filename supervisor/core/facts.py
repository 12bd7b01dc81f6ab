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
    left: tuple[str, ...] = ()  # what is in the way of its end: processes that SIGKILL does not end, memory not given back
    fenced_ms: int | None = None
    notes: tuple[str, ...] = ()
    asked: bool = False
    heir: bool = False  # its first keeper is dead
    tail: str = ""  # the last lines of its log, of runs that ended


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
    proven: bool = False  # this very instance answered a request
    instance: str = ""  # its id in Dynamo's discovery, decimal; "" = not registered
    progress: int = 0  # anything that moves while it starts (bytes of log): standing still is what fails a start


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
class Planned:
    """The operator's files say this is what should run. Anything else of this deployment is surplus."""

    wanted: Mapping[str, Wanted]


Fact = Planned | Told | HostFound | HostLost | GpusSeen | LogoutTold | Probed | Due | StopAsked | Asked
