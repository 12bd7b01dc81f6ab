"""The two ways a keeper comes to be, apart from inheriting: a run is born, or an abandoned one is adopted.

Both are called in a process freshly forked by a link, and own the rest of its life.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, Dict, List, Optional

from . import claims, procfs, spawn
from .keeper import Keeper
from .reactor import Lines, Reactor
from .rundir import Run
from .runstate import close_unborn, run_state, title, wall_ms
from .tree import Tree, become_subreaper


def keep(base: str, deployment: str, spec: Dict[str, Any], env: Dict[str, str], peer: int) -> None:
    """A freshly forked keeper's whole life: start the run (or refuse), own it, end. `peer` is the link that asked."""
    run = Run(base, deployment, spec["process"], spec["run"])
    os.setsid()
    signal.set_wakeup_fd(-1)
    spawn.detach({peer})
    title(run, "keeper")
    spawn.oom_score(-900)
    lock = run.create_locked(spec)
    if lock is None:
        os._exit(0)  # a repeated start: the first one's keeper answers for this run
    spawn.reached("made")
    try:
        held = spawn.claim(run, spec)
    except spawn.Refused as refusal:
        _refuse(run, spec, peer, None, refusal)
        return
    spawn.reached("claimed")
    spawn.share_lock(base)
    spawn.make_fifo(run)
    for name in ("exit.json", "gone.json"):
        run.reserve(name)
    become_subreaper()
    record: Dict[str, Any] = {"pid": 0, "start": 0, "sid": 0, "ports": held.ports, "holder": spawn.holder(run, spec)}
    keeper = Keeper(run, spec, held, lock, record, heir=False)
    keeper.start_pump()
    spawn.reached("listening")
    try:
        child = spawn.fork_child(run, spec, env, held.ports)
    except spawn.Refused as refusal:
        keeper.finish_pump()
        _refuse(run, spec, peer, held, refusal)
        return
    spawn.reached("forked")
    record.update(
        pid=child.pid, start=child.start, sid=child.pid, at=wall_ms(), boot=procfs.boot_id(), pidns=procfs.pid_namespace(),
        gpus=spec.get("gpus", []),  argv_digest=spec.get("argv_digest"),
    )  # fmt: skip
    run.write("run.json", record)
    spawn.reached("recorded")
    keeper.tree = Tree(child.pid, child.start, child.pid, parent=True)
    keeper.tree.others = {keeper.pump_pid}
    why = spawn.release(child)
    if why is not None:
        os.waitpid(child.pid, 0)
        keeper.finish_pump()
        _refuse(run, spec, peer, held, spawn.Refused("exec", why))
        return
    spawn.reached("running")
    keeper.live(peer)


def _refuse(run: Run, spec: Dict[str, Any], peer: int, held: Optional[spawn.Held], refusal: spawn.Refused) -> None:
    ended = close_unborn(run, held, str(refusal), refusal.cause)
    reactor = Reactor()
    line = Lines(reactor, peer, peer, lambda _: None, lambda: None)
    line.send(run_state(run, spec, {}, ended, "gone"))


def adopt_abandoned(run: Run, record: Dict[str, Any], lock: int) -> None:
    """Be the heir of a run whose keeper and pump both died. Called in a process forked for it by a link."""
    spawn.detach({lock})
    spec = run.record("spec.json") or {"process": run.process, "run": run.run}
    notes: List[str] = ["keeper and pump both died; a link started an heir, the exit code will be unknown"]
    if record.get("boot") != procfs.boot_id():
        ended = {"code": None, "signal": None, "at": wall_ms(), "asked": False, "cause": "the host was rebooted"}
        if run.record("exit.json") is None:
            run.write("exit.json", ended)
        run.write("gone.json", {"at": wall_ms(), "notes": notes})
        return
    held: List[socket.socket] = []
    for name in spawn.claim_names(run, spec, record.get("ports", {})):
        try:
            held.append(claims.hold(name))
        except claims.Held as other:
            notes.append("while it had no keeper its claim fell: %s" % other)
    listener = spawn.listen(run)
    spawn.share_lock(run.base)
    become_subreaper()
    title(run, "heir")
    heir = Keeper(run, spec, spawn.Held(held, listener, record.get("ports", {})), lock, record, heir=True)
    for text in notes:
        heir.note(text)
    heir.live()
