"""One process: what it should be and what it is. How facts move it is the table in `life.py`.

Theory of operation. A process has a wish (`up`) and a state; facts move the state, and after every fact `settle` asks for
whatever brings the state nearer to the wish. There is at most one run at a time: the next one is spawned only from a state
in which the last is proven gone. A run that ends is always first STOPPING (its tree is being ended) and only by `Gone` becomes
anything else. UNKNOWN means its host is silent: nothing is concluded and nothing done until the host says what is.

    PENDING ──spawn──► STARTING ──probed──► READY ──┐ ended                  (any state) ──host lost──► UNKNOWN
       ▲                  │ ended                   ▼                            UNKNOWN ──host found──► what the host says
       └──── BACKOFF ◄─── STOPPING ◄─────────── DRAINING ◄── wish down
               FAILED ◄──────┤ gone
              STOPPED ◄──────┘
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from .actions import Action, Stop
from .exit import Exit
from .facts import Phase, Probed, RunState
from .wanted import Wanted


class State(enum.StrEnum):
    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BACKOFF = "backoff"
    FAILED = "failed"
    STUCK = "stuck"
    UNKNOWN = "unknown"


LIVE = {State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.STUCK}  # a run of it exists on its host
AT_REST = {State.STOPPED, State.FAILED}


class Event(enum.StrEnum):
    """What can happen to one process. `fleet.py` turns facts into these."""

    RUNNING = "running"
    ENDED = "ended"
    STUCK = "stuck"
    GONE = "gone"
    PROBED = "probed"
    DUE = "due"
    LOST = "lost"  # its host is silent
    ABSENT = "absent"  # its host answered and knows no run of it; told with "reboot" if it was rebooted since


@dataclass(frozen=True, slots=True)
class Process:
    wanted: Wanted
    up: bool = True
    state: State = State.PENDING
    since_s: float = 0.0
    reason: str = "waiting for its host"
    run: str = ""  # the run this state is about; "" before the first
    seen: RunState | None = None  # the last its host said of that run
    last_known: State | None = None  # while UNKNOWN
    stage: str = ""
    proven: bool = False
    instance: str = ""
    was_ready: bool = False  # this run, at any time
    ready_s: float | None = None  # since then it has been ready without a break
    served_s: float | None = None  # while it is not ready: when it last was, in whichever run
    progress: int = -1
    progress_s: float = 0.0
    busy: int = 0
    busy_s: float = 0.0
    moves: str = ""
    unwell_s: float | None = None  # since then it has not done what it can by itself
    restarts_s: tuple[float, ...] = ()
    restarts: int = 0
    next_attempt_s: float | None = None
    last_exit: Exit | None = None
    tail: str = ""
    evidence: tuple[str, ...] = ()  # of the cause of its last end
    skip_drain: bool = False
    spawnable: bool = False  # its host is there and has no run of it
    asked: bool = False  # we asked this run to end: that it does is no failure
    condemned: str = ""  # why we ended this run, though nobody asked: that is its failure, whatever its exit code
    renew: str = ""  # a run that the operator wants replaced

    @property
    def over(self) -> bool:
        """Its last run is proven gone, and no other was started since."""
        return self.seen is not None and self.seen.phase is Phase.GONE

    @property
    def free(self) -> bool:
        """No run of it lives."""
        return self.spawnable or self.over or not self.wanted.host


Step = tuple[Process, tuple[Action, ...]]
Body = RunState | Probed | str | None
Handler = Callable[[Process, Body, float], Step]


def to(process: Process, state: State, reason: str, now_s: float) -> Process:
    since = process.since_s if state is process.state else now_s
    served_s = None if state is State.READY else now_s if process.state is State.READY else process.served_s
    return replace(process, state=state, reason=reason, since_s=since, served_s=served_s)


def chance(run: str) -> float:
    """0..1, the same for the same run: decisions can be replayed."""
    return zlib.crc32(run.encode()) / 0xFFFFFFFF


def stopping(process: Process) -> Stop:
    """An orderly end of its run, within its own times."""
    want = process.wanted
    if process.skip_drain:
        return Stop(want.host, process.run, 0.0)
    return Stop(want.host, process.run, want.drain_s + want.term_s, want.drain_s)


def with_run(process: Process, run: str, now_s: float) -> Process:
    """As it is when this run is the one it is about; nothing of an earlier run is carried over."""
    if run == process.run:
        return process
    return replace(process, run=run, seen=None, spawnable=False, was_ready=False, ready_s=None, proven=False, instance="",
                   stage="", progress=-1, progress_s=now_s, busy=0, busy_s=now_s, moves="", unwell_s=None, asked=False,
                   condemned="", next_attempt_s=None)  # fmt: skip


def unready(process: Process, now_s: float) -> Process:
    """It is not ready any more. If it had been for a whole window, its restarts are counted anew."""
    if process.ready_s is not None and now_s - process.ready_s >= process.wanted.restart.window_s:
        process = replace(process, restarts_s=(), restarts=0)
    return replace(process, ready_s=None)
