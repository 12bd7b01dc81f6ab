"""How a stop escalates. Pure: (ladder, event, now) -> (ladder, what to do); the keeper does it.

    idle --ask--> drain --drained, unserved or due--> term_leader --leader gone or due--> term_rest --due--> kill --due--> stuck
                                      any step --tree empty--> done; with GPUs: gpu_return --memory back--> done
                                                                                gpu_return --due--> gpu_held

The drain comes before the signal, since SIGTERM is none: vLLM under Dynamo 1.4.2 breaks off what it generates 5 s after it,
and at once if its EngineCore hears it too (measured, docs/gpu-results.md). For the same reason the leader hears it alone.
What nobody is routed to (`unserved`: it is still loading) has nothing to finish, and a leader of vLLM that loads is deaf: told
to end, it loads to the end, registers, is sent requests and drops them (measured). It gets LOADING_S in all.

An asked end is killed `term_s` after it was asked for, whoever is deaf, and earlier if the drain was short: the time to end
is counted from the signal. The rest hears SIGTERM shortly before that, out of the leader's time and not after it. Asking again
can only bring deadlines closer (a second Ctrl-C skips the drain), never further away. A leader that ends unasked enters at
term_rest: what it leaves behind is ended too. `kill` never loops for ever: what SIGKILL cannot end within KILL_S is `stuck`,
and memory that no process holds any more but the GPU does not give back is `gpu_held`. Both keep their claims, and both still
become `done` if the kernel or the driver lets go one day.
"""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional, Tuple

IDLE, DRAIN, TERM_LEADER, TERM_REST, KILL, STUCK = "idle", "drain", "term_leader", "term_rest", "kill", "stuck"
GPU_RETURN, GPU_HELD, DONE = "gpu_return", "gpu_held", "done"
STEPS = (IDLE, DRAIN, TERM_LEADER, TERM_REST, KILL, STUCK, GPU_RETURN, GPU_HELD, DONE)
ASK, DRAINED, UNSERVED, LEADER_GONE, DUE = "ask", "drained", "unserved", "leader_gone", "due"
EMPTY, RETURNED = "empty", "returned"
EVENTS = (ASK, DRAINED, UNSERVED, LEADER_GONE, DUE, EMPTY, RETURNED)

REST_S = 1.0  # what a leader leaves behind gets this long after its SIGTERM
HASTE_S = 0.5  # and this long if the leader is deaf; also the least between SIGTERM and SIGKILL, however hasty
LOADING_S = 3.0  # from SIGTERM to SIGKILL, for what is loading
KILL_S = 10.0  # what survives SIGKILL this long is stuck
RETURN_S = 30.0  # for the memory of the GPUs to come back; seen to take under a second, and several after a crash


class Ladder(NamedTuple):
    step: str = IDLE
    deadline: Optional[float] = None  # on the clock that `now` is read from; None = wait for ever
    term_s: float = 30.0  # from the word to SIGKILL
    drain_s: float = 0.0  # how much of that is for the drain; 0 = none
    kill_at: Optional[float] = None  # of an end that was asked for
    gpus: bool = False  # it holds some, whose memory must be back before it is done


Result = Tuple[Ladder, Optional[str]]  # the step just entered, to be carried out; None = nothing to do


def _enter(step: str, after_s: Optional[float]) -> Callable[[Ladder, float], Result]:
    def handler(ladder: Ladder, now: float) -> Result:
        deadline = None if after_s is None else now + after_s
        return ladder._replace(step=step, deadline=deadline), step

    return handler


def _within(ladder: Ladder, now: float, after_s: float) -> Ladder:
    """To be killed so long from now; a time that was set earlier is only ever brought closer."""
    kill_at = now + max(after_s, HASTE_S)
    return ladder._replace(kill_at=kill_at if ladder.kill_at is None else min(kill_at, ladder.kill_at))


def _ask(ladder: Ladder, now: float) -> Result:
    asked = _within(ladder, now, ladder.term_s)
    if ladder.drain_s > 0:
        return asked._replace(step=DRAIN, deadline=now + min(ladder.drain_s, ladder.term_s)), DRAIN
    return _term(asked, now)


def _ask_again(ladder: Ladder, now: float) -> Result:
    return _term(_within(ladder, now, ladder.term_s), now)[0], None


def _drain_less(ladder: Ladder, now: float) -> Result:
    deadline = now + min(ladder.drain_s, ladder.term_s)
    deadline = deadline if ladder.deadline is None else min(deadline, ladder.deadline)
    return _within(ladder, now, ladder.term_s)._replace(deadline=deadline), None


def _drained(ladder: Ladder, now: float) -> Result:
    """Nothing is in flight any more: what is left of the drain's time is nobody's."""
    return _term(_within(ladder, now, ladder.term_s - ladder.drain_s), now)


def _unserved(ladder: Ladder, now: float) -> Result:
    return _term(_within(ladder, now, min(LOADING_S, ladder.term_s - ladder.drain_s)), now)


def _term(ladder: Ladder, now: float) -> Result:
    kill_at = now + HASTE_S if ladder.kill_at is None else ladder.kill_at
    return ladder._replace(step=TERM_LEADER, deadline=kill_at - HASTE_S), TERM_LEADER


def _hasten(ladder: Ladder, now: float) -> Result:
    kill_at = now + max(ladder.term_s, HASTE_S)
    return ladder._replace(deadline=kill_at if ladder.deadline is None else min(kill_at, ladder.deadline)), None


def _rest(ladder: Ladder, now: float) -> Result:
    deadline = now + REST_S if ladder.kill_at is None else min(now + REST_S, ladder.kill_at)
    return ladder._replace(step=TERM_REST, deadline=deadline), TERM_REST


def _empty(ladder: Ladder, now: float) -> Result:
    return (_return if ladder.gpus else _done)(ladder, now)


def _ignore(ladder: Ladder, now: float) -> Result:
    return ladder, None


_kill, _stuck = _enter(KILL, KILL_S), _enter(STUCK, None)
_return, _held, _done = _enter(GPU_RETURN, RETURN_S), _enter(GPU_HELD, None), _enter(DONE, None)

ROWS: Dict[str, Dict[str, Callable[[Ladder, float], Result]]] = {
    IDLE: {ASK: _ask, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _rest, DUE: _ignore, EMPTY: _empty,
           RETURNED: _ignore},
    DRAIN: {ASK: _drain_less, DRAINED: _drained, UNSERVED: _unserved, LEADER_GONE: _rest, DUE: _term, EMPTY: _empty,
            RETURNED: _ignore},
    TERM_LEADER: {ASK: _ask_again, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _rest, DUE: _rest, EMPTY: _empty,
                  RETURNED: _ignore},
    TERM_REST: {ASK: _hasten, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _ignore, DUE: _kill, EMPTY: _empty,
                RETURNED: _ignore},
    KILL: {ASK: _ignore, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _ignore, DUE: _stuck, EMPTY: _empty,
           RETURNED: _ignore},
    # An operator may try once more.
    STUCK: {ASK: _kill, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _ignore, DUE: _ignore, EMPTY: _empty,
            RETURNED: _ignore},
    GPU_RETURN: {ASK: _ignore, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _ignore, DUE: _held, EMPTY: _ignore,
                 RETURNED: _done},
    GPU_HELD: {ASK: _ignore, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _ignore, DUE: _ignore, EMPTY: _ignore,
               RETURNED: _done},
    DONE: {ASK: _ignore, DRAINED: _ignore, UNSERVED: _ignore, LEADER_GONE: _ignore, DUE: _ignore, EMPTY: _ignore,
           RETURNED: _ignore},
}  # fmt: skip


def on(ladder: Ladder, event: str, now: float) -> Result:
    """The one way the ladder moves. Every cell is written."""
    return ROWS[ladder.step][event](ladder, now)
