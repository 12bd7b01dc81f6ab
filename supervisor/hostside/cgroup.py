"""A cgroup per run, where one can be had: the one fence that nothing started inside can leave by forking (cgroups(7), v2).

As root it is made at the top of the hierarchy, outside the session scope we were started in: what systemd does to a session at
logout then does not touch the run. Anybody else makes it below their own cgroup, which works where that was delegated (a
scope of the user's manager) and nowhere else: `make` then returns None and the tree is followed without one.

No controller is needed, only the core files, which are there wherever cgroup2 is mounted, also beside v1 ("hybrid").
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Dict, Iterator, List, Optional

from .procfs import oom_kills
from .rundir import Run

TOP = "noray"
GONE_S = 1.0  # for a killed child to leave it
TRIES = 5


class Cgroup:
    """One directory of the hierarchy. Every method bears that it is not there (any more)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def take(self, pid: int) -> bool:
        """Move a process in, before it has had a chance to fork. False if that may not be."""
        return self._write("cgroup.procs", str(pid))

    def pids(self) -> List[int]:
        """Everybody inside, in cgroups below it too; those of other pid namespaces have no number and are left out."""
        found: List[int] = []
        for folder in _below(self.path):
            try:
                with open(os.path.join(folder, "cgroup.procs")) as file:
                    found += [int(word) for word in file.read().split() if word != "0"]
            except OSError:
                continue  # removed meanwhile
        return found

    def populated(self) -> bool:
        """Whether anybody alive is inside: the kernel's own count, which a fork cannot outrun."""
        try:
            with open(os.path.join(self.path, "cgroup.events")) as file:
                return "populated 1" in file.read()
        except OSError:
            return False

    def oom_kills(self) -> Optional[int]:
        """How many inside the kernel has killed for lack of memory; None where no memory controller counts them."""
        return oom_kills(os.path.join(self.path, "memory.events"))

    def kill(self) -> None:
        """SIGKILL everybody inside, frozen first: who is frozen cannot fork away from us."""
        self._write("cgroup.freeze", "1")
        if self._write("cgroup.kill", "1"):
            return
        for pid in self.pids():  # a kernel before 5.14; a frozen member keeps its pid, so it is nobody else's
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass

    def remove(self) -> None:
        """Remove it and what was made below it; what is populated stays. Our folder above goes with its last run."""
        for folder in reversed(list(_below(self.path))):
            try:
                os.rmdir(folder)
            except OSError:
                return
        try:
            os.rmdir(os.path.dirname(self.path))
        except OSError:
            pass  # others are in it

    def _write(self, name: str, text: str) -> bool:
        try:
            with open(os.path.join(self.path, name), "w") as file:
                file.write(text)
        except OSError:
            return False
        return True


def make(run: Run) -> Optional[Cgroup]:
    """An empty cgroup for this run, or None where none can be had."""
    path = _path(run)
    if path is None:
        return None
    for _ in range(TRIES):  # a run that ends at this moment may remove the parent that we have just found
        try:
            os.makedirs(path, exist_ok=True)
            return Cgroup(path)
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def recorded(record: Dict[str, Any]) -> Optional[Cgroup]:
    """The cgroup that a run's record names, if it had one."""
    return Cgroup(record["cgroup"]) if record.get("cgroup") else None


def clear(run: Run) -> None:
    """Remove the cgroup of a run that was never born; its child, if there was one, is just reading its end of file."""
    path = _path(run)
    if path is None or not os.path.isdir(path):
        return
    group = Cgroup(path)
    group.kill()
    until = time.monotonic() + GONE_S
    while group.populated() and time.monotonic() < until:
        time.sleep(0.005)
    group.remove()


def _path(run: Run) -> Optional[str]:
    mount = _mount()
    if mount is None:
        return None
    above = "" if os.getuid() == 0 else _own().lstrip("/")
    return os.path.join(mount, above, TOP, "%d-%s-%s-%s" % (os.getuid(), run.deployment, run.process, run.run))


def _mount() -> Optional[str]:
    try:
        with open("/proc/self/mountinfo") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                if after.startswith("cgroup2 "):
                    return before.split()[4]
    except OSError:
        pass
    return None


def _own() -> str:
    """Our cgroup, below the root of our cgroup namespace; empty without cgroup2."""
    try:
        with open("/proc/self/cgroup") as file:
            return next((line[3:].strip() for line in file if line.startswith("0::")), "")
    except OSError:
        return ""


def _below(path: str) -> Iterator[str]:
    """`path` and every cgroup below it, parents first."""
    yield path
    try:
        folders = sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for folder in folders:
        yield from _below(folder)
