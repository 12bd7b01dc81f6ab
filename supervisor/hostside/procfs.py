"""/proc, read in one place. A process is (pid, start time): a pid alone is nobody's name (proc(5), field 22 of stat)."""

from __future__ import annotations

import os
import pwd
import signal
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set

PF_EXITING = 0x4  # of proc(5)'s `flags`: include/linux/sched.h


class Process(NamedTuple):
    pid: int
    start: int  # clock ticks after boot
    ppid: int
    sid: int
    state: str  # Z zombie, T stopped, D uninterruptible …
    threads: int

    @property
    def gone(self) -> bool:
        """Ended, though perhaps not reaped. A process whose first thread ended shows Z too, while its others live on."""
        return self.state in "ZX" and self.threads <= 1


def read(pid: int) -> Optional[Process]:
    """The process as it is now; None if there is none."""
    fields = _stat(pid)
    return (
        None
        if fields is None
        else Process(pid, int(fields[19]), int(fields[1]), int(fields[3]), fields[0].decode(), int(fields[17]))
    )


def _stat(pid: int) -> Optional[List[bytes]]:
    """From the state on, proc(5)'s third field. comm may hold spaces and parentheses: after the last ')' all is well-formed."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            stat = file.read()
    except OSError:
        return None
    return stat[stat.rindex(b")") + 2 :].split()


def oom_kills(path: str) -> Optional[int]:
    """`oom_kill N` of a file like /proc/vmstat, or a cgroup's memory.events; None where nobody counts."""
    try:
        with open(path) as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), None)
    except (OSError, ValueError, IndexError):
        return None


class Usage(NamedTuple):
    start: int
    read: int  # bytes: by read(2) and the like, or from disk, as for what is mapped, whichever is more
    ticks: int  # of CPU; both with those of children that it has waited for


def usage(pid: int) -> Optional[Usage]:
    """What a process has used so far; None if there is none. Of another user's the bytes are not to be had: 0."""
    fields = _stat(pid)
    if fields is None:
        return None
    counts: Dict[bytes, int] = {}
    try:
        with open("/proc/%d/io" % pid, "rb") as file:
            counts = {key: int(count) for key, _, count in (line.partition(b": ") for line in file.read().splitlines())}
    except OSError:
        pass
    read = max(counts.get(b"rchar", 0), counts.get(b"read_bytes", 0))
    return Usage(int(fields[19]), read, sum(int(field) for field in fields[11:15]))


def alive(pid: int, start: int) -> bool:
    """True while exactly this process runs; a zombie does not."""
    found = read(pid)
    return found is not None and found.start == start and not found.gone


def ending(pid: int, start: int) -> bool:
    """True once this process is sure to end: its first thread is in exit(2), or SIGKILL waits for it (exit_group(2) too)."""
    fields = _stat(pid)
    if fields is None or int(fields[19]) != start:
        return True
    if int(fields[6]) & PF_EXITING:
        return True
    try:
        with open("/proc/%d/status" % pid, "rb") as file:
            pending = next((int(line.split()[1], 16) for line in file if line.startswith(b"SigPnd:")), 0)
    except OSError:
        return True
    return bool(pending & 1 << (signal.SIGKILL - 1))


def threads(pid: int) -> List[int]:
    """Their ids, oldest first; none if there is no such process."""
    try:
        return sorted(map(int, os.listdir("/proc/%d/task" % pid)))
    except OSError:
        return []


def everybody() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            found = read(int(name))
            if found is not None:
                yield found


def children(pid: int) -> List[int]:
    found: List[int] = []
    try:
        for task in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, task)) as file:
                found += [int(word) for word in file.read().split()]
    except OSError:
        pass  # gone meanwhile
    return found


def descendants(pid: int, but_not: Set[int]) -> Dict[int, Process]:
    """Everything below `pid`, zombies included. Costs what the tree costs, not what the machine has."""
    return {process.pid: process for process in walk(pid, but_not)}


def walk(pid: int, but_not: Set[int]) -> Iterator[Process]:
    """The same one by one, each just read: for who must be quicker than a fork bomb."""
    if not os.path.exists("/proc/thread-self/children"):
        yield from _descendants_by_parent(pid, but_not).values()  # a kernel without CONFIG_PROC_CHILDREN
        return
    found: Set[int] = set()
    todo = [child for child in children(pid) if child not in but_not]
    while todo:
        child = todo.pop()
        seen = read(child)
        if seen is not None and child not in found:
            found.add(child)
            yield seen
            todo += children(child)


def _descendants_by_parent(pid: int, but_not: Set[int]) -> Dict[int, Process]:
    below: Dict[int, List[Process]] = {}
    for process in everybody():
        below.setdefault(process.ppid, []).append(process)
    found: Dict[int, Process] = {}
    todo = [pid]
    while todo:
        fresh = [p for p in below.get(todo.pop(), []) if p.pid not in found and p.pid not in but_not]
        found.update((p.pid, p) for p in fresh)
        todo += [p.pid for p in fresh]
    return found


def environ_of(pid: int) -> Dict[str, str]:
    with open("/proc/%d/environ" % pid, "rb") as file:
        pairs = (item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
        return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}


def describe(pid: int) -> str:
    """`pid 4711 (python -m http.server, user ada)`, as far as it may be known."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            words = " ".join(file.read().replace(b"\0", b" ").decode(errors="replace").split())
        uid = os.stat("/proc/%d" % pid).st_uid
    except OSError:
        return "pid %d" % pid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return "pid %d (%s, user %s)" % (pid, words[:120] or "?", user)


def plight(process: Process) -> str:
    """`pid 4711 (python …, user ada), state D in uvm_spin_loop`: who will not die, and where in the kernel it hangs."""
    try:
        with open("/proc/%d/wchan" % process.pid) as file:
            where = file.read().strip()
    except OSError:
        where = ""
    return "%s, state %s in %s" % (describe(process.pid), process.state, where if where not in ("", "0") else "?")


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def elsewhere(record: Dict[str, Any]) -> str:
    """Why the pids of this record name nobody here: "reboot", "container", or "" where they do.

    Of a container that was started again the boot id is the same, and on kernels that give numbers of namespaces anew its pid
    namespace has the old number too. When its first process began has not.
    """
    if record.get("boot") != boot_id():
        return "reboot"
    first = read(1)
    began = record.get("init", first and first.start)  # records of older versions have none
    if record.get("pidns") != pid_namespace() or (first is not None and first.start != began):
        return "container"
    return ""


def here() -> Dict[str, Any]:
    """What `elsewhere` compares."""
    first = read(1)
    found: Dict[str, Any] = {"boot": boot_id(), "pidns": pid_namespace()}
    return found if first is None else dict(found, init=first.start)  # none: /proc is mounted with hidepid


def up_since() -> float:
    """When this machine, or the container that we are in, came up, on the wall clock."""
    first = read(1)
    ticks = first.start if first is not None else 0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def set_title(title: str) -> None:
    """Show `title` in ps. A keeper is a fork of the link, so its argv would be the link's: overwrite it in place."""
    import ctypes

    try:
        with open("/proc/self/stat", "rb") as file:
            stat = file.read()
        fields = stat[stat.rindex(b")") + 2 :].split()
        begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc(5)
    except (OSError, IndexError, ValueError):
        return
    if 0 < begin < end:
        text = title.encode()[: end - begin - 1]
        ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)
