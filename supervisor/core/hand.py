"""The operator's hand: what was stopped by name stays down, whatever files and policies say, until it is started by name
or leaves the files. Pure bookkeeping; `fleet.py` acts on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from supervisor.errors import UsageError

from .actions import Action, Stop
from .facts import Asked
from .process import Process, State, to
from .wanted import Wanted
from .words import nearest, plain


@dataclass(frozen=True, slots=True)
class Held:
    """Stopped by hand: by whom, and when on the wall clock."""

    by: str
    at_ms: int


Holds = Mapping[str, Held]  # by the name that was said: a process, or a service with every replica it will ever have


def meant(names: Collection[str], wanted: Mapping[str, Wanted]) -> frozenset[str]:
    """The same processes and services, once each is known; of a host its processes. Raises UsageError."""
    known = {*wanted, *(want.service for want in wanted.values())}
    there: dict[str, set[str]] = {}
    for want in wanted.values():
        there.setdefault(want.host, set()).add(want.name)
    for name in names:
        if name not in known and (name not in there or not name):
            hint = nearest(name, known | there.keys(), "see what there is: noray status -a")
            raise UsageError(f"no process, service or host is called {plain(name)!r}", hint)
    return frozenset().union(*({name} if name in known else there[name] for name in names))


def covers(names: Collection[str], want: Wanted) -> bool:
    return want.name in names or want.service in names


def held_by(held: Holds, want: Wanted) -> Held | None:
    return held.get(want.name) or held.get(want.service)


def after(held: Holds, asked: Asked, wanted: Mapping[str, Wanted]) -> Holds:
    """The holds after the operator's word. Said again it changes nothing: the first stop keeps its name and time.

    Where one process of a held service is started, the rest of that service is held one by one from then on.
    """
    if not asked.up:
        return {**{name: Held(asked.by, asked.at_ms) for name in asked.names}, **held}
    kept: dict[str, Held] = {}
    for name, hold in held.items():
        meant = [want for want in wanted.values() if covers((name,), want)]
        rest = [want for want in meant if not covers(asked.names, want)]
        if len(rest) == len(meant) and name not in asked.names:
            kept[name] = hold
        elif name not in asked.names:
            kept |= {want.name: hold for want in rest}
    return kept


def within(held: Holds, wanted: Mapping[str, Wanted]) -> Holds:
    """What is still in the files; the rest is forgotten with them."""
    return {name: hold for name, hold in held.items() if any(covers((name,), want) for want in wanted.values())}


def dropped(process: Process, now_s: float) -> Process:
    """What had failed is stopped, once somebody says so."""
    return to(process, State.STOPPED, "", now_s) if process.state is State.FAILED else process


def lowered(process: Process, skip_drain: bool) -> tuple[Process, tuple[Action, ...]]:
    """Wished down. Its turn to stop comes in `settle`; to skip a drain that is under way is asked at once, and once."""
    hurry = skip_drain and not process.skip_drain and process.state in (State.DRAINING, State.STOPPING)
    process = replace(process, up=False, skip_drain=process.skip_drain or skip_drain)
    return process, (Stop(process.wanted.host, process.run, 0.0),) if hurry else ()


def raised(process: Process, asked: Asked) -> Process:
    """Wished up, with a new budget if it is to be replaced; of runs that are not named, none is touched."""
    process = replace(process, up=True, skip_drain=False)
    if not process.run or process.run not in asked.runs or process.renew == process.run:
        return process
    return replace(process, renew=process.run, restarts_s=(), restarts=0)
