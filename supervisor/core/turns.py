"""Whose turn it is: in which order all stop, and who must wait before it is started. Asked after every fact."""

from __future__ import annotations

from dataclasses import replace

from .actions import Action, Spawn
from .ids import run_id
from .known import Fleet
from .life import settle
from .process import AT_REST, Process, State
from .wanted import STORES

NOT_YET = {State.STARTING, State.DRAINING, State.STOPPING}
BEHIND = "the first of its kind on its host is being started"
HOLDS_NOBODY = {*AT_REST, State.UNKNOWN, State.STUCK, State.BACKOFF}
DOWN = {*AT_REST, State.DRAINING, State.STOPPING, State.STUCK, State.BACKOFF}


def settled(before: Fleet, fleet: Fleet, now_s: float) -> tuple[Fleet, tuple[Action, ...]]:
    """Let each process ask for what it wants. Whom nothing has happened to since `before` wants nothing new, unless the turn
    has come to it or the way is free: of 400, one fact moves one (looking at all of them took most of the controller's time).
    """
    moved = [name for name, process in fleet.processes.items() if before.processes.get(name) is not process]
    turn, etcd_away, closed = _turn(fleet), _etcd_away(fleet), fleet.closed
    ways = fleet.surplus is before.surplus and closed == before.closed and etcd_away == _etcd_away(before)
    loading = _loading(fleet)
    if not ways or turn != _turn(before) or loading != _loading(before):
        moved = list(fleet.processes)
    if not moved:
        return fleet, ()
    ending = {s.state.process for s in fleet.surplus.values()}
    actions: list[Action] = []
    processes = dict(fleet.processes)
    runs, under_way = fleet.runs, set(loading)

    def new_run() -> str:
        nonlocal runs
        runs += 1
        return run_id(max(fleet.epoch_ms + int((now_s - fleet.epoch_s) * 1000), fleet.newest_ms + 1), runs)

    for name in moved:
        process = fleet.processes[name]
        may_stop = turn is None or process.up or process.wanted.stop_rank <= turn
        shut = closed.get(process.wanted.host, "")
        headless = etcd_away and process.wanted.kind not in STORES
        cold = (process.wanted.host, process.wanted.cold)
        behind = cold in under_way
        free = name not in ending and not shut and not headless and not behind
        process, more = settle(process, now_s, new_run, may_spawn=free, may_stop=may_stop)
        if process.up and process.state is State.PENDING and (shut or headless or behind):
            away = shut or ("waits for etcd" if headless else BEHIND)
            process = replace(process, reason=away)
        if process.wanted.cold and cold not in fleet.warm and any(isinstance(action, Spawn) for action in more):
            under_way.add(cold)
        processes[name] = process
        actions += more
    return replace(fleet, processes=processes, runs=runs), tuple(actions)


def warmed(fleet: Fleet) -> Fleet:
    """With what has served since."""
    new = {_cold(p) for p in fleet.processes.values() if p.wanted.cold and p.state is State.READY} - fleet.warm
    return replace(fleet, warm=fleet.warm | new) if new else fleet


def _loading(fleet: Fleet) -> frozenset[tuple[str, str]]:
    """What is being started for the first time on its host."""
    first = (p for p in fleet.processes.values() if p.wanted.cold and p.state in NOT_YET and not p.was_ready)
    return frozenset(map(_cold, first)) - fleet.warm


def _cold(process: Process) -> tuple[str, str]:
    return process.wanted.host, process.wanted.cold


def _etcd_away(fleet: Fleet) -> bool:
    """It has served, and does not: whoever starts now finds nobody to register with, fails, and has used up his budget when it
    is back. Its own first start is awaited by each process itself, which takes less time; of one whose host is silent this is
    not known.
    """
    members = [p for p in fleet.processes.values() if p.wanted.kind == "etcd"]
    return bool(members) and all(p.state in DOWN or (p.state is State.STARTING and p.was_ready) for p in members)


def _turn(fleet: Fleet) -> int | None:
    """Of what is wished down, the lowest rank that is not at rest; None = nothing. Who cannot be reached holds nobody up."""
    going = [p for p in fleet.processes.values() if not p.up and p.state not in HOLDS_NOBODY]
    holds = [p for p in going if not (p.state is State.PENDING and p.free)]
    return min((p.wanted.stop_rank for p in holds), default=None)
