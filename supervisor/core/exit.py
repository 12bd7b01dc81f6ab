"""How a run's leader ended, as its host recorded it."""

from __future__ import annotations

import signal
from dataclasses import dataclass

NAMED = frozenset(signal.Signals)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a leader ended. `code` and `signal` are both None where nobody could know (its keeper had died)."""

    code: int | None
    signal: int | None
    at_ms: int  # wall clock of the host
    asked: bool
    # A word, else a sentence or nothing. Refusals: held, port, missing, logout, exec, start. With its host: reboot, container,
    # shutdown. Others: gpu, terminated.
    cause: str = ""
    message: str = ""
    fenced_ms: int | None = None  # when its keeper took it out of routing
    # What its host saw of its end, as (what, sentence): oom, the kernel killed for lack of memory; gpu, one of its is ill.
    signs: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.signal is not None:
            return (
                f"killed by {signal.Signals(self.signal).name}" if self.signal in NAMED else f"killed by signal {self.signal}"
            )
        if self.code is not None:
            return f"exited {self.code}"
        return self.cause or "exit code unknown"
