"""Which living process is of which run, as far as that can be proved. For `doctor`, which comes without having watched.

A run's records name processes by (pid, start time): its leader in run.json, and in tree.jsonl whom its keeper saw when it last
looked. From there on only what cannot be chance counts:

    recorded       exactly this process is in the records
    descends       its parent is of the run
    same session   a process of the run, alive, is in its session: sessions are left by setsid(2) only, never joined
    its output     its stdout or stderr is the run's FIFO, which nobody is given but by inheriting it

A session's number alone proves nothing: once it was empty the kernel gives it to anybody. Records of another boot or pid
namespace name nobody here.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from . import procfs, roster, rundir
from .rundir import Run

LIVES, HEIR, SILENT, ABANDONED, FINISHED = "keeper", "heir", "silent", "abandoned", "finished"
STATE_WAIT_S = 1.0


class Member(NamedTuple):
    process: procfs.Process
    run: Run
    proof: str
    care: str = ""  # who looks after the run

    @property
    def orphan(self) -> bool:
        return self.care in (ABANDONED, FINISHED)


def here(base: str) -> Iterator[Tuple[Run, Dict[str, Any]]]:
    """Every run on record whose records are about this boot and pid namespace, of every deployment; and its run.json."""
    for deployment in rundir.subdirectories(os.path.join(base, "runs")):
        for run in rundir.runs(base, deployment):
            record = run.record("run.json")
            if record and record.get("pid") and not procfs.elsewhere(record):
                yield run, record


def members(base: str) -> List[Member]:
    everybody = {p.pid: p for p in procfs.everybody() if not p.gone}
    found: Dict[int, Member] = {}
    runs = list(here(base))
    for run, record in runs:
        for pid, start in _recorded(run, record):
            if pid in everybody and everybody[pid].start == start:
                found.setdefault(pid, Member(everybody[pid], run, "recorded"))
    outputs = {os.path.join(os.path.realpath(run.path), "out"): (run, int(record["start"])) for run, record in runs}
    for process in everybody.values():
        run_of = None if process.pid in found else _by_output(process, outputs)
        if run_of is not None:
            found[process.pid] = Member(process, run_of, "its output")
    _spread(everybody, found)
    cares = {member.run.path: member.run for member in found.values()}
    cared = {path: care(run) for path, run in cares.items()}
    return [found[pid]._replace(care=cared[found[pid].run.path]) for pid in sorted(found)]


def _spread(everybody: Dict[int, procfs.Process], found: Dict[int, Member]) -> None:
    grew = True
    while grew:
        grew = False
        sessions = {member.process.sid: member.run for member in found.values()}
        for process in everybody.values():
            if process.pid in found:
                continue
            if process.ppid in found:
                found[process.pid] = Member(process, found[process.ppid].run, "descends")
                grew = True
            elif process.sid in sessions:
                found[process.pid] = Member(process, sessions[process.sid], "same session")
                grew = True


def _recorded(run: Run, record: Dict[str, Any]) -> Iterator[Tuple[int, int]]:
    yield record["pid"], record["start"]
    yield from roster.seen(run).items()


def _by_output(process: procfs.Process, outputs: Dict[str, Tuple[Run, int]]) -> Optional[Run]:
    for fd in (1, 2):
        try:
            path = os.readlink("/proc/%d/fd/%d" % (process.pid, fd))
        except OSError:
            return None  # another user's, or gone
        run, start = outputs.get(path[: -len(" (deleted)")] if path.endswith(" (deleted)") else path, (None, 0))
        if run is not None and process.start >= start:
            return run
    return None


def care(run: Run) -> str:
    """Who looks after a run: its keeper, its heir, one that does not answer, or nobody (abandoned, finished)."""
    if run.finished:
        return FINISHED
    if not _locked(run):
        return FINISHED if run.finished else ABANDONED
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(STATE_WAIT_S)
        try:
            sock.connect(run.socket)
            with sock.makefile("rb") as lines:
                return HEIR if json.loads(lines.readline()).get("heir") else LIVES
        except (OSError, ValueError):
            return SILENT


def _locked(run: Run) -> bool:
    """Keeper or pump lives. Asked with a shared lock, given back at once: who wants it all tries again by itself."""
    try:
        lock = os.open(run.file("lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(lock)
