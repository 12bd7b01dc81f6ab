"""Out of the routing by the operator's word, reversibly: no new requests reach a worker, what it is answering goes on.

A word covers what it names, whatever comes later: a process and a service every run they will have, a host whatever runs
there, a GPU (`gpu01:3`) whatever holds it. Nobody is placed anew on such a host or GPU. Pure bookkeeping; who is taken out for
being out of reach is `absence.py`'s to say.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

from supervisor.errors import UsageError

from .actions import Action, Route
from .facts import CordonAsked, Phase
from .hand import Held, Holds
from .known import Fleet, Host
from .process import Process, State
from .wanted import INFRASTRUCTURE, Wanted
from .words import nearest, plain

UP = (State.STARTING, State.READY)


def meant(names: Collection[str], wanted: Mapping[str, Wanted], hosts: Collection[str]) -> frozenset[str]:
    """These names, once each is known and can be cordoned. Raises UsageError."""
    kinds = {**{want.service: want.kind for want in wanted.values()}, **{want.name: want.kind for want in wanted.values()}}
    for name in names:
        host, colon, gpu = name.rpartition(":")
        if name in hosts or (colon and host in hosts and gpu.isdecimal()):
            continue
        if name not in kinds:
            hint = nearest(name, {*kinds, *hosts}, "a process, a service, a host, or a GPU as HOST:INDEX")
            raise UsageError(f"nothing is called {plain(name)!r}", hint)
        if kinds[name] in INFRASTRUCTURE:
            raise UsageError(f"{name} is no worker: nothing is routed to it", "a frontend says 503 itself while it stops")
    return frozenset(names)


def names_of(process: Process) -> set[str]:
    """All that it is covered by."""
    want = process.wanted
    if want.kind in INFRASTRUCTURE:
        return set()
    gpus = {gpu.index for gpu in process.seen.gpus} if process.seen else {gpu for gpu in want.gpus if isinstance(gpu, int)}
    return {want.name, want.service, want.host, *(f"{want.host}:{gpu}" for gpu in gpus)}


def words(cordons: Holds, process: Process) -> list[str]:
    """By which of its names it is cordoned, the first that was said first."""
    return sorted(names_of(process) & cordons.keys(), key=lambda name: (cordons[name].at_ms, name))


def after(cordons: Holds, asked: CordonAsked) -> Holds:
    """The first word keeps its name and time. An uncordon lifts what was said by these names, and nothing else."""
    if asked.on:
        return {**{name: Held(asked.by, asked.at_ms) for name in asked.names}, **cordons}
    return {name: hold for name, hold in cordons.items() if name not in asked.names}


def within(cordons: Holds, before: Mapping[str, Wanted], wanted: Mapping[str, Wanted]) -> Holds:
    """What leaves the files is forgotten with them. A host that nobody is on any more may get somebody again."""
    left = _names(before) - _names(wanted)
    return {name: hold for name, hold in cordons.items() if name not in left}


def out(host: Host | None, process: Process) -> bool:
    """It is not routed to, for whichever reason."""
    return host is not None and _port(process) in host.out


class Aside(enum.Enum):
    NO = enum.auto()
    SOON = enum.auto()  # as soon as it is registered, or the registry answers
    OUT = enum.auto()


def aside(fleet: Fleet, process: Process) -> Aside:
    """Whether anything new reaches it."""
    if out(fleet.hosts.get(process.wanted.host), process):
        return Aside.OUT
    return Aside.SOON if words(fleet.cordons, process) else Aside.NO


def late(fleet: Fleet, process: Process) -> bool:
    """Whether the routing is not yet as the operator's word has it."""
    if process.state not in (*UP, State.UNKNOWN) or not _port(process):
        return False
    gone = out(fleet.hosts.get(process.wanted.host), process)
    if not words(fleet.cordons, process):
        return gone
    return not gone and (process.state is State.READY or process.instance != "")


def still_out(fleet: Fleet, names: Collection[str]) -> list[str]:
    """Of those that were put back, who is out by another word."""
    out_by = {p.wanted.name: words(fleet.cordons, p) for p in fleet.processes.values() if names_of(p) & set(names)}
    return [f"still cordoned: {name}, as {' and '.join(said)} is" for name, said in out_by.items() if said]


def by_hand(fleet: Fleet, host: str) -> frozenset[int]:
    """The request-plane ports there that stay out, whoever reaches them."""
    here = (p for p in fleet.processes.values() if p.wanted.host == host and words(fleet.cordons, p))
    return frozenset(port for port in map(_port, here) if port)


def routes(before: Fleet, fleet: Fleet) -> tuple[Action, ...]:
    """Whoever is to be out and is registered by now is taken out, whose cordon was lifted is put back: once each, as a `Route`
    is tried until it is done.
    """
    if fleet.cordons is before.cordons and not fleet.cordons:
        return ()
    actions: list[Action] = []
    for name, process in fleet.processes.items():
        was = before.processes.get(name, process)
        if fleet.cordons is before.cordons and was is process:
            continue
        host, port = process.wanted.host, _port(process)
        if not port:
            continue
        if _to_be_out(fleet, process):
            if was.run != process.run or not _to_be_out(before, was):
                actions.append(Route(host, out=frozenset({port})))
        elif process.state in UP and words(before.cordons, process) and not words(fleet.cordons, process):
            actions.append(Route(host, back=frozenset({port})))
    return tuple(actions)


def _to_be_out(fleet: Fleet, process: Process) -> bool:
    live = process.seen is not None and process.seen.phase is Phase.RUNNING
    return live and process.state in UP and process.instance != "" and bool(words(fleet.cordons, process))


def _names(wanted: Mapping[str, Wanted]) -> set[str]:
    return {want.service for want in wanted.values()} | wanted.keys()


def _port(process: Process) -> int:
    """Of its request plane; 0 if it has none."""
    return process.seen.door if process.seen else 0
