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
    """Begin, or hasten, the stop ladder of a run. `term_s`: from now to SIGKILL; `drain_s` of it for what is in flight."""

    host: str
    run: str
    term_s: float
    drain_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fence:
    """Take a run out of the routing now, though it lives."""

    host: str
    run: str


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


@dataclass(frozen=True, slots=True)
class WakeHostAt:
    """Come back as `HostDue` at this moment. A later one replaces an earlier one."""

    host: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Witness:
    """Let the frontends' hosts look whether the workers of this host answer them. Comes back as `Witnessed`, always."""

    host: str


@dataclass(frozen=True, slots=True)
class Route:
    """Say in Dynamo's registry who of a host may be routed to, by the port of its request plane. Tried until it is done; for
    one port the newest word counts.
    """

    host: str
    out: frozenset[int] = frozenset()  # alive perhaps, and out of reach: taken out, with what is needed to put it back
    back: frozenset[int] = frozenset()  # put back, if it was taken out
    dead: frozenset[int] = frozenset()  # its lease is revoked


Action = Spawn | Stop | Fence | Watch | Unwatch | TellFence | WakeAt | WakeHostAt | Witness | Route
