"""The keeper: owns one run from before its birth until its tree is proven empty, whether or not a controller exists.

It never decides that a run should live again; it knows only how one starts, how it is fenced, and how it ends. What it
knows it publishes as one whole state (not as a series of events) to whoever connects: a reader that missed ten changes
misses nothing. Keeper and pump replace each other: if the keeper dies the pump becomes the heir (`heir=True`), which holds the
same claims and the same listener, but is nobody's parent: the exit code is then unknown for ever, and never made up.

Signals: SIGTERM, and what a stop of its scope sends, is an orderly stop of the run, which nobody asked its controller for: so
its record says that it failed, or that its host was shutting down. HUP, INT and PIPE mean nothing to it.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import claims, gpus, ladder, leaving, postmortem, procfs, pump, roster, scope, spawn
from .cgroup import Cgroup
from .draining import Draining
from .dying import Dying
from .ending import Ending
from .fencing import Fencing
from .lending import Lending
from .output import Output
from .reactor import READ, Lines, Reactor
from .roster import Roster
from .rundir import Run
from .runstate import close_unborn, fence_target, run_state, title, unlink_channels, wall_ms, with_signs
from .shm import Segments
from .tree import Tree, become_subreaper, pidfd_open

HEIR_LOOK_S = 0.2  # how often an heir looks at a leader for which the kernel has no pidfd
NOTES_KEPT = 20
# After a SIGTERM that no controller asked for. systemd kills what it ends after 90 s (a scope of ours: 15 s after its ladder),
# a plain init after 1 to 10 s. Under the former the ladder still fits behind it; under the latter nothing more would.
UNASKED_DRAIN_S = 10.0


class Keeper:
    def __init__(
        self,
        run: Run,
        spec: Dict[str, Any],
        held: spawn.Held,
        lock: int,
        record: Dict[str, Any],
        heir: bool,
        fifo: Optional[int] = None,
        auth: Optional[Dict[str, str]] = None,
    ) -> None:
        """`auth`: of etcd, where it wants a login."""
        self.run, self.spec, self.held, self.lock, self.record, self.heir = run, spec, held, lock, record, heir
        self.reactor = Reactor()
        self.tree = roster.follower(run, record) if heir else Tree(0, 0, 0, parent=True)
        self.segments = Segments(record.get("at", wall_ms()) / 1000, roster.segments(run))
        self.roster = Roster(run, self.tree, self.segments)
        self.lending = Lending(
            self.reactor, held.gpus, self.tree.members, self._publish, self._refuted, lambda: self.ending.climb(ladder.RETURNED)
        )
        began = ladder.Ladder(term_s=float(spec.get("term_s", 30.0)), gpus=bool(held.gpus))
        self.ending = Ending(self.reactor, self.tree, began, self._reap, self._entered)
        self.kills = postmortem.Kills()
        self.exit: Optional[Dict[str, Any]] = run.record("exit.json")
        fenced = (self.exit or {}).get("fenced")
        target = fence_target(spec, record, auth)
        self.fencing = Fencing(self.reactor, target, fenced, self._fence_tried, run.events.add)
        self.draining: Optional[Draining] = None
        if target and spec.get("drain"):
            system = (spec["drain"][0], int(spawn.fill(spec["drain"][1], record["ports"])))
            self.draining = Draining(self.reactor, target, system, self._publish, self.ending.climb)
        self.fenced_dying = False
        self.asked = bool((self.exit or {}).get("asked"))
        self.failing: Optional[Tuple[str, str]] = None  # why we end it ourselves, though nobody asked: a word, and a sentence
        self.terminated = ""  # we were sent SIGTERM: "shutdown" by a host that goes down, else "terminated"
        self.gone = False
        self.notes: List[str] = []
        self.peers: List[Lines] = []
        self.output = Output(run, self.reactor, self.note, fifo)
        self.tree.others = lambda: self.output.pids | gpus.children()

    # --- life -----------------------------------------------------------------------------------------------------------

    def live(self, first_peer: Optional[int] = None) -> None:
        """Until the tree is gone. Then every claim has fallen."""
        self.reactor.on_signals({signal.SIGCHLD: self._reap, signal.SIGTERM: self._terminated, scope.ASKED: self._terminated})
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        for sock in self.held.claims:
            self.reactor.watch(sock.fileno(), READ, self._teller(sock))
        self.reactor.watch(self.held.listener.fileno(), READ, lambda _: self._visited())
        if not self.output.pids:
            self.start_pump()
        if first_peer is not None:
            self._greet(first_peer)
        if self.exit is not None:
            if self.fencing.failed:
                self.fencing.do()
            self.ending.climb(ladder.LEADER_GONE)
        elif self.heir:
            self._watch_leader()
        if self.fencing.leases:
            Dying(self.reactor, self.record["pid"], self.record["start"], self._leader_dying)
        self.roster.begin(self.reactor)
        self.reactor.every(postmortem.LOOK_S, self.kills.look)
        self.lending.watch()
        self._reap()
        self.reactor.run()

    def _teller(self, sock: socket.socket) -> Callable[[int], None]:
        return lambda _: claims.tell(sock, self.record.get("holder", {}))

    def own(self, pid: int, start: int, group: Optional[Cgroup]) -> None:
        """The leader exists; what is below us from now on is its tree."""
        self.tree.lead(pid, start, group)

    def start_pump(self) -> None:
        self.output.start(lambda fd: become_pump(self, fd))

    def state(self) -> Dict[str, Any]:
        """The whole truth about this run, as the link forwards it."""
        stuck = self.ending.step in (ladder.STUCK, ladder.GPU_HELD)
        phase = "gone" if self.gone else "stuck" if stuck else "ended" if self.exit else "running"
        stop = self.ending.told(self.lending.owed, self.draining.inflight if self.draining else None)
        ended = with_signs(self.exit, self.lending.signs)
        return run_state(self.run, self.spec, self.record, ended, phase, stop=stop, fenced=self.fencing.result,
                         notes=self.notes, heir=self.heir, asked=self.asked, gpus=self.lending.told(),
                         gpu_note=self.lending.why, events=self.run.events.newest, terminated=self.terminated)  # fmt: skip

    def _publish(self) -> None:
        for peer in list(self.peers):
            peer.send(self.state())

    # --- who talks to us ------------------------------------------------------------------------------------------------

    def _visited(self) -> None:
        try:
            visitor, _ = self.held.listener.accept()
        except OSError:
            return  # the pump was quicker, or the visitor left
        self._greet(visitor.detach())

    def _greet(self, fd: int) -> None:
        peer: Lines
        peer = Lines(self.reactor, fd, fd, self._told, lambda: self.peers.remove(peer))
        self.peers.append(peer)
        peer.send(self.state())

    def _told(self, message: Dict[str, Any]) -> None:
        op, term_s, drain_s = message.get("op"), message.get("term_s"), message.get("drain_s")
        if op == "stop":
            term_s = float(term_s) if isinstance(term_s, (int, float)) else None
            self.asked = True
            self.roster.look()  # the last one at a whole tree: what it shares in memory shows while it lives
            self.ending.ask(term_s, float(drain_s) if isinstance(drain_s, (int, float)) and self.draining else 0.0)
            self._check()  # perhaps only the fence was waited for
        elif op == "fence":
            self.fencing.told(message)

    def _terminated(self) -> None:
        """Out of the routing before anything else: whoever sent this may have sent it to the worker too."""
        if self.draining is None:
            self.fencing.do()
            self.roster.look()
            self.ending.ask(None)
        else:
            self.ending.ask(None, UNASKED_DRAIN_S)  # begins with a cordon: a lease revoked would end what it generates
            self.roster.look()
        if not self.asked and self.exit is None and self.failing is None:
            sign = leaving.sign(signalled=True)
            self.terminated = "shutdown" if sign else "terminated"
            why = "its host was shutting down: %s" % sign if sign else "its keeper was sent SIGTERM"
            self.failing = (self.terminated, why)
        self._publish()
        self._check()

    # --- the leader ends ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        if not self.heir and self.exit is None:
            pid, status = os.waitpid(self.record["pid"], os.WNOHANG)
            if pid:
                self._leader_ended(status)
        while not self.gone:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if pid == self.record["pid"] and not self.heir:
                self._leader_ended(status)  # it ended between the two calls
            self.output.reaped(pid)
        self._check()

    def _watch_leader(self) -> None:
        fd = pidfd_open(self.record["pid"])
        if fd is None or not procfs.alive(self.record["pid"], self.record["start"]):
            self._look_at_leader()
        else:
            self.reactor.watch(fd, READ, lambda _: self._leader_moved(fd))

    def _leader_moved(self, pidfd: int) -> None:
        self.reactor.unwatch(pidfd)
        self._look_at_leader()

    def _look_at_leader(self) -> None:
        if procfs.alive(self.record["pid"], self.record["start"]):
            self.reactor.after(HEIR_LOOK_S, self._look_at_leader)
        elif self.exit is None:
            self._leader_ended(None)

    def _leader_dying(self) -> None:
        """Only by its lease: once revoked it takes no key that is still on its way. An address may be registered again."""
        if self.exit is None and self.fencing.leased:
            self.fencing.do()  # before anything is written: every millisecond is requests into a black hole
            self.fenced_dying = not self.fencing.failed
            self._publish()

    def _leader_ended(self, status: Optional[int]) -> None:
        """`status` as waitpid(2) gave it; None = an heir, which cannot know."""
        at = wall_ms()
        if not self.fenced_dying:
            self.fencing.do()
        code, sig, cause = None, None, ""
        if status is None:
            cause = "unknown: its keeper had died, and an exit code is told to the parent only"
        elif os.WIFSIGNALED(status):
            sig = os.WTERMSIG(status)
        else:
            code = os.WEXITSTATUS(status)
        self.exit = {"code": code, "signal": sig, "at": at, "asked": self.asked, "cause": cause, "fenced": self.fencing.result}
        signs = self.kills.signs(self.tree.group)
        if signs:
            self.exit["signs"] = signs
        if self.failing is not None:
            self.exit["cause"], self.exit["message"] = self.failing
        self.run.write("exit.json", self.exit)
        self.ending.climb(ladder.LEADER_GONE)

    @property
    def _fence_owed(self) -> bool:
        """An unasked end is not over while the dead may still be routed to. A stop does not wait: its controller knows.

        Nor does a shutdown: etcd may be going down, too.
        """
        return self.fencing.trying and not self.asked and self.terminated != "shutdown"

    def _fence_tried(self) -> None:
        self._publish()
        self._check()

    # --- the tree ends --------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.exit is not None and not self.gone:
            self.ending.check(hold=self._fence_owed)

    def _entered(self, step: str) -> None:
        if step != ladder.DONE:
            self.run.events.add("stop", step)
        if self.draining and step != ladder.DRAIN:
            self.draining.stop()
        elif self.draining:
            self.draining.begin()
        if step == ladder.GPU_RETURN:
            self.lending.give_back()
        elif step == ladder.GPU_HELD:
            self.lending.slow_down()
        elif step == ladder.DONE:
            self._finish()
        self._publish()

    def _refuted(self, why: str) -> None:
        """It is on a GPU that is another's: end it before that other notices. The run has failed."""
        if self.exit is None and not self.asked and self.failing is None:
            self.failing = ("gpu", why)
            self.fencing.do()
            self.ending.ask(None)

    def _finish(self) -> None:
        self.gone = True
        removed = self.segments.remove()
        if removed:
            self.note(removed)
        self.output.finish()
        if self.tree.group is not None:
            self.tree.group.remove()
        # Claims before the record: who reads "gone" may start the next run at once.
        for sock in self.held.claims:
            sock.close()
        self.held.listener.close()
        gone = {"at": wall_ms(), "notes": self.notes, "fenced": self.fencing.result, "signs": self.lending.signs}
        try:
            self.run.write("gone.json", gone)
        except OSError:
            self.run.write("gone.json", dict(gone, notes=["some notes did not fit on the disk"]))  # fits what was reserved
        unlink_channels(self.run)
        self.reactor.stop()

    # --- what it has to say of itself -----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        if text.startswith("lost "):  # its count includes all that were told before
            self.notes = [n for n in self.notes if not n.startswith("lost ")]
        self.notes = [*self.notes[-NOTES_KEPT:], text]
        if not (text.startswith("lost ") and self.run.events.last["text"].startswith("lost ")):  # one of a series
            self.run.events.add("note", text)
        self._publish()


def become_pump(keeper: Keeper, fd: int) -> None:
    """The rest of a freshly forked pump's life; never returns. If its keeper dies it becomes the heir of the run."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    fifo = keeper.output.fifo
    kept = {fd, fifo, keeper.lock, keeper.held.listener.fileno(), *(sock.fileno() for sock in keeper.held.claims)}
    spawn.detach(kept)  # above all the line to the link, which must end with the keeper
    title(keeper.run, "pump")
    if pump.run(pump.Log(keeper.run.file("log")), fifo, fd) == "heir":
        os.close(fd)
        inherit(keeper.run, keeper.spec, keeper.held, keeper.lock, fifo, keeper.fencing.auth)
    os._exit(0)


def inherit(
    run: Run, spec: Dict[str, Any], held: spawn.Held, lock: int, fifo: int, auth: Optional[Dict[str, str]] = None
) -> None:
    """Be the heir of a run whose keeper died: claims and listener are ours already, its tree may be alive."""
    run = Run(run.base, run.deployment, run.process, run.run)  # what the keeper wrote since it made us, we have not in memory
    record = run.record("run.json")
    if record is None or not record.get("pid"):
        # The keeper died before `recorded`; the child, if there ever was one, read end-of-file and ended.
        close_unborn(run, held, "its keeper died while starting it")
        return
    title(run, "heir")
    spawn.share_lock(run.base)
    heir = Keeper(run, spec, held, lock, record, heir=True, fifo=fifo, auth=auth)
    heir.note("its keeper died; the pump took over, the exit code will be unknown")
    become_subreaper()
    heir.live()
