"""A process whose end takes as long as a test wants: one of its threads is kept in exit(2), by ptrace(2)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from supervisor.hostside.tree import PIDFD_THREAD

PTRACE_DETACH, PTRACE_SEIZE, PTRACE_O_TRACEEXIT = 17, 0x4206, 0x40
WALL = 0x40000000  # of waitpid(2): a thread that is not our child, too
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def lacks() -> str:
    """Why this machine cannot do it; "" if it can."""
    if os.geteuid() != 0:
        return "to trace what is not one's child takes root"
    try:
        os.close(os.pidfd_open(os.getpid(), PIDFD_THREAD))
    except (OSError, AttributeError):
        return "this kernel tells nobody that a thread has ended (Linux 6.9)"
    return ""


@contextmanager
def held(tid: int) -> Iterator[None]:
    """Within, its process ends and never has ended. It must have been told to end by then."""
    _ptrace(PTRACE_SEIZE, tid, PTRACE_O_TRACEEXIT)
    try:
        yield
    finally:
        os.waitpid(tid, WALL)
        _ptrace(PTRACE_DETACH, tid, 0)


def watched(pid: int) -> set[int]:
    """The threads of others that this process waits for."""
    found = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            words = dict(line.split(":\t", 1) for line in info.read_text().splitlines() if ":\t" in line)
            if "Pid" in words:
                found.add(int(words["Pid"]))
    return found


def _ptrace(request: int, tid: int, data: int) -> None:
    if libc.ptrace(request, tid, None, data) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x}, {tid})")
