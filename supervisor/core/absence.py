"""A host is silent: is it away, or only our line to it?

A second witness decides: the hosts of the frontends dial its workers, from where their requests come. Where one answers, our
own line is broken and nothing is touched. Where none does, the frontends would send every n-th request into a hole until
Dynamo's lease expires (60 s; measured, power cut of 1 of 2 hosts: 379 requests done in 35 s, 900 with this). So their entries
are taken out of the registry, kept aside, and put back as soon as anybody reaches them again. Nothing is concluded about what
runs there: that is the host's own word, when it is back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .actions import Action, Route, WakeHostAt, Witness
from .cordon import by_hand
from .facts import HostFound, HostLost, Phase, Routed, RunState, Witnessed
from .known import Fleet, Host

SUSPECT_AFTER_S = 5.0  # of silence
LOOK_AGAIN_S = 2.0  # while it is away: who answers by now is put back, who has stopped to is taken out

Result = tuple[Fleet, tuple[Action, ...]]


def lost(fleet: Fleet, fact: HostLost, now_s: float) -> Result:
    """The line broke, or the host never answered: look closer once it has been silent for so long."""
    host = fleet.hosts[fact.host]
    if host.up or host.refused or host.heard_s is not None:
        return fleet, ()
    heard_s = now_s if fact.heard_s is None else fact.heard_s
    return _with(fleet, replace(host, heard_s=heard_s)), (WakeHostAt(host.name, heard_s + SUSPECT_AFTER_S),)


def due(fleet: Fleet, name: str, now_s: float) -> Result:
    host = fleet.hosts[name]
    if fleet.stopping or (host.up and not host.unsure):
        return fleet, ()
    if host.heard_s is not None and now_s < host.heard_s + SUSPECT_AFTER_S:
        return fleet, (WakeHostAt(name, host.heard_s + SUSPECT_AFTER_S),)
    return fleet, (Witness(name),)


def witnessed(fleet: Fleet, fact: Witnessed, now_s: float) -> Result:
    """Of a host that is up only this counts: who is out and can be reached goes in again. All else is its own word."""
    host = fleet.hosts[fact.host]
    away, kept = host.heard_s is not None, by_hand(fleet, host.name)
    out = frozenset(s.port for s in fact.seen if not s.answers and not s.out) if away else frozenset()
    back = frozenset(s.port for s in fact.seen if s.answers and s.out and not s.stalled) - kept
    known = host.out if fact.blind else frozenset(s.port for s in fact.seen if s.out)
    again = fact.ever and (away or bool(fact.blind or known - back - kept))
    fleet = _with(fleet, replace(host, out=known, witness=_sentence(fact) if away else "", unsure=again and not away))
    actions: list[Action] = [Route(host.name, out=out, back=back)] if out or back else []
    return fleet, (*actions, WakeHostAt(host.name, now_s + LOOK_AGAIN_S)) if again else tuple(actions)


def _sentence(fact: Witnessed) -> str:
    answering = sum(s.answers for s in fact.seen)
    silent = len(fact.seen) - answering
    if fact.blind:
        return f"nobody else could look at it: {fact.blind}"
    if not fact.seen:
        return "no worker there is registered, so nothing is routed to it"
    if not silent:
        return f"the frontends reach {_workers(answering)} there: only our own line is broken, nothing is touched"
    said = f"the frontends do not reach {_workers(silent)} there either: out of the routing until they are back"
    return f"{said}; {_workers(answering)} they do reach" if answering else said


def _workers(count: int) -> str:
    return "the worker" if count == 1 else f"the {count} workers"


def found(fleet: Fleet, fact: HostFound) -> Result:
    """Its own word again. Who died while it was away, with nobody to fence it, is fenced now; who lives is looked at from where
    requests come, and put back: an earlier controller may have taken it out.
    """
    host = replace(fleet.hosts[fact.host], heard_s=None, witness="")
    here = _ports(run for run in fact.runs if run.phase is not Phase.GONE)
    ended = _ports(run for run in fact.runs if run.phase is Phase.GONE and run.fenced_ms is None)
    dead = (ended | host.out) - here
    actions: list[Action] = [Route(fact.host, dead=dead)] if dead else []
    return _with(fleet, replace(host, unsure=bool(here))), (*actions, Witness(fact.host)) if here else tuple(actions)


def routed(fleet: Fleet, fact: Routed) -> Result:
    """Carried out. If the host came back meanwhile, what was taken out goes in again as soon as it can be reached."""
    host = fleet.hosts[fact.host]
    late = bool(fact.out - by_hand(fleet, host.name)) and host.up
    host = replace(host, out=(host.out | fact.out) - fact.back - fact.dead, unsure=host.unsure or late)
    return _with(fleet, host), (Witness(host.name),) if late else ()


def gone(fleet: Fleet, name: str, run: RunState) -> Fleet:
    """What is out of the routing ends with the run that it was: a later one may have its number."""
    host = fleet.hosts.get(name)
    return fleet if host is None or run.door not in host.out else _with(fleet, replace(host, out=host.out - {run.door}))


def _ports(runs: Iterable[RunState]) -> frozenset[int]:
    return frozenset(run.door for run in runs) - {0}


def _with(fleet: Fleet, host: Host) -> Fleet:
    return replace(fleet, hosts={**fleet.hosts, host.name: host})
