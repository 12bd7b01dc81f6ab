"""How a stop escalates. Pure: (ladder, event, now) -> (ladder, what to do); the keeper does it.

    idle --ask--> term_leader --leader gone or due--> term_rest --due--> kill --due--> stuck
                                                              any step --tree empty--> done

Asking again can only bring deadlines closer (a second Ctrl-C skips the drain), never further away. A leader that ends
unasked enters at term_rest: what it leaves behind is ended too. `kill` never loops for ever: what SIGKILL cannot end
within `kill_s` is `stuck`, which still becomes `done` if the kernel lets go one day.
"""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional, Tuple

IDLE, TERM_LEADER, TERM_REST, KILL, STUCK, DONE = "idle", "term_leader", "term_rest", "kill", "stuck", "done"
STEPS = (IDLE, TERM_LEADER, TERM_REST, KILL, STUCK, DONE)
ASK, LEADER_GONE, DUE, EMPTY = "ask", "leader_gone", "due", "empty"
EVENTS = (ASK, LEADER_GONE, DUE, EMPTY)

REST_S = 1.0  # what a leader leaves behind gets this long after its SIGTERM
KILL_S = 10.0  # what survives SIGKILL this long is stuck


class Ladder(NamedTuple):
    step: str = IDLE
    deadline: Optional[float] = None  # on the clock that `now` is read from; None = wait for ever
    term_s: float = 30.0  # what the leader gets after SIGTERM


Result = Tuple[Ladder, Optional[str]]  # the step just entered, to be carried out; None = nothing to do


def _enter(step: str, after_s: Optional[float]) -> Callable[[Ladder, float], Result]:
    def handler(ladder: Ladder, now: float) -> Result:
        deadline = None if after_s is None else now + after_s
        return ladder._replace(step=step, deadline=deadline), step

    return handler


def _ask(ladder: Ladder, now: float) -> Result:
    return ladder._replace(step=TERM_LEADER, deadline=now + ladder.term_s), TERM_LEADER


def _ask_again(ladder: Ladder, now: float) -> Result:
    sooner = now + ladder.term_s
    return ladder._replace(deadline=sooner if ladder.deadline is None else min(sooner, ladder.deadline)), None


def _ignore(ladder: Ladder, now: float) -> Result:
    return ladder, None


_rest, _kill, _stuck, _done = _enter(TERM_REST, REST_S), _enter(KILL, KILL_S), _enter(STUCK, None), _enter(DONE, None)

TABLE: Dict[Tuple[str, str], Callable[[Ladder, float], Result]] = {
    (IDLE, ASK): _ask,
    (IDLE, LEADER_GONE): _rest,
    (IDLE, DUE): _ignore,
    (IDLE, EMPTY): _done,
    (TERM_LEADER, ASK): _ask_again,
    (TERM_LEADER, LEADER_GONE): _rest,
    (TERM_LEADER, DUE): _rest,
    (TERM_LEADER, EMPTY): _done,
    (TERM_REST, ASK): _ignore,
    (TERM_REST, LEADER_GONE): _ignore,
    (TERM_REST, DUE): _kill,
    (TERM_REST, EMPTY): _done,
    (KILL, ASK): _ignore,
    (KILL, LEADER_GONE): _ignore,
    (KILL, DUE): _stuck,
    (KILL, EMPTY): _done,
    (STUCK, ASK): _kill,  # an operator may try once more
    (STUCK, LEADER_GONE): _ignore,
    (STUCK, DUE): _ignore,
    (STUCK, EMPTY): _done,
    (DONE, ASK): _ignore,
    (DONE, LEADER_GONE): _ignore,
    (DONE, DUE): _ignore,
    (DONE, EMPTY): _ignore,
}


def on(ladder: Ladder, event: str, now: float) -> Result:
    """The one way the ladder moves. Every cell is written."""
    return TABLE[ladder.step, event](ladder, now)
