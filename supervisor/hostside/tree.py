"""The tree of a run: everything it ever started, wherever it hides, and the only way it is signalled.

While its keeper lives that is simple: the keeper is a child subreaper (prctl(2)), so setsid'ed, double-forked and `env -i`
orphans all come back to it, and the tree is its descendants. An heir never was anybody's parent: it follows the
leader's session and the leader's descendants instead, and what left both before the keeper died is out of its sight.

Signals go by pidfd, else after re-checking the start time: a recorded pid may be an innocent bystander by now.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from typing import Dict, Optional, Set

from . import procfs

PR_SET_CHILD_SUBREAPER = 36
SYS_PIDFD_SEND_SIGNAL, SYS_PIDFD_OPEN = 424, 434  # the same on every architecture since Linux 5.3
FREEZE_ROUNDS = 200  # a fork bomb stops growing long before: each round stops all it has seen

libc = ctypes.CDLL(None, use_errno=True)


class Tree:
    def __init__(self, pid: int, start: int, sid: int, parent: bool) -> None:
        """`parent`: this process started the leader. `others`: our own helpers among our children."""
        self.pid, self.start, self.parent = pid, start, parent
        self.sids: Set[int] = {sid}  # of the last look
        self.others: Set[int] = set()

    def members(self) -> Dict[int, procfs.Process]:
        """Who of the tree is alive now, zombies excluded."""
        found = procfs.descendants(os.getpid(), self.others) if self.parent else self._followed()
        return {pid: p for pid, p in found.items() if not p.gone}

    def empty(self) -> bool:
        """The proof that nobody is left. One look at the living is none: who forks and dies during it hides its child.

        A keeper that has reaped has no descendants at all then, not even zombies: orphans come to it, so a look that finds
        nobody has missed nobody. An heir, to whom nobody comes, looks twice.
        """
        if self.parent:
            return not procfs.descendants(os.getpid(), self.others)
        return not self.members() and not self.members()

    def _followed(self) -> Dict[int, procfs.Process]:
        everybody = {p.pid: p for p in procfs.everybody()}
        sids = set(self.sids)
        leader = everybody.get(self.pid)
        if leader is not None and leader.start != self.start:
            # The pid was given to somebody else. The kernel does that only when no session bears the number any more,
            # so a session of this number is that bystander's, all of it.
            del everybody[self.pid]
            sids.discard(self.pid)
        found: Dict[int, procfs.Process] = {}
        grew = True
        while grew:
            grew = False
            for p in everybody.values():
                # Older than the leader = its session's number was another's before, and is again.
                if p.pid not in found and p.start >= self.start and (p.sid in sids or p.ppid in found or p.pid == self.pid):
                    found[p.pid] = p
                    sids.add(p.sid)
                    grew = True
        # Sessions nobody of ours is in any more are forgotten: their numbers may be others' by the next look.
        self.sids = {self.pid} | {p.sid for p in found.values()}
        return found

    def signal_leader(self, number: int) -> bool:
        leader = procfs.read(self.pid)
        return leader is not None and leader.start == self.start and send(leader, number)

    def signal_all(self, number: int) -> int:
        """How many were signalled."""
        return sum(send(process, number) for process in self.members().values())

    def kill(self) -> int:
        """SIGKILL everybody, after SIGSTOPping until two looks agree: who is frozen cannot fork away from the sweep."""
        frozen: Dict[int, procfs.Process] = {}
        for _ in range(FREEZE_ROUNDS):
            fresh = {pid: p for pid, p in self.members().items() if pid not in frozen}
            if not fresh:
                break
            for process in fresh.values():
                send(process, signal.SIGSTOP)
            frozen.update(fresh)
        return sum(send(process, signal.SIGKILL) for process in frozen.values())


def send(process: procfs.Process, number: int) -> bool:
    """Signal exactly this process; False if it is gone (or its pid is somebody else's)."""
    fd = pidfd_open(process.pid)
    try:
        # The pidfd pins whoever has the pid now; only then is the start time worth comparing.
        if not procfs.alive(process.pid, process.start):
            return False
        if fd is None:
            os.kill(process.pid, number)
        else:
            _pidfd_send(fd, number)
    except (ProcessLookupError, PermissionError):
        return False  # gone, or of another user (sudo in the tree): it will show as stuck, which is the truth
    finally:
        if fd is not None:
            os.close(fd)
    return True


def pidfd_open(pid: int) -> Optional[int]:
    """A descriptor that becomes readable when the process ends; None where the kernel has none or the pid is free.

    conda's and uv's Pythons lack os.pidfd_open (a compile-time option), hence the plain system call.
    """
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None
    fd = int(libc.syscall(SYS_PIDFD_OPEN, pid, 0))
    if fd < 0:
        return None
    os.set_inheritable(fd, False)
    return fd


def _pidfd_send(fd: int, number: int) -> None:
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(fd, number)
    elif libc.syscall(SYS_PIDFD_SEND_SIGNAL, fd, number, None, 0) < 0:
        code = ctypes.get_errno()
        raise ProcessLookupError(code, os.strerror(code)) if code == errno.ESRCH else OSError(code, os.strerror(code))


def become_subreaper() -> None:
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
