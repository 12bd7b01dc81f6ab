"""Actions: what we ask the world to do. Performing one never waits; what comes of it comes back as facts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawn:
    process: str
    host: str
    run: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Begin, or hasten, the stop ladder of a run. `term_s`: how long its leader may take after SIGTERM."""

    host: str
    run: str
    term_s: float


@dataclass(frozen=True, slots=True)
class Watch:
    """Look at this run's readiness again and again, until it is replaced by another `Watch` or an `Unwatch`."""

    process: str
    run: str


@dataclass(frozen=True, slots=True)
class Unwatch:
    process: str


@dataclass(frozen=True, slots=True)
class TellFence:
    """Give the keeper the lease to revoke the moment its child is gone."""

    host: str
    run: str
    lease: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Come back as `Due` at this moment of the clock that `now_s` is read from. A later one replaces an earlier one."""

    process: str
    run: str
    at_s: float


Action = Spawn | Stop | Watch | Unwatch | TellFence | WakeAt
