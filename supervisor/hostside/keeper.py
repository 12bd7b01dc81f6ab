"""The keeper: owns one run from before its birth until its tree is proven empty, whether or not a controller exists.

It never decides that a run should live again; it knows only how one starts, how it is fenced, and how it ends. What it
knows it publishes as one whole state (not as a series of events) to whoever connects: a reader that missed ten changes
misses nothing. Keeper and pump replace each other: if the keeper dies the pump becomes the heir (`heir=True`), which holds the
same claims and the same listener, but is nobody's parent: the exit code is then unknown for ever, and never made up.

Signals: SIGTERM is an orderly stop of the run; HUP, INT and PIPE mean nothing to it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import Any, Callable, Dict, List, Optional

from . import claims, fence, ladder, procfs, pump, spawn
from .reactor import READ, Lines, Reactor, Timer
from .rundir import Run
from .runstate import close_unborn, fence_target, run_state, title, wall_ms
from .tree import Tree, become_subreaper, pidfd_open

SWEEP_S = 0.02  # how often an ending tree is looked at
HEIR_LOOK_S = 0.2  # how often an heir looks at a leader for which the kernel has no pidfd
FENCE_AGAIN_S = 1.0
FENCE_TRIES = 60  # the lease is gone by itself after its TTL of 60 s


class Keeper:
    def __init__(self, run: Run, spec: Dict[str, Any], held: spawn.Held, lock: int, record: Dict[str, Any], heir: bool) -> None:
        self.run, self.spec, self.held, self.lock, self.record, self.heir = run, spec, held, lock, record, heir
        self.reactor = Reactor()
        self.tree = Tree(record["pid"], record["start"], record["sid"], parent=not heir)
        self.ladder = ladder.Ladder(term_s=float(spec.get("term_s", 30.0)))
        self.timer: Optional[Timer] = None
        self.fence_target: Optional[Dict[str, Any]] = fence_target(spec, record)
        self.fenced: Optional[Dict[str, Any]] = None
        self.exit: Optional[Dict[str, Any]] = run.record("exit.json")
        self.asked = False
        self.gone = False
        self.sweeping = False
        self.notes: List[str] = []
        self.peers: List[Lines] = []
        self.pump_pid = 0
        self.pump_socket: Optional[socket.socket] = None

    # --- life -----------------------------------------------------------------------------------------------------------

    def live(self, first_peer: Optional[int] = None) -> None:
        """Until the tree is gone. Then every claim has fallen."""
        self.reactor.on_signals({signal.SIGCHLD: self._reap, signal.SIGTERM: self._terminated})
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        for sock in self.held.claims:
            self.reactor.watch(sock.fileno(), READ, self._teller(sock))
        self.reactor.watch(self.held.listener.fileno(), READ, lambda _: self._visited())
        if not self.pump_pid:
            self.start_pump()
        if first_peer is not None:
            self._greet(first_peer)
        if self.exit is not None:
            self._climb(ladder.LEADER_GONE)
        elif self.heir:
            self._watch_leader()
        self._reap()
        self.reactor.run()

    def _teller(self, sock: socket.socket) -> Callable[[int], None]:
        return lambda _: claims.tell(sock, self.record.get("holder", {}))

    def state(self) -> Dict[str, Any]:
        """The whole truth about this run, as the link forwards it."""
        stop = None
        if self.ladder.step not in (ladder.IDLE, ladder.DONE):
            left = None if self.ladder.deadline is None else self.ladder.deadline - time.monotonic()
            stop = {"step": self.ladder.step, "until": None if left is None else wall_ms() + int(left * 1000)}
        phase = "gone" if self.gone else "stuck" if self.ladder.step == ladder.STUCK else "ended" if self.exit else "running"
        return run_state(self.run, self.spec, self.record, self.exit, phase, stop=stop, fenced=self.fenced,
                         notes=self.notes, heir=self.heir, asked=self.asked)  # fmt: skip

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
        op = message.get("op")
        if op == "stop":
            self._stop(message.get("term_s"))
        elif op == "fence" and self.fence_target is not None:
            if message.get("lease"):
                self.fence_target["lease"] = str(message["lease"])
            if message.get("now"):
                self._fence(FENCE_TRIES)
                self._publish()

    def _stop(self, term_s: Optional[float]) -> None:
        self.asked = True
        if term_s is not None:
            self.ladder = self.ladder._replace(term_s=float(term_s))
        self._climb(ladder.ASK)

    def _terminated(self) -> None:
        # A host that shuts down sends SIGTERM to everybody at once: leave the routing before the worker goes down.
        self._fence(FENCE_TRIES)
        self._stop(None)

    # --- the leader ends ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        if not self.heir and self.exit is None:
            pid, status = os.waitpid(self.record["pid"], os.WNOHANG)
            if pid:
                self._leader_ended(status)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if pid == self.pump_pid and not self.gone:
                self.note(
                    "pump died at byte %d; another took over, no byte was in its hands" % pump.Log(self.run.file("log")).end()
                )
                self.start_pump()
        self._check_empty()

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

    def _leader_ended(self, status: Optional[int]) -> None:
        """`status` as waitpid(2) gave it; None = an heir, which cannot know."""
        at = wall_ms()
        self._fence(FENCE_TRIES)  # before anything is written: every millisecond is requests into a black hole
        code = sig = None
        if status is not None and status >= 0:
            code, sig = (None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), None)
        cause = (
            ""
            if status is not None and status >= 0
            else "unknown: its keeper had died, and an exit code is told to the parent only"
        )
        self.exit = {"code": code, "signal": sig, "at": at, "asked": self.asked, "cause": cause, "fenced": self.fenced}
        self.run.write("exit.json", self.exit)
        self._climb(ladder.LEADER_GONE)

    def _fence(self, tries: int) -> None:
        if self.fence_target is None or (self.fenced and "error" not in self.fenced):
            return
        try:
            did = fence.fence(self.fence_target)
            self.fenced = {"at": wall_ms(), "did": did}
        except (OSError, ValueError) as error:
            self.fenced = {"at": wall_ms(), "error": str(error)}
            if tries > 1 and not self.gone:
                self.reactor.after(FENCE_AGAIN_S, lambda: self._fence_again(tries - 1))

    def _fence_again(self, tries: int) -> None:
        self._fence(tries)
        self._publish()

    # --- the tree ends --------------------------------------------------------------------------------------------------

    def _climb(self, event: str) -> None:
        self.ladder, entered = ladder.on(self.ladder, event, time.monotonic())
        if self.timer is not None:
            self.timer.cancel()
        if self.ladder.deadline is not None:
            self.timer = self.reactor.after(max(0.0, self.ladder.deadline - time.monotonic()), lambda: self._climb(ladder.DUE))
        if entered == ladder.TERM_LEADER:
            self.tree.signal_leader(signal.SIGTERM)
        elif entered == ladder.TERM_REST:
            self.tree.signal_all(signal.SIGTERM)
        elif entered == ladder.KILL:
            self.tree.kill()
        elif entered == ladder.DONE:
            self._finish()
        if entered is not None:
            self._publish()
            self._sweep()

    def _sweep(self) -> None:
        if self.sweeping or self.gone or self.ladder.step == ladder.IDLE:
            return
        self.sweeping = True

        def look() -> None:
            self.sweeping = False
            if self.ladder.step == ladder.KILL:
                self.tree.kill()
            self._check_empty()
            self._sweep()

        self.reactor.after(SWEEP_S, look)

    def _check_empty(self) -> None:
        if self.exit is not None and not self.gone and not self.tree.members():
            self._climb(ladder.EMPTY)

    def _finish(self) -> None:
        self.gone = True
        self.finish_pump()
        self.run.write("gone.json", {"at": wall_ms(), "notes": self.notes})
        for sock in self.held.claims:
            sock.close()
        self.held.listener.close()
        for path in (self.run.socket, self.run.file("out")):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self.reactor.stop()

    # --- the pump -------------------------------------------------------------------------------------------------------

    def start_pump(self) -> None:
        """Fork the pump: before the child, so that not a byte of output ever lacks a reader, and again whenever it died."""
        if self.pump_socket is not None:
            self.reactor.unwatch(self.pump_socket.fileno())
            self.pump_socket.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.pump_pid = os.fork()
        if self.pump_pid == 0:
            ours.close()
            become_pump(self, theirs.detach())
        theirs.close()
        self.pump_socket = ours
        self.tree.others = {self.pump_pid}
        self.reactor.watch(self.pump_socket.fileno(), READ, lambda _: self._hear_pump())

    def _hear_pump(self) -> None:
        assert self.pump_socket is not None
        try:
            words = self.pump_socket.recv(4096)
        except OSError:
            words = b""
        if not words:
            self.reactor.unwatch(self.pump_socket.fileno())  # it died: SIGCHLD brings its successor
        for line in words.decode(errors="replace").splitlines():
            lost, _, why = line.partition(" ")
            self.notes = [n for n in self.notes if not n.startswith("lost ")]
            self.note("lost %s bytes of log: %s" % (lost, why))

    def finish_pump(self) -> None:
        """Let it drain what is there. It holds the claims too: they fall with it, so it must be gone."""
        assert self.pump_socket is not None
        self.pump_socket.setblocking(True)
        self.pump_socket.settimeout(5.0)
        try:
            self.pump_socket.sendall(b"F")
            while self.pump_socket.recv(4096):
                pass
        except OSError:
            os.kill(self.pump_pid, signal.SIGKILL)
        self.pump_socket.close()
        try:
            os.waitpid(self.pump_pid, 0)
        except ChildProcessError:
            pass

    def note(self, text: str) -> None:
        self.notes.append(text)
        with open(self.run.file("notes"), "a") as file:
            file.write("%d %s\n" % (wall_ms(), text))
        self._publish()


def become_pump(keeper: Keeper, fd: int) -> None:
    """The rest of a freshly forked pump's life; never returns. If its keeper dies it becomes the heir of the run."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    kept = {fd, keeper.lock, keeper.held.listener.fileno(), *(sock.fileno() for sock in keeper.held.claims)}
    spawn.detach(kept)  # above all the line to the link, which must end with the keeper
    title(keeper.run, "pump")
    if pump.run(pump.Log(keeper.run.file("log")), keeper.run.file("out"), fd) == "heir":
        os.close(fd)
        inherit(keeper.run, keeper.spec, keeper.held, keeper.lock)
    os._exit(0)


def inherit(run: Run, spec: Dict[str, Any], held: spawn.Held, lock: int) -> None:
    """Be the heir of a run whose keeper died: claims and listener are ours already, its tree may be alive."""
    record = run.record("run.json")
    if record is None or not record.get("pid"):
        # The keeper died before `recorded`; the child, if there ever was one, read end-of-file and ended.
        close_unborn(run, held, "its keeper died while starting it")
        return
    title(run, "heir")
    heir = Keeper(run, spec, held, lock, record, heir=True)
    heir.note("its keeper died; the pump took over, the exit code will be unknown")
    become_subreaper()
    heir.live()
