"""What changes from what is running to what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.core.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Change:
    process: str
    what: str  # "start", "stop" or "restart"
    why: str


def diff(now: Mapping[str, Wanted], then: Mapping[str, Wanted]) -> tuple[Change, ...]:
    """In the order of the names; empty when nothing would be touched."""
    changes = []
    for name in sorted(now.keys() | then.keys()):
        if name not in then:
            changes.append(Change(name, "stop", "no longer in the file"))
        elif name not in now:
            changes.append(Change(name, "start", "new in the file"))
        elif not now[name].host or not then[name].host:
            if then[name].host:
                changes.append(Change(name, "start", f"has a place now, on {then[name].host}"))
            elif now[name].host:
                changes.append(Change(name, "stop", f"has no place any more: {then[name].unplaced}"))
        elif now[name].host != then[name].host:
            changes.append(Change(name, "restart", f"moves from {now[name].host} to {then[name].host}"))
        elif now[name].launch_hash != then[name].launch_hash:
            changes.append(Change(name, "restart", "its definition changed"))
    return tuple(changes)
