"""What a process should be: the part of the plan that decisions need."""

from __future__ import annotations

from dataclasses import dataclass, field

from .restart import RestartPolicy

STORES = frozenset({"etcd", "gateway", "nats"})  # kinds: they hold what the others register, and register nothing themselves
INFRASTRUCTURE = STORES | {"frontend"}  # every other kind is a worker, of a model or of one role of it


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a process should be; made by the plan."""

    name: str
    service: str
    kind: str
    host: str  # "": it has no place yet, and `unplaced` says why
    launch_hash: str
    replica: int = 0
    rank: int = 0
    stop_rank: int = 0  # lower stops first
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    cold: str = ""  # what its first start makes on a host for all later ones, its caches: those of one name wait for the first
    drain_s: float = 60.0
    term_s: float = 30.0
    stall_s: float = 300.0  # a start without progress has failed
    alive_s: float = 300.0  # one that was ready, and is not for so long, has failed
    gpus: tuple[int | str, ...] = ()  # as written: indexes, or UUIDs
    unplaced: str = ""
    replaces: str = ""  # whom it stands in for, while that one's host is lost
    lost_after_s: float | None = None  # its host lost for so long, another stands in for it; None = nobody ever
