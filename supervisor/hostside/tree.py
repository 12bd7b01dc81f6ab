"""The tree of a run: everything it ever started, wherever it hides, and the only way it is signalled.

Three views, united: its cgroup, where it has one; the descendants of its keeper, a child subreaper (prctl(2)), to whom
setsid'ed, double-forked and `env -i` orphans all come back; and for an heir, who never was anybody's parent, whoever its
predecessors saw (`seen`), their sessions and their descendants.

Signals go by pidfd, else after re-checking the start time: a recorded pid may be an innocent bystander by now.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from typing import Callable, Dict, Iterator, Optional, Set

from . import procfs
from .cgroup import Cgroup
from .libc import libc

PR_SET_CHILD_SUBREAPER = 36
SYS_PIDFD_SEND_SIGNAL, SYS_PIDFD_OPEN = 424, 434  # the same on every architecture since Linux 5.3
PIDFD_THREAD = os.O_EXCL  # pidfd_open(2), since Linux 6.9
FREEZE_S = 2.0  # a fork bomb stops growing long before; if not, those found die, and the sweep comes again


class Tree:
    def __init__(self, pid: int, start: int, sid: int, parent: bool) -> None:
        """`parent`: this process starts the leader, and will say who it is (`lead`)."""
        self.pid, self.start, self.parent = pid, start, parent
        self.group: Optional[Cgroup] = None
        self.seen: Dict[int, int] = {}  # pid -> start time, of the last look; an heir's, who sees no parents
        self.sids: Set[int] = {sid}  # likewise
        self.others: Callable[[], Set[int]] = set  # our own helpers among our children

    def lead(self, pid: int, start: int, group: Optional[Cgroup]) -> None:
        """Our child is the leader of this tree, and of a session."""
        self.pid, self.start, self.sids, self.group = pid, start, {pid}, group

    def follow(self, seen: Dict[int, int], group: Optional[Cgroup]) -> None:
        """We are an heir: `seen` belonged to it when it was last looked at."""
        self.seen, self.group = dict(seen), group

    def members(self) -> Dict[int, procfs.Process]:
        """Who of the tree is alive now, zombies excluded."""
        return {p.pid: p for p in self._walk() if not p.gone}

    def empty(self) -> bool:
        """The proof that nobody is left. One look at the living is none: who forks and dies during it hides its child.

        A keeper that has reaped has no descendants at all then, not even zombies: orphans come to it, so a look that finds
        nobody has missed nobody. An heir, to whom nobody comes, looks twice. Of a cgroup the kernel knows it.
        """
        if self.group is not None and self.group.populated():
            return False
        if self.parent:
            return not procfs.descendants(os.getpid(), self.others())
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
        found = {pid: everybody[pid] for pid, start in self.seen.items() if pid in everybody and everybody[pid].start == start}
        found.update((pid, everybody[pid]) for pid in self._grouped() if pid in everybody)
        sids |= {p.sid for p in found.values()}
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
        self.seen = {p.pid: p.start for p in found.values()}
        return found

    def _grouped(self) -> Set[int]:
        return set(self.group.pids()) if self.group is not None else set()

    def signal_leader(self, number: int) -> bool:
        leader = procfs.read(self.pid)
        return leader is not None and leader.start == self.start and send(leader, number)

    def signal_all(self, number: int) -> int:
        """How many were signalled."""
        return sum(send(process, number) for process in self.members().values())

    def kill(self) -> int:
        """SIGKILL everybody, after SIGSTOPping until a look finds nobody new: who is frozen cannot fork away from the sweep."""
        if self.group is not None:
            self.group.kill()  # what is left for the sweep has moved itself into another cgroup
        frozen: Dict[int, procfs.Process] = {}
        until = time.monotonic() + FREEZE_S
        grew = True
        while grew and time.monotonic() < until:
            grew = False
            for process in self._walk():
                if process.gone:
                    self._reap(process)
                elif process.pid not in frozen or frozen[process.pid].start != process.start:
                    send(process, signal.SIGSTOP)
                    frozen[process.pid] = process
                    grew = True
        return sum(send(process, signal.SIGKILL) for process in frozen.values())

    def _walk(self) -> Iterator[procfs.Process]:
        """Everybody we know of, zombies included, some perhaps twice."""
        if not self.parent:
            yield from self._followed().values()
            return
        yield from procfs.walk(os.getpid(), self.others())
        for pid in self._grouped():  # nearly always the same; not so if our subreaping ever failed
            member = procfs.read(pid)
            if member is not None:
                yield member

    def _reap(self, zombie: procfs.Process) -> None:
        """A bomb's dead come to us faster than they are waited for elsewhere, and each makes the next look longer."""
        if self.parent and zombie.ppid == os.getpid() and zombie.pid != self.pid:
            os.waitpid(zombie.pid, os.WNOHANG)


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


def pidfd_open(pid: int, flags: int = 0) -> Optional[int]:
    """A descriptor that becomes readable when the process ends; None where the kernel has none or the pid is free.

    conda's and uv's Pythons lack os.pidfd_open (a compile-time option), hence the plain system call.
    """
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(pid, flags)
        except OSError:
            return None
    fd = int(libc.syscall(SYS_PIDFD_OPEN, pid, flags))
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
