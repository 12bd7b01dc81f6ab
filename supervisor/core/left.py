"""What is not as the operator asked for it, as he should read it. `names`: of these processes and services; all, if none."""

from __future__ import annotations

from collections.abc import Collection

from .known import Fleet
from .process import AT_REST, Process, State


def left_over(fleet: Fleet, names: Collection[str] = ()) -> list[str]:
    """What a stop could not end."""
    left = []
    for p in _meant(fleet, names):
        name, host = p.wanted.name, fleet.hosts.get(p.wanted.host)
        if p.state is State.UNKNOWN and host is not None and not host.up:
            left.append(f"not known: {name} ({host.name} does not answer: {host.why})")
        elif p.state is State.STUCK and p.seen and p.seen.stop_step == "gpu_held":
            left.append(f"still held: {name} on {p.wanted.host}: {p.reason}")
        elif p.state not in AT_REST:
            left.append(f"still running: {name}{_where(p)}: {p.state}, {p.reason}")
    ending = {p.wanted.name for p in _meant(fleet, names)}
    for run, surplus in fleet.surplus.items():
        if not names or surplus.state.process in ending:
            left.append(f"still running: {surplus.state.process} (run {run}, {surplus.host}): no file wants it")
    return left


def not_serving(fleet: Fleet, names: Collection[str]) -> list[str]:
    """What a start could not bring up."""
    meant = [p for p in _meant(fleet, names) if p.state is not State.READY]
    return [f"not ready: {p.wanted.name} ({p.wanted.host}): {p.state}{p.reason and ', ' + p.reason}" for p in meant]


def _meant(fleet: Fleet, names: Collection[str]) -> list[Process]:
    return fleet.covered(names) if names else list(fleet.processes.values())


def _where(p: Process) -> str:
    return f" (pid {p.seen.pid} on {p.wanted.host})" if p.seen and p.seen.pid else f" ({p.wanted.host})"
