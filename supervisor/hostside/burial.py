"""The end of a run whose host was rebooted, or its container started again: no tree is left to end, and its pids are others'.

What is left is its registration: by its lease it outlives a power cut, up to a minute of requests into a black hole (measured).
So it is fenced before it is called gone. Its keeper would have done that; now it is a process that a link forks for it.
"""

from __future__ import annotations

import signal
import socket
from typing import Any, Callable, Dict, List, Optional

from . import claims, ports, procfs, spawn
from .fencing import Fencing
from .reactor import READ, Lines, Reactor
from .rundir import Run
from .runstate import close_unborn, fence_target, run_state, title, unlink_channels, wall_ms, when

WHY = {
    "reboot": "its host was rebooted, and is up again since %s",
    "container": "its container was started again, at %s",
}


def outlived(run: Run, born: Optional[Dict[str, Any]]) -> bool:
    """Whether it cannot live any more, whoever has its pids now; then its exit is on record. `born`: its run.json."""
    made = born or run.record("spec.json") or {}
    why = procfs.elsewhere(made) if "boot" in made else ""  # a spec of older versions does not say
    if not why and born is None:
        close_unborn(run, None, "its keeper died while starting it")
    elif why and run.record("exit.json") is None:  # what its keeper saw is worth more than what we can say
        up = procfs.up_since()
        ended = {
            "code": None,
            "signal": None,
            "at": int(up * 1000),
            "asked": False,
            "cause": why,
            "message": WHY[why] % when(up),
        }
        run.write("exit.json", ended)
    return bool(why) or born is None


def fence_owed(run: Run, born: Optional[Dict[str, Any]]) -> bool:
    fenced = (run.record("exit.json") or {}).get("fenced")
    return born is not None and bool((run.record("spec.json") or {}).get("fence")) and (fenced is None or "error" in fenced)


def close(run: Run, fenced: Optional[Dict[str, Any]] = None, notes: Optional[List[str]] = None) -> None:
    if not run.finished:
        run.write("gone.json", {"at": wall_ms(), "notes": notes or [], "fenced": fenced})
        unlink_channels(run)


def bury(run: Run, born: Dict[str, Any], lock: int, auth: Optional[Dict[str, str]] = None) -> None:
    """The whole life of a process that a link forked. Told to stop, it waits for no etcd any more."""
    spawn.detach({lock})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    title(run, "heir")
    spec, ended = run.record("spec.json") or {}, run.record("exit.json") or {}
    reactor, notes = Reactor(), []
    held: List[socket.socket] = []
    target = fence_target(spec, born, auth)
    try:
        # It is known to etcd by its address, which nobody may get while we look for it.
        for name in spawn.claim_names(run, [], ports.numbers(spec.get("ports", {}), born.get("ports", {}))):
            held.append(claims.hold_patiently(name))
            reactor.watch(held[-1].fileno(), READ, _teller(held[-1], born.get("holder", {})))
    except claims.Held as other:
        notes.append("not fenced, as what it was known by is another's by now: %s" % other)
        target = None
    fencing = Fencing(reactor, target, ended.get("fenced"), lambda: None if fencing.trying else reactor.stop(), run.events.add)
    listener = spawn.listen(run)

    def visited(_: int) -> None:
        fd = listener.accept()[0].detach()
        Lines(reactor, fd, fd, told, lambda: None).send(
            run_state(run, spec, born, ended, "ended", fenced=fencing.result, notes=notes, heir=True, events=run.events.newest)
        )

    def told(message: Dict[str, Any]) -> None:
        if message.get("op") == "stop":
            reactor.stop()

    reactor.watch(listener.fileno(), READ, visited)
    fencing.do()
    if fencing.trying:
        reactor.run()
    for sock in held:
        sock.close()
    close(run, fencing.result, notes)


def _teller(sock: socket.socket, holder: Dict[str, Any]) -> Callable[[int], None]:
    return lambda _: claims.tell(sock, holder)
