"""What the next controller must know of a process, and what it makes of it. Pure; how it is kept: `recording.py`.

A run that was there when we went is news whatever became of it: adopted where it lives, and where it does not its end is
diagnosed and counted like any other. What had failed stays failed, and what waited for its next try waits on, unless its
definition is another one now. Until its host has said what is, it is PENDING and not free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .exit import Exit
from .facts import Phase, RunState
from .process import AT_REST, Process, State

FAILED, STOPPED = "failed", "stopped"


@dataclass(frozen=True, slots=True)
class Remembered:
    """Times are on the clock of whoever holds it: the loop's here, the wall's where it is kept."""

    run: str
    host: str
    launch_hash: str  # what it should have been then
    pid: int | None = None  # None: its host never said that it was born
    told: bool = False  # its host has told of this run
    over: bool = False  # its end has been counted
    was_ready: bool = False
    served_s: float | None = None
    asked: bool = False
    condemned: str = ""
    rest: str = ""  # FAILED or STOPPED, where it is meant to stay
    reason: str = ""
    restarts: int = 0
    restarts_s: tuple[float, ...] = ()
    next_attempt_s: float | None = None
    last_exit: Exit | None = None


def remembered(p: Process) -> Remembered:
    """The little of it that outlives a controller."""
    failed = p.state is State.FAILED and p.up
    return Remembered(
        run=p.run,
        host=p.wanted.host,
        launch_hash=p.wanted.launch_hash,
        pid=p.seen.pid if p.seen else None,
        told=p.seen is not None,
        over=p.over,
        was_ready=p.was_ready,
        served_s=p.served_s,
        asked=p.asked,
        condemned=p.condemned,
        rest=FAILED if failed else STOPPED if p.state in AT_REST else "",
        reason=p.reason if failed else "",
        restarts=p.restarts,
        restarts_s=p.restarts_s[-p.wanted.restart.budget :] if p.wanted.restart.budget else (),
        next_attempt_s=p.next_attempt_s,
        last_exit=p.last_exit,
    )


def recalled(fresh: Process, was: Remembered | None, now_s: float, reachable: bool) -> Process:
    """A process that nobody has heard of yet, with what is remembered of it. `reachable`: where it was we shall hear of it."""
    want = fresh.wanted
    if was is None:
        return fresh
    fresh = replace(fresh, served_s=was.served_s)
    if was.rest == STOPPED:
        return fresh
    if was.host != want.host and want.host and reachable and was.told and not was.over:
        want = replace(want, host=was.host)  # it moves when it is gone there, and not before
        fresh = replace(fresh, wanted=want, up=False, spawnable=False)
    if was.host != want.host or (was.over and was.launch_hash != want.launch_hash):
        return replace(fresh, last_exit=was.last_exit)
    phase = Phase.GONE if was.over else Phase.RUNNING
    # Not its hash: that of the run itself comes with its host's word, and only that may replace it.
    seen = RunState(was.run, want.name, phase, pid=was.pid, exit=was.last_exit if was.over else None) if was.told else None
    recent = tuple(min(at_s, now_s) for at_s in was.restarts_s if at_s > now_s - want.restart.window_s)
    process = replace(fresh, run=was.run, seen=seen, was_ready=was.was_ready, asked=was.asked, condemned=was.condemned,
                      restarts=was.restarts, restarts_s=recent, next_attempt_s=was.next_attempt_s,
                      last_exit=was.last_exit)  # fmt: skip
    if was.next_attempt_s is not None:
        process = replace(process, next_attempt_s=min(was.next_attempt_s, now_s + want.restart.max_delay_s * 1.2))
    if was.rest == FAILED and fresh.up:
        return replace(process, state=State.FAILED, reason=was.reason)
    if not was.over and was.run:
        process = replace(process, last_known=State.READY if was.was_ready else State.STARTING)
    return process
