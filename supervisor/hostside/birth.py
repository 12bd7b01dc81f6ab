"""The two ways a keeper comes to be, apart from inheriting: a run is born, or an abandoned one is adopted.

Both are called in a process freshly forked by a link, and own the rest of its life.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import Any, Dict, List, Optional

from . import cgroup, claims, etcd, lending, logout, ports, procfs, spawn
from .keeper import Keeper
from .reactor import Lines, Reactor
from .rundir import Run
from .runstate import close_unborn, run_state, title, wall_ms
from .tree import become_subreaper


def keep(base: str, deployment: str, spec: Dict[str, Any], env: Dict[str, str], peer: int) -> None:
    """A freshly forked keeper's whole life: start the run (or refuse), own it, end. `peer` is the link that asked."""
    run = Run(base, deployment, spec["process"], spec["run"])
    os.setsid()
    signal.set_wakeup_fd(-1)
    spawn.detach({peer})
    title(run, "keeper")
    spawn.oom_score(-900)
    try:
        lock = run.create_locked(spec)
    except OSError as error:
        ended = {"code": None, "signal": None, "at": wall_ms(), "asked": False, "cause": _cause(error)}
        _tell(run, spec, peer, dict(ended, message="cannot make the run's directory: %s" % error))
        return
    if lock is None:
        return  # a repeated start: the first one's keeper answers for this run
    held: Optional[spawn.Held] = None
    keeper: Optional[Keeper] = None
    try:
        spawn.reached("made")
        note = logout.settle(run, spec)
        held = spawn.claim(run, spec)
        spawn.reached("claimed")
        keeper = _prepare(run, spec, held, lock, etcd.credentials(env))
        if note:
            keeper.note(note)
        spawn.reached("listening")
        _bear(keeper, _complete(spec, env))
    except Exception as error:  # whatever it is: nothing runs, and the controller is told
        refusal = error if isinstance(error, spawn.Refused) else spawn.Refused(_cause(error), _words(error))
        if keeper is not None:
            keeper.output.finish()
        _tell(run, spec, peer, close_unborn(run, held, str(refusal), refusal.cause))
        return
    spawn.reached("running")
    keeper.live(peer)


def _complete(spec: Dict[str, Any], env: Dict[str, str]) -> Dict[str, str]:
    try:
        return etcd.content(env, spec.get("contents", []))
    except OSError as error:
        raise spawn.Refused("missing", "%s" % etcd.why(error)) from None


def _cause(error: Exception) -> str:
    """A word a program can branch on: a start that found no room may be tried again, but not at once."""
    return "disk" if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) else "start"


def _words(error: Exception) -> str:
    return "%s: %s" % (type(error).__name__, error)


def _prepare(run: Run, spec: Dict[str, Any], held: spawn.Held, lock: int, auth: Optional[Dict[str, str]]) -> Keeper:
    spawn.share_lock(run.base)
    spawn.make_fifo(run)
    become_subreaper()
    record: Dict[str, Any] = {"pid": 0, "start": 0, "sid": 0, "ports": held.ports, "holder": spawn.holder(run, spec)}
    keeper = Keeper(run, spec, held, lock, record, heir=False, auth=auth)
    keeper.start_pump()
    return keeper


def _bear(keeper: Keeper, env: Dict[str, str]) -> None:
    run, spec, record = keeper.run, keeper.spec, keeper.record
    group = cgroup.make(run)
    child = spawn.fork_child(run, spec, env, keeper.held.ports)
    try:
        if group is not None and not group.take(child.pid):
            group.remove()
            group = None
        spawn.reached("forked")
        record.update(
            pid=child.pid, start=child.start, sid=child.pid, at=wall_ms(), **procfs.here(),
            gpus=[one._asdict() for one in keeper.held.gpus], argv_digest=spec.get("argv_digest"),
            cgroup=group.path if group is not None else None,
        )  # fmt: skip
        run.write("run.json", record)
        spawn.reached("recorded")
        keeper.own(child.pid, child.start, group)
        why = spawn.release(child)
    except BaseException:
        spawn.abandon(child)
        raise
    if why is not None:
        os.waitpid(child.pid, 0)
        raise spawn.Refused("exec", why)


def _tell(run: Run, spec: Dict[str, Any], peer: int, ended: Dict[str, Any]) -> None:
    line = Lines(Reactor(), peer, peer, lambda _: None, lambda: None)
    line.send(run_state(run, spec, {}, ended, "gone"))


def adopt_abandoned(run: Run, record: Dict[str, Any], lock: int, auth: Optional[Dict[str, str]] = None) -> None:
    """Be the heir of a run whose keeper and pump both died. Called in a process forked for it by a link."""
    spawn.detach({lock})
    spec = run.record("spec.json") or {"process": run.process, "run": run.run}
    notes: List[str] = ["keeper and pump both died; a link started an heir, the exit code will be unknown"]
    try:
        notes += filter(None, [logout.settle(run, spec)])
    except spawn.Refused as doomed:
        notes.append("this heir will end at logout: %s" % doomed)
    held: List[socket.socket] = []
    lent = lending.recorded(record)
    for name in spawn.claim_names(run, lent, ports.numbers(spec.get("ports", {}), record.get("ports", {}))):
        try:
            held.append(claims.hold_patiently(name))
        except claims.Held as other:
            notes.append("while it had no keeper its claim fell: %s" % other)
    listener = spawn.listen(run)
    spawn.share_lock(run.base)
    become_subreaper()
    title(run, "heir")
    whole = spawn.Held(held, listener, record.get("ports", {}), lent)
    heir = Keeper(run, spec, whole, lock, record, heir=True, auth=auth)
    for text in notes:
        heir.note(text)
    heir.live()
