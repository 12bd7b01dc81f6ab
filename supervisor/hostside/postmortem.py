"""What a host saw of a run's end and the run itself could not say, as `signs` of its exit: {"oom": sentence, "gpu": sentence}.

Nobody is told by whom a SIGKILL was sent. The kernel counts whom it killed for lack of memory: for the whole host
(oom_kill in /proc/vmstat), and for a cgroup that has a memory controller. So a count that rose shortly before an end is a sign
of it, of a cgroup of the run's own a proof.
"""

from __future__ import annotations

import time
from typing import Callable, Dict, Optional, Tuple

from .cgroup import Cgroup
from .procfs import oom_kills

VMSTAT = "/proc/vmstat"
# Between two readings: an end is compared with one that is 30 to 60 s old. A process of hundreds of GB takes many seconds to
# die, and its leader some more to notice.
LOOK_S = 30.0


class Kills:
    """The kernel's count now and then. `look` every LOOK_S."""

    def __init__(self, vmstat: str = VMSTAT, now: Callable[[], float] = time.monotonic) -> None:
        self._vmstat, self._now = vmstat, now
        self._old: Tuple[float, Optional[int]] = (now(), oom_kills(vmstat))
        self._new = self._old

    def look(self) -> None:
        self._old, self._new = self._new, (self._now(), oom_kills(self._vmstat))

    def signs(self, group: Optional[Cgroup]) -> Dict[str, str]:
        """Of an end that has just been. Nothing of others is said where the run's own cgroup knows that it was not meant."""
        own = group.oom_kills() if group is not None else None
        if own is not None:
            told = "the kernel killed %d of its processes for lack of memory (memory.events of its cgroup)" % own
            return {"oom": told} if own else {}
        (began, before), after = self._old, oom_kills(self._vmstat)
        if before is None or after is None or after <= before:
            return {}
        last_s = max(self._now() - began, 1.0)
        return {"oom": "oom_kill in /proc/vmstat rose from %d to %d in its last %.0f s" % (before, after, last_s)}
