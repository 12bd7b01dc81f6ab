"""What moves a process: a handler for each event and state, in a total table, and `settle`, which asks for what comes next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .actions import Action, Fence, Spawn, Stop, TellFence, Unwatch, WakeAt, Watch
from .diagnosis import Cause, Retry, diagnose
from .exit import Exit
from .facts import Phase, Probed, RunState
from .process import Body, Event, Handler, Process, State, Step, chance, stopping, to, unready, with_run
from .restart import Again, GiveUp

BUSY_STALLS = 4.0  # so many times as long as one that is still may one only compute: compilers end, a hang may spin for ever
WEDGED_TERM_S = 10.0  # for what hangs to end by itself: Dynamo's 5 s after SIGTERM, and an engine that is only slow

# --- handlers: <what> as a function of (process, body, now) ---------------------------------------------------------------


def ignore(process: Process, body: Body, now_s: float) -> Step:
    return process, ()


def running(process: Process, body: Body, now_s: float) -> Step:
    """Its host says the run lives: the start succeeded, or we come back to it after an absence."""
    assert isinstance(body, RunState)
    if process.state in (State.STARTING, State.READY) and process.seen is not None:
        return replace(process, seen=body), ()
    process = replace(process, seen=body, last_known=None, spawnable=False, next_attempt_s=None, unwell_s=None, ready_s=None)
    process = to(process, State.STARTING, "", now_s)
    process = replace(process, progress_s=now_s, busy_s=now_s, stage=process.stage or "started")
    wake = WakeAt(process.wanted.name, body.run, now_s + process.wanted.stall_s)
    return process, (Watch(process.wanted.name, body.run), wake)


def running_while_stopping(process: Process, body: Body, now_s: float) -> Step:
    assert isinstance(body, RunState)
    draining = body.stop_step in (None, "drain", "term_leader")
    state = State.DRAINING if draining and process.state is not State.STOPPING else State.STOPPING
    # A keeper that does not know of the stop any more: it died with the word, and its heir has not heard it.
    was = process.seen
    forgot = not body.asked and was is not None and (was.asked or body.heir != was.heir)
    again = (stopping(process),) if forgot else ()
    return to(replace(process, seen=body), state, process.reason, now_s), again


def ended(process: Process, body: Body, now_s: float) -> Step:
    assert isinstance(body, RunState)
    process = replace(unready(process, now_s), seen=body, last_exit=body.exit, last_known=None, proven=False, instance="")
    return to(process, State.STOPPING, "ending what it left behind", now_s), (Unwatch(process.wanted.name),)


def stuck(process: Process, body: Body, now_s: float) -> Step:
    assert isinstance(body, RunState)
    where = "its GPUs have not got their memory back" if body.stop_step == "gpu_held" else "SIGKILL does not end it"
    reason = ": ".join((where, "; ".join(body.left))) if body.left else where
    return to(replace(process, seen=body, last_known=None), State.STUCK, reason, now_s), ()


def gone(process: Process, body: Body, now_s: float) -> Step:
    """The tree is proven empty: the only way to a next run."""
    assert isinstance(body, RunState)
    last = body.exit or Exit(None, None, 0, False, "no record of its end")
    last = replace(last, message=process.condemned or last.message)
    process = replace(unready(process, now_s), seen=body, last_exit=last, tail=body.tail or process.tail, last_known=None)
    if process.was_ready and process.served_s is None:  # it ended with nobody there to see
        process = replace(process, served_s=now_s)
    process = replace(process, instance="", stage="", moves="", proven=False, spawnable=False, progress=-1,
                      evidence=())  # fmt: skip
    unwatch = Unwatch(process.wanted.name)
    if not process.up:
        return to(process, State.STOPPED, "", now_s), (unwatch,)
    outdated = body.asked and body.launch_hash not in ("", process.wanted.launch_hash)  # asked by an earlier controller
    if process.asked or outdated:
        return to(replace(process, spawnable=True), State.PENDING, process.reason, now_s), (unwatch,)
    cause = _cause(process)
    process = replace(process, evidence=cause.evidence)
    decision = process.wanted.restart.decide(process.restarts_s, now_s, cause, process.was_ready, chance(body.run))
    match decision:
        case GiveUp(reason):
            detail = f": {last}" if last.message and last.message not in reason else ""
            return to(process, State.FAILED, reason + detail, now_s), (unwatch,)
        case Again(delay_s, reason):
            counts = tuple(at_s for at_s in process.restarts_s if at_s > now_s - process.wanted.restart.window_s)
            spent = (now_s,) if cause.own else ()
            process = replace(process, restarts_s=(*counts, *spent), restarts=process.restarts + 1)
            process = replace(process, next_attempt_s=now_s + delay_s)
            wake = WakeAt(process.wanted.name, process.run, now_s + delay_s)
            return to(process, State.BACKOFF, reason, now_s), (unwatch, wake)


def _cause(process: Process) -> Cause:
    """Of the end of its last run."""
    assert process.last_exit is not None
    if process.condemned:
        return Cause(process.condemned, Retry.BACKOFF, evidence=tuple(told for _, told in process.last_exit.signs))
    cause = diagnose(process.last_exit, process.tail)
    # What once served has arguments and a model that are right: that line of its log is about something else.
    again = cause.said and cause.retry is Retry.NEVER and process.was_ready
    return replace(cause, retry=Retry.BACKOFF) if again else cause


def probed(process: Process, body: Body, now_s: float) -> Step:
    assert isinstance(body, Probed)
    if process.state is State.READY and not process.up and not body.ready:
        return process, ()  # it waits for its turn to end; that who asked for it ends before it is no fault of its own
    well = body.well or body.ready
    moved = well or body.progress != process.progress or body.stage != process.stage
    actions: tuple[Action, ...] = ()
    if body.instance and body.instance != process.instance:
        actions = (TellFence(process.wanted.host, process.run, body.instance),)
    computed = moved or body.busy != process.busy
    process = replace(process, busy=body.busy, busy_s=now_s if computed else process.busy_s, moves=body.moves)
    process = replace(process, stage=body.stage, proven=process.proven or body.proven, progress=body.progress)
    process = replace(process, instance=body.instance or process.instance, progress_s=now_s if moved else process.progress_s)
    falls_ill = not well and process.unwell_s is None
    process = replace(process, unwell_s=None if well else now_s if falls_ill else process.unwell_s)
    if body.ready:
        process = replace(process, was_ready=True, ready_s=now_s if process.ready_s is None else process.ready_s)
        return to(process, State.READY, "" if process.proven else body.stage, now_s), actions
    process = unready(process, now_s)
    if falls_ill and process.was_ready:
        actions += (WakeAt(process.wanted.name, process.run, now_s + process.wanted.alive_s),)
    return to(process, State.STARTING, "", now_s), actions


def overdue(process: Process, body: Body, now_s: float) -> Step:
    """A start fails on no progress, not on age. What was ready has no progress left to make: it fails on being unwell.

    CPU time alone is a sign of life (kernels are compiled in silence), for BUSY_STALLS times as long and no longer: of ranks
    that wait for each other in vain, each spins.
    """
    want = process.wanted
    if process.was_ready and process.unwell_s is None:
        return process, ()
    if process.unwell_s is not None and process.was_ready:
        since_s, until_s = process.unwell_s, process.unwell_s + want.alive_s
    else:
        since_s = process.progress_s
        until_s = min(max(since_s, process.busy_s) + want.stall_s, since_s + BUSY_STALLS * want.stall_s)
    if now_s < until_s:
        return process, (WakeAt(want.name, process.run, until_s),)
    if process.was_ready:
        # What is routed to it waits for ever; its drain would, too. It may be too far gone to hear SIGTERM.
        why = f"was ready, and for {now_s - since_s:.0f} s has not been: {process.stage}"
        end: tuple[Action, ...] = (Fence(want.host, process.run), Stop(want.host, process.run, min(want.term_s, WEDGED_TERM_S)))
    else:
        only = " but CPU time" if process.busy_s > since_s else ""
        where = ": ".join(filter(None, (process.stage or "starting", process.moves)))
        why = f"no progress{only} for {now_s - since_s:.0f} s while {where}"
        end = (Stop(want.host, process.run, want.term_s),)
    return to(replace(process, condemned=why), State.STOPPING, why, now_s), (Unwatch(want.name), *end)


def try_again(process: Process, body: Body, now_s: float) -> Step:
    process = replace(process, next_attempt_s=None, spawnable=True)
    return to(process, State.PENDING, process.reason, now_s), ()


def absent(process: Process, body: Body, now_s: float) -> Step:
    """Its host has no live run of it and no record that it ended: the way is free."""
    return to(replace(process, spawnable=True, last_known=None), State.PENDING, process.reason, now_s), ()


def pending_absent(process: Process, body: Body, now_s: float) -> Step:
    """A run that an earlier controller knew to be there counts; one that nobody ever heard of was never started."""
    known = process.seen is not None and not process.over
    return vanished(process, body, now_s) if known else absent(process, body, now_s)


def pending_gone(process: Process, body: Body, now_s: float) -> Step:
    """It ended while no controller lived. Or we are told once more, by a host that was away: that end has been counted."""
    if not process.over:
        return gone(process, body, now_s)
    at_s = process.next_attempt_s
    if at_s is None or at_s <= now_s:
        return replace(process, spawnable=True, next_attempt_s=None), ()
    reason = f"{_cause(process).text}; waiting for the next try"
    return to(process, State.BACKOFF, reason, now_s), (WakeAt(process.wanted.name, process.run, at_s),)


def retold(process: Process, body: Body, now_s: float) -> Step:
    """Nothing new, but for a controller that only remembers it: its host tells more."""
    assert isinstance(body, RunState)
    process = replace(process, seen=body, tail=body.tail or process.tail)
    return replace(process, evidence=_cause(process).evidence if process.last_exit else ()), ()


def vanished(process: Process, body: Body, now_s: float) -> Step:
    """A run we knew is on nobody's record (its directory was wiped): it can no longer be owned, so it counts as gone.

    One that its host never told of was not born: the word to start it was lost with the line. That is no failure of it.
    """
    if process.seen is None:
        return absent(process, body, now_s)
    record = Exit(None, None, 0, False, str(body or "") or "its host has no record of it")
    return gone(process, replace(process.seen, phase=Phase.GONE, exit=record), now_s)


def lost(process: Process, body: Body, now_s: float) -> Step:
    last_known = process.last_known or (process.state if process.run else None)
    process = replace(process, last_known=last_known, spawnable=False)
    return to(process, State.UNKNOWN, str(body), now_s), (Unwatch(process.wanted.name),)


def lost_at_rest(process: Process, body: Body, now_s: float) -> Step:
    return replace(process, spawnable=False, reason=process.reason or str(body)), ()


def waiting_lost(process: Process, body: Body, now_s: float) -> Step:
    """Its last run is proven gone, so nothing of it is unknown; of a host that never answered everything is."""
    if not process.over:
        return lost(process, body, now_s)
    return to(replace(process, spawnable=False), State.PENDING, str(body), now_s), ()


E, S = Event, State
ROWS: Mapping[State, Mapping[Event, Handler]] = {
    S.PENDING: {E.RUNNING: running, E.ENDED: ended, E.STUCK: stuck, E.GONE: pending_gone, E.PROBED: ignore, E.DUE: ignore,
                E.LOST: waiting_lost, E.ABSENT: pending_absent},
    S.STARTING: {E.RUNNING: running, E.ENDED: ended, E.STUCK: stuck, E.GONE: gone, E.PROBED: probed, E.DUE: overdue,
                 E.LOST: lost, E.ABSENT: vanished},
    S.READY: {E.RUNNING: running, E.ENDED: ended, E.STUCK: stuck, E.GONE: gone, E.PROBED: probed, E.DUE: ignore,
              E.LOST: lost, E.ABSENT: vanished},
    S.DRAINING: {E.RUNNING: running_while_stopping, E.ENDED: ended, E.STUCK: stuck, E.GONE: gone, E.PROBED: ignore,
                 E.DUE: ignore, E.LOST: lost, E.ABSENT: vanished},
    S.STOPPING: {E.RUNNING: running_while_stopping, E.ENDED: ended, E.STUCK: stuck, E.GONE: gone, E.PROBED: ignore,
                 E.DUE: ignore, E.LOST: lost, E.ABSENT: vanished},
    S.STOPPED: {E.RUNNING: running, E.ENDED: ended, E.STUCK: stuck, E.GONE: ignore, E.PROBED: ignore, E.DUE: ignore,
                E.LOST: lost_at_rest, E.ABSENT: ignore},
    S.BACKOFF: {E.RUNNING: running, E.ENDED: ended, E.STUCK: stuck, E.GONE: ignore, E.PROBED: ignore, E.DUE: try_again,
                E.LOST: waiting_lost, E.ABSENT: ignore},
    S.FAILED: {E.RUNNING: running, E.ENDED: ended, E.STUCK: stuck, E.GONE: retold, E.PROBED: ignore, E.DUE: ignore,
               E.LOST: lost_at_rest, E.ABSENT: ignore},
    S.STUCK: {E.RUNNING: ignore, E.ENDED: ignore, E.STUCK: stuck, E.GONE: gone, E.PROBED: ignore, E.DUE: ignore,
              E.LOST: lost, E.ABSENT: vanished},
    S.UNKNOWN: {E.RUNNING: running, E.ENDED: ended, E.STUCK: stuck, E.GONE: gone, E.PROBED: ignore, E.DUE: ignore,
                E.LOST: ignore, E.ABSENT: vanished},
}  # fmt: skip
TABLE: Mapping[tuple[State, Event], Handler] = {(s, e): h for s, row in ROWS.items() for e, h in row.items()}


def at_rest(process: Process, state: RunState | None, now_s: float) -> Process:
    """What an onlooker says of a process without a live run: nobody is there who would start it again."""
    if state is None or state.exit is None or state.exit.asked or not process.up:
        last = state.exit if state else None
        return to(replace(process, up=False, last_exit=last), State.STOPPED, "", now_s)
    cause = diagnose(state.exit, state.tail)
    detail = f": {state.exit}" if state.exit.message and state.exit.message not in cause.text else ""
    process = replace(process, run=state.run, seen=state, last_exit=state.exit, tail=state.tail, evidence=cause.evidence)
    return to(process, State.FAILED, cause.text + detail, now_s)


def step(process: Process, event: Event, body: Body, now_s: float) -> Step:
    """Move one process by one event. The caller has already dropped events about other runs."""
    return TABLE[process.state, event](process, body, now_s)


def settle(process: Process, now_s: float, new_run: Callable[[], str], *, may_spawn: bool, may_stop: bool) -> Step:
    """Ask for what brings the state nearer to the wish; nothing when it is there or on its way. Idempotent.

    The fleet says when a wish must wait: `may_spawn` while another run of it is ending, `may_stop` until its turn comes.
    """
    name, host = process.wanted.name, process.wanted.host
    outdated = process.seen is not None and process.seen.launch_hash not in ("", process.wanted.launch_hash)
    renew = process.run != "" and process.renew == process.run
    if process.state in (State.STARTING, State.READY) and may_stop and (not process.up or renew or outdated):
        reason = "asked to stop" if not process.up else "asked to restart" if renew else "its definition changed"
        process = replace(process, asked=True)
        return to(process, State.DRAINING, reason, now_s), (Unwatch(name), stopping(process))
    if not process.up and (process.state is State.BACKOFF or (process.state is State.PENDING and process.free)):
        return to(replace(process, next_attempt_s=None), State.STOPPED, "", now_s), ()
    if process.state is State.PENDING and process.up and process.spawnable and may_spawn:
        run = new_run()
        # Even a keeper that never says its first word is a start without progress.
        wake = WakeAt(name, run, now_s + process.wanted.stall_s)
        return to(with_run(process, run, now_s), State.STARTING, "", now_s), (Spawn(name, host, run), wake)
    return process, ()
