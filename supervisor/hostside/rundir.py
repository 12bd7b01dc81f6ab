"""What a run leaves on disk, and only that: every record has a version, is whole or absent, and never changes once written.

<base>/runs/<deployment>/<process>/<run>/
    lock        flocked by keeper and pump; free = both are dead
    spec.json   what was asked for, without the environment (it may hold secrets)
    run.json    the run was born: pid, start time, boot, ports …
    exit.json   its leader ended: code, signal, when
    gone.json   its tree is proven empty, its claims have fallen
    events      what befell it, numbered (events.py)
    out         the FIFO its output goes through
    log/        segments of its output, named by their first byte's offset
    times/      when what was written: an index beside each segment
<base>/data/<deployment>/<process>/   survives runs (etcd's data, the file store)
<base>/s/                             unix sockets of keepers, short names (a path must stay under 108 bytes)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from . import VERSION, procfs
from .events import NAME, Events
from .pump import Log

RESERVED = 4096  # bytes set aside for each record that must be writable on a full disk
RUNS_KEPT = 4  # of a process, beside the first failure of a series and the run that lives
OLD_SEGMENTS = 2  # what a run keeps of its log once there is a newer one: the last 16 to 32 MiB
WORKED_MS = 3600_000
SAID: Dict[str, Callable[[Dict[str, Any]], Tuple[str, str]]] = {  # records that are events too
    "run.json": lambda record: ("born", "pid %s" % record.get("pid")),
    "exit.json": lambda record: ("exit", _how(record)),
    "gone.json": lambda record: ("gone", ""),
}
WITH_HOST = ("reboot", "container", "shutdown")  # causes of an end that was its host's


class Run:
    """The directory of one run; cheap to make, reads on demand."""

    def __init__(self, base: str, deployment: str, process: str, run: str) -> None:
        self.base, self.deployment, self.process, self.run = base, deployment, process, run
        self.path = os.path.join(base, "runs", deployment, process, run)
        self._events: Optional[Events] = None

    @property
    def events(self) -> Events:
        """For its owner to write; who only reads it takes `events.read`."""
        if self._events is None:
            boot = (self.record("run.json") or {}).get("boot")
            self._events = Events(self.file(NAME), boot not in (None, procfs.boot_id()))
        return self._events

    @property
    def socket(self) -> str:
        """Where its keeper listens; computable by anybody who knows the run, whatever died before it could say so."""
        name = "/".join((self.deployment, self.process, self.run))
        return os.path.join(self.base, "s", hashlib.sha256(name.encode()).hexdigest()[:8])

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def record(self, name: str) -> Optional[Dict[str, Any]]:
        """A record, or None if it was never written. Unknown keys of later versions are kept."""
        try:
            with open(self.file(name), "rb") as file:
                loaded = json.loads(file.read())
        except (FileNotFoundError, ValueError):
            return None
        return loaded if isinstance(loaded, dict) else None

    def write(self, name: str, record: Dict[str, Any]) -> None:
        """Durable when it returns: the record is on disk under its name. Uses the reserved space if there is some."""
        if name in SAID:
            self.events.add_once(*SAID[name](record))  # first: who finds the record finds the event
        data = json.dumps(dict(record, v=VERSION), separators=(",", ":")).encode()
        fd = os.open(self.file("." + name), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(self.file("." + name), self.file(name))
        sync_directory(self.path)

    def create_locked(self, spec: Dict[str, Any]) -> Optional[int]:
        """Make the directory, already locked, in one step; None if this run has one. Returns the lock's descriptor.

        The name appears by rename(2) of a directory that is not empty, so of two starts one wins, and nobody
        ever sees a run that is neither locked nor finished. There is room in it for the records of its end, or
        OSError is raised and nothing is left.
        """
        parent = os.path.dirname(self.path)
        os.makedirs(parent, mode=0o700, exist_ok=True)
        draft = os.path.join(parent, ".%s.%d" % (self.run, os.getpid()))
        os.mkdir(draft, 0o700)
        lock = -1
        try:
            lock = os.open(os.path.join(draft, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.mkdir(os.path.join(draft, "log"), 0o700)
            with open(os.path.join(draft, "spec.json"), "w") as file:
                json.dump(dict(spec, v=VERSION, **procfs.here()), file)
            for name in ("exit.json", "gone.json"):
                reserve(os.path.join(draft, "." + name))
            os.rename(draft, self.path)
        except OSError as error:
            if lock >= 0:
                os.close(lock)
            shutil.rmtree(draft, ignore_errors=True)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return None
            raise
        sync_directory(parent)
        return lock

    def lock_if_abandoned(self) -> Optional[int]:
        """The lock's descriptor if neither keeper nor pump lives; None while one does."""
        try:
            lock = os.open(self.file("lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        return lock

    @property
    def finished(self) -> bool:
        return os.path.exists(self.file("gone.json"))


def _how(ended: Dict[str, Any]) -> str:
    """Of an exit, in a few words."""
    how = "signal %s" % ended["signal"] if ended.get("signal") else "code %s" % ended.get("code")
    return ", ".join(filter(None, (how, "asked" if ended.get("asked") else "", ended.get("message") or ended.get("cause"))))


def reserve(path: str) -> None:
    """A full disk must not eat an exit code: allocate the blocks of a record before it is needed."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, RESERVED)
    finally:
        os.close(fd)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def subdirectories(path: str) -> List[str]:
    try:
        return sorted(e.name for e in os.scandir(path) if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def runs(base: str, deployment: str) -> Iterator[Run]:
    """Every run on record, oldest first within its process."""
    root = os.path.join(base, "runs", deployment)
    for process in subdirectories(root):
        for run in subdirectories(os.path.join(root, process)):
            yield Run(base, deployment, process, run)


def prune(base: str, deployment: str, process: str, keep: int = RUNS_KEPT) -> List[str]:
    """Forget finished runs of a process, but the newest `keep` and the first failure of the last series of failures. Returns
    those forgotten.

    Called before every start, so on disk a process never has more than keep + 2 runs. What is not the newest keeps the end
    of its log only: a process's logs take at most (2 * pump.SEGMENTS_KEPT + keep * OLD_SEGMENTS) * pump.SEGMENT_BYTES.
    """
    parent = os.path.join(base, "runs", deployment, process)
    _sweep_drafts(parent)
    known = [Run(base, deployment, process, name) for name in subdirectories(parent)]
    first, forgotten = first_failure(known), []
    for run in known[:-1]:
        if not run.finished:
            continue
        if run in known[-keep:] or run is first:
            log = Log(run.file("log"))
            for segment in log.segments()[:-OLD_SEGMENTS]:
                log.forget(segment)
        else:
            shutil.rmtree(run.path, ignore_errors=True)
            forgotten.append(run.run)
    return forgotten


def first_failure(known: List[Run]) -> Optional[Run]:
    """Where the last series of failures began: the run a human wants to read at three in the morning. None: nothing failed.

    `known`: of one process, oldest first. From the newest failed run back, as long as the run before failed too, was the same
    definition, and had not worked: a run that lived WORKED_MS and then failed begins a series, and so does the first
    failure after a run that was asked to end. A start by hand does not: nothing has worked since. What ended with its host did
    not fail, and ends a series only if it had worked.
    Records decide, and nothing else, so a new controller agrees; pruning takes from the middle of a series only.
    """
    found: Optional[Run] = None
    for run in reversed(known):
        ended = run.record("exit.json")
        with_host = ended is not None and ended.get("cause") in WITH_HOST
        failed = ended is not None and not ended.get("asked") and not with_host
        if found is None and not failed:
            continue  # it lives, or was stopped; the series before it is the last one all the same
        if not failed and not with_host:
            break
        if found is not None and _definition(run) != _definition(found):
            break
        if failed:
            found = run
        if ended is not None and _worked(run, ended):
            break
    return found


def _worked(run: Run, ended: Dict[str, Any]) -> bool:
    born = (run.record("run.json") or {}).get("at")
    # Nobody saw when what a power cut ended did: it lived at least until it last wrote.
    at = ended["at"] if ended.get("cause") not in ("reboot", "container") else Log(run.file("log")).written_ms()
    return born is not None and at - born >= WORKED_MS


def _definition(run: Run) -> object:
    return (run.record("spec.json") or {}).get("about", {}).get("hash")


def _sweep_drafts(parent: str) -> None:
    """Remove what keepers left that died within `create_locked`: it takes milliseconds, so what is a minute old is dead."""
    try:
        drafts = [e.path for e in os.scandir(parent) if e.name.startswith(".") and time.time() - e.stat().st_mtime > 60]
    except OSError:
        return  # no such process yet, or a draft that just got its name
    for path in drafts:
        shutil.rmtree(path, ignore_errors=True)
