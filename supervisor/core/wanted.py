"""What a process should be: the part of the plan that decisions need."""

from __future__ import annotations

from dataclasses import dataclass, field

from .restart import RestartPolicy


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a process should be; made by the plan."""

    name: str
    service: str
    kind: str
    host: str
    launch_hash: str
    replica: int = 0
    rank: int = 0
    stop_rank: int = 0  # lower stops first
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    drain_s: float = 60.0
    term_s: float = 30.0
    stall_s: float = 300.0
    gpus: tuple[int | str, ...] = ()  # as written: indexes, or UUIDs
