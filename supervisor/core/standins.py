"""Who stands in for whom: replicas whose host has been lost for longer than their file lets it be.

Unreachable is unknown, never dead, so nobody is moved: a new replica, with a number of its own, serves on another host. One for
one, and durable: once there, it stays until the one it stands in for is ready again, and is then the one that leaves.
"""

from __future__ import annotations

from collections.abc import Mapping

from .known import Fleet
from .process import Process, State
from .wanted import Wanted

AWAY = (
    State.UNKNOWN,
    State.PENDING,
)  # of what is to run on a host that is lost; what had failed there before is not missed now


def stand_ins(fleet: Fleet, now_s: float) -> dict[str, str]:
    """Every stand-in that there should be now, and whom it stands in for; those there are stand in `fleet.wanted`."""
    found: dict[str, str] = {}
    if fleet.stopping:  # who leaves then, leaves in its turn
        return {name: want.replaces for name, want in fleet.wanted.items() if want.replaces}
    for name, want in fleet.wanted.items():
        process = fleet.processes.get(name)
        if want.replaces or want.lost_after_s is None or process is None or not process.up or process.state is State.READY:
            continue
        here = next((stand for stand, other in fleet.wanted.items() if other.replaces == name), None)
        if here is not None and not _lost(fleet, here, now_s):
            found[here] = name
        elif here is not None or _lost(fleet, name, now_s):
            found[_number(fleet, want, found)] = name
    return found


def look_again_s(fleet: Fleet, now_s: float) -> float | None:
    """When time alone makes the next difference; None: never."""
    dues = (_due(fleet, name) for name in fleet.wanted)
    return min((due for due in dues if due is not None and due > now_s), default=None)


def _lost(fleet: Fleet, name: str, now_s: float) -> bool:
    due = _due(fleet, name)
    return due is not None and due <= now_s


def _due(fleet: Fleet, name: str) -> float | None:
    """When it will have been away for too long. A host that refuses us answers: a human must act, and no replica helps."""
    process: Process | None = fleet.processes.get(name)
    if process is None or process.state not in AWAY or process.wanted.lost_after_s is None:
        return None
    host = fleet.hosts.get(process.wanted.host)
    if host is None or host.up or host.refused or host.unasked:
        return None
    return host.since_s + process.wanted.lost_after_s


def _number(fleet: Fleet, want: Wanted, found: Mapping[str, str]) -> str:
    """The next free name of its service: nobody has it now, and nothing that still ends does."""
    taken = {*fleet.wanted, *fleet.processes, *fleet.hosts, *found, *(other.service for other in fleet.wanted.values())}
    number = 1 + max(each.replica for each in fleet.wanted.values() if each.service == want.service and not each.replaces)
    while f"{want.service}-{number}" in taken:
        number += 1
    return f"{want.service}-{number}"
