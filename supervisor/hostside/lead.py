"""Who leads: the one controller that may change anything of a deployment on this host.

To lead is a claim like any other, held by the link of the controller that leads, so it falls with that link. Whoever else
comes is refused and told who leads, where, and since when; but only by a controller that is alive, and alive is
proven: each visit makes the holder ask its controller for a line, and only a line heard after the first visit counts.
A controller that was killed, or silent for as long as a link lives without hearing anything, is nobody to wait for.

Two may put the holder out: a newer connection of the same controller, whose old link may still hang, and another controller
that was told to take over. They write the record first and visit then; a link that finds somebody newer on record ends. A
link that does not even do that (stopped, hung) is passed by: it looks at the record before every change as well. Who leads
then kills all who were on record before and are still there, as a link owns nothing.

The epoch on record is counted by this host, not by the clocks of controllers: theirs only order the connections of one of
them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from typing import Any, Callable, Dict, List, Optional

from . import claims, procfs, tree
from .reactor import READ, Reactor

LOOK_S = 0.05
FIND_S = 1.0
AGAIN_S = 0.1
PUT_OUT_S = 2.0  # for a link that was put out to end
ABOUT = ("deployment", "controller", "id", "user", "since")

Holder = Dict[str, Any]


def sentence(holder: Holder) -> str:
    """Who leads, for an operator."""
    who = "user %s, since %s" % (holder.get("user") or "unknown", holder.get("since") or "unknown")
    return "deployment %s is run by controller %s (%s)" % (holder.get("deployment"), holder.get("controller"), who)


def name(base: str, deployment: str) -> str:
    """The claim. One machine may be several hosts, each with a directory of its own."""
    return "lead-%d:%s:%s" % (os.getuid(), hashlib.sha256(base.encode()).hexdigest()[:8], deployment)


class Lead:
    """One link's part. `heard` counts the lines of its controller, `ask` asks it for one, `lost` is told the successor."""

    def __init__(
        self, base: str, reactor: Reactor, heard: Callable[[], int], ask: Callable[[], None], lost: Callable[[Holder], None]
    ) -> None:
        self.base, self.reactor = base, reactor
        self._heard, self._ask, self._lost = heard, ask, lost
        self.me: Holder = {}
        self.epoch = 0
        self._asked = 0
        self._take_over = False
        self._claim: Optional[socket.socket] = None
        self._facing: Optional[Holder] = None  # the holder at our first visit
        self._before: List[Dict[str, Any]] = []  # links that were on record before ours, and lived

    def seek(self, hello: Holder, patience_s: float, granted: Callable[[], None], refused: Callable[[Holder], None]) -> None:
        """Exactly one of the two is called, now or within `patience_s` (how long a link lives without a line)."""
        self.me = {key: hello.get(key) for key in ABOUT}
        self.me["id"] = self.me["id"] or self.me["controller"]
        self._asked, self._take_over = int(hello.get("epoch", 0)), bool(hello.get("take_over"))
        self._granted, self._refused = granted, refused
        known = self._record()
        if self._mine(known) and known["asked"] > self._asked:
            return refused(known)  # a connection of ours that was overtaken
        self._until = time.monotonic() + patience_s
        return self._look()

    def find(self, deployment: str, found: Callable[[Optional[Holder]], None]) -> None:
        """Who leads, for an onlooker; None: nobody who is alive. Called back within FIND_S and the time of one visit."""
        first = claims.ask(name(self.base, deployment))
        until = time.monotonic() + FIND_S

        def again() -> None:
            holder = claims.ask(name(self.base, deployment))
            if holder and holder.get("heard", 0) > (first or holder).get("heard", 0):
                found(holder)
            elif not holder or time.monotonic() > until:
                found(None)
            else:
                self.reactor.after(LOOK_S, again)

        if first:
            self.reactor.after(LOOK_S, again)
        else:
            found(None)

    def successor(self) -> Optional[Holder]:
        """Who leads by now instead of us; None while we do."""
        known = self._record()
        return known if known.get("epoch", 0) > self.epoch else None

    # --- to get there ---------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        try:
            claim = claims.hold(self._name())
        except claims.Held as held:
            return self._face(held.holder)
        self._rule(claim)
        return None

    def _face(self, holder: Holder) -> None:
        now = time.monotonic()
        if self._take_over or self._mine(holder or self._record()):  # a hung link says nothing, the record does
            if not self.epoch:
                self._until = now + PUT_OUT_S
                self._write()
                self.reactor.after(0.0, self._look)
                return None
            if self._mine(holder) and holder.get("asked") == self._asked:
                return self._rule(None)  # this very connection, a second time
        elif self._facing is None or self._facing.get("id") != holder.get("id"):
            self._facing = holder or None
        elif holder.get("heard", 0) > self._facing.get("heard", 0):
            return self._refused(holder)
        if now > self._until:
            return self._rule(None)
        self.reactor.after(LOOK_S, self._look)
        return None

    def _rule(self, claim: Optional[socket.socket]) -> None:
        self._write()
        self._granted()
        self._keep(claim)
        self.reactor.after(PUT_OUT_S, lambda: _end(self._before))

    # --- to be there ----------------------------------------------------------------------------------------------------

    def _keep(self, claim: Optional[socket.socket]) -> None:
        """Who passed by a hung link has no claim yet, and takes it as soon as that one is gone."""
        claim = claim or claims.take(self._name())
        if claim is None:
            self.reactor.after(AGAIN_S, lambda: self._keep(None))
            return
        held = self._claim = claim
        self.reactor.watch(held.fileno(), READ, lambda _: self._visited(held))

    def _visited(self, claim: socket.socket) -> None:
        claims.tell(claim, dict(self.me, asked=self._asked, heard=self._heard()))
        newer = self.successor()
        if newer is not None:
            return self._lost(newer)
        return self._ask()

    # --- on record ------------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        return name(self.base, str(self.me["deployment"]))

    def _mine(self, holder: Holder) -> bool:
        return bool(holder.get("id") == self.me["id"])

    def _file(self) -> str:
        return os.path.join(self.base, "runs", str(self.me["deployment"]), ".controller")

    def _record(self) -> Holder:
        try:
            with open(self._file()) as file:
                known = json.load(file)
        except (FileNotFoundError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self) -> None:
        known = self._record()
        if self._mine(known) and known["asked"] == self._asked:
            self.epoch = known["epoch"]
            return
        self.epoch = max(self._asked, known.get("epoch", 0) + 1)
        self._before = list(filter(_found, known.get("links", ())))
        path = self._file()
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        links = [_here(os.getpid()), *self._before]
        draft, record = (
            "%s.%d" % (path, os.getpid()),
            json.dumps(dict(self.me, epoch=self.epoch, asked=self._asked, links=links)),
        )
        try:
            with open(draft, "w") as file:
                file.write(record)
            os.rename(draft, path)
        except OSError:
            if os.path.exists(draft):
                os.unlink(draft)
            # On a full disk there is room where the last record is. A torn one is no record; none would be no controller.
            with open(path, "r+") as file:
                file.write(record)
                file.truncate()


def _here(pid: int) -> Dict[str, Any]:
    """Who that is: nobody else ever is the same."""
    process = procfs.read(pid)
    return {"boot": procfs.boot_id(), "pidns": procfs.pid_namespace(), "pid": pid, "start": process.start if process else 0}


def _found(link: Dict[str, Any]) -> Optional[procfs.Process]:
    """The process, if it is still there."""
    process = procfs.read(link["pid"])
    return process if process is not None and _here(process.pid) == link else None


def _end(links: List[Dict[str, Any]]) -> None:
    """They hang, if they are still there. The runs that they started have keepers of their own."""
    for process in filter(None, map(_found, links)):
        tree.send(process, signal.SIGKILL)
