"""Eject: this host without any trace of this user's noray, unless something of anybody's runs here.

A conversation over a channel of its own, not a controller's.

In:  {"op": "look"}     Out: {"base", "user", "deployments": […], "bytes": n, "living": […], "others": […]}
     {"op": "eject"}         {"living": […], "removed": [path…], "left": ["path: why"…], "others": […]}

`living`: what stands in the way, and the host is left as it is: runs and controllers of all users by their claims, keepers by
their titles, and of our own runs also those whose records, cgroup or output show somebody alive. `others`: directories that
are not ours to remove. This program sits in what it removes: all that it needs is imported, and it goes last.
"""

from __future__ import annotations

import glob
import os
import pwd
import re
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

from . import cgroup, claims, owners, procfs, questions, roster, rundir
from .rundir import Run
from .shm import Segments

ASK_S = 10.0  # for all holders of claims together
GONE = ".ejected"  # the name under which a directory is removed: nothing new begins in it, and who died half way is found
DEFAULTS = ("/var/lib/noray", "/var/tmp/noray-*")  # as transport/stage_one.py makes them
KEEPER = re.compile(r"noray-(?:keeper|pump|heir) (\S+)@(\S+) \((\S+)\)")

Found = Dict[str, Any]


def main(base: str) -> int:
    return questions.answer({"look": lambda: look(base), "eject": lambda: eject(base)})


def look(base: str) -> Found:
    """What there is, and what stands in the way."""
    names = {name for folder in ("runs", "data") for name in rundir.subdirectories(os.path.join(base, folder))}
    size = sum(_size(os.path.join(folder, name)) for folder, _, files in os.walk(base) for name in files)
    found = {"base": base, "user": _user(os.getuid()), "deployments": sorted(names), "bytes": size}
    return dict(found, living=living(base), others=others(base))


def eject(base: str) -> Found:
    """Remove it all, or nothing while anything lives."""
    removed: List[str] = []
    left: List[str] = []
    alive = living(base)
    if not alive:
        rest = _clear(base + GONE, left)  # of an eject that died half way
        place = _put_aside(base)
        alive = living(place)  # what began until then holds its claims by now
        if not alive:
            removed += [base] if _clear(place, left) or rest else []
            removed += _clear_default(os.path.dirname(base), left)
        elif place != base:
            _try(lambda there: os.rename(there, base), place, left)
    return {"living": alive, "removed": removed, "left": left, "others": others(base)}


def _put_aside(base: str) -> str:
    try:
        os.rename(base, base + GONE)
    except OSError:
        return base  # a mount point, or it is not there
    return base + GONE


# --- what lives -----------------------------------------------------------------------------------------------------------


def living(base: str) -> List[Found]:
    """Whatever of noray runs on this machine: {"what": "run", "controller", "orphan" or "claim", …}, each once.

    A claim whose holder does not say who it is has its name only. Blocks for ASK_S and a look at /proc.
    """
    found: Dict[Tuple[str, ...], Found] = {}
    for each in [*_claimed(), *_kept(base), *_titled(), *_orphaned(base)]:
        known = found.setdefault(_key(each), each)
        known.update({key: value for key, value in each.items() if not known.get(key)})
    return list(found.values())


def _key(each: Found) -> Tuple[str, ...]:
    if each["what"] == "claim":
        return ("claim", each["claim"])
    names = ("deployment",) if each["what"] == "controller" else ("deployment", "process", "run")
    return ("controller" if each["what"] == "controller" else "run", *(str(each.get(name)) for name in names))


def _claimed() -> Iterator[Found]:
    """By the claims that are held in this network namespace, by whatever user."""
    with open("/proc/net/unix") as file:
        names = {line.rstrip("\n").partition(" @noray/")[2] for line in file if " @noray/" in line}
    until = time.monotonic() + ASK_S
    for name in sorted(names):
        holder = claims.ask(name, min(1.0, max(0.001, until - time.monotonic())))
        if holder is None:
            continue  # it fell meanwhile
        told = {key: holder.get(key) for key in ("deployment", "process", "run", "user", "since", "controller")}
        if not holder:
            yield {"what": "claim", "claim": name}
        elif name.startswith("lead-"):
            yield dict(told, what="controller")
        else:
            yield dict(told, what="run")


def _kept(base: str) -> Iterator[Found]:
    """Our own runs that have a keeper or a pump, wherever their claims are to be seen."""
    for run in _runs(base):
        if not run.finished and owners.care(run) in (owners.LIVES, owners.HEIR, owners.SILENT):
            yield dict(_names(run), what="run")


def _titled() -> Iterator[Found]:
    """Keepers and pumps of any user, as ps(1) shows them: some may be in another network namespace."""
    for process in procfs.everybody():
        try:
            with open("/proc/%d/cmdline" % process.pid, "rb") as file:
                title = KEEPER.match(file.read().decode(errors="replace"))
            uid = os.stat("/proc/%d" % process.pid).st_uid
        except OSError:
            continue
        if title and not process.gone:
            yield {"what": "run", "process": title[1], "run": title[2], "deployment": title[3], "user": _user(uid)}


def _orphaned(base: str) -> Iterator[Found]:
    """What lives of our own runs though nobody looks after it."""
    for member in owners.members(base):
        if member.orphan:
            yield dict(_names(member.run), what="orphan", pid=member.process.pid)
    for run in _runs(base):
        group = cgroup.recorded(run.record("run.json") or {})
        if group is not None and group.populated():
            yield dict(_names(run), what="orphan", pid=next(iter(group.pids()), None))


def _names(run: Run) -> Found:
    about = (run.record("spec.json") or {}).get("about", {})
    names = {"deployment": run.deployment, "process": run.process, "run": run.run}
    return dict(names, user=_user(os.getuid()), controller=about.get("controller"))


def _runs(base: str) -> Iterator[Run]:
    for deployment in rundir.subdirectories(os.path.join(base, "runs")):
        yield from rundir.runs(base, deployment)


def others(base: str) -> List[Found]:
    """Directories of noray's in the usual places that are not removed: another user's, or of ours by another host_dir."""
    found = sorted(path for pattern in DEFAULTS for path in glob.glob(pattern) if path != os.path.dirname(base))
    return [{"path": path, "user": _user(os.lstat(path).st_uid)} for path in found]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# --- what is removed ------------------------------------------------------------------------------------------------------


def _clear(place: str, left: List[str]) -> bool:
    """Remove a directory of ours with what its runs left elsewhere. True if it was there and is gone; `left` says why not."""
    if not os.path.isdir(place):
        return False
    for run in _runs(place):
        _forget(run, left)
    for folder, names, _ in os.walk(place):  # parents first: what a worker has closed must be open to be emptied
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                _try(_open_up, os.path.join(folder, name), [])
    for name in sorted(_inside(place), key=lambda name: name == "bin"):  # what we run from goes last
        _remove(os.path.join(place, name), left)
    _try(os.rmdir, place, left)
    return not os.path.exists(place)


def _clear_default(root: str, left: List[str]) -> List[str]:
    """The directory above, where noray chose and made it, once it is empty."""
    if not any(root in glob.glob(pattern) for pattern in DEFAULTS) or _inside(root):
        return []
    _try(os.rmdir, root, left)
    return [] if os.path.exists(root) else [root]


def _inside(place: str) -> List[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []  # one machine may be two hosts, both being ejected


def _forget(run: Run, left: List[str]) -> None:
    """What a run whose keeper could not tidy up left outside its directory."""
    record = run.record("run.json") or {}
    group = cgroup.recorded(record)
    if group is not None:
        group.remove()
        if os.path.isdir(group.path):
            left.append("%s: cannot be removed" % group.path)
    shared = roster.segments(run)
    if shared and record.get("boot") == procfs.boot_id():
        Segments(record.get("at", 0) / 1000, shared).remove()


def _remove(path: str, left: List[str]) -> None:
    if not os.path.isdir(path) or os.path.islink(path):
        _try(os.unlink, path, left)
        return
    for folder, names, files in os.walk(path, topdown=False):
        for name in files + names:
            inner = os.path.join(folder, name)
            _try(os.unlink if name in files or os.path.islink(inner) else os.rmdir, inner, left)
    _try(os.rmdir, path, left)


def _open_up(path: str) -> None:
    os.chmod(path, 0o700)


def _try(act: Callable[[str], None], path: str, left: List[str]) -> None:
    try:
        act(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        left.append("%s: %s" % (path, error.strerror))


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
