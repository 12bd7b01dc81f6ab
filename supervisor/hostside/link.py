"""The link: one controller's conversation with this host. It owns nothing: when it dies, nothing else does.

In:  hello, ping, start, stop, fence, http, dial, watch, unwatch, tail, gpus, purge, and of an etcd that is not ours: discovery
     (where it is), etcd (a request to it); JSON lines, the first must be hello
Out: hello with every run on record, {"gpus": …} once they were looked at, then {"state": …} on each change of a run,
     {"reply": id, …}, {"news": id, …} of what is watched, {"pong": n}, {"logout": …} when what a logout does has changed,
     {"etcd": why} when an etcd that is not ours can be used, with "", or why not,
     {"leaving": why} when the host begins to shut down (before what ends by it is told) or, with "", does not after all

It ends itself 10 s after the last line it heard: sshd notices a vanished peer only when asked to, and every partition would
leave a link behind. A host obeys one controller of a deployment only (`lead.py`); a read-only link may not change anything.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from typing import Any, Callable, Dict, List, Optional

from . import VERSION, birth, burial, facts, gpus, http, lead, leaving, logout, pump, rundir
from .dial import dial, stalled
from .discovery import Discovery
from .lead import Holder
from .loading import GpuLooks, Loading
from .reactor import Lines, Reactor
from .rundir import Run
from .runstate import finished_state, run_state, wall_ms
from .watches import Watches

SILENCE_S = 10.0
HELLO_WAIT_S = 1.0  # for keepers to say how their runs are
AGAIN_S = 0.05  # between two looks at a run whose keeper went away
LAST_WORDS_S = 0.5  # for keepers to say that they were sent SIGTERM as well


def main(base: str) -> int:
    reactor = Reactor()
    Link(base, reactor)
    reactor.run()
    return 0


class Link:
    def __init__(self, base: str, reactor: Reactor) -> None:
        self.base, self.reactor = base, reactor
        self.deployment = ""
        self.read_only = True  # until it leads
        self.led_by: Optional[Holder] = None  # by whom else, when we only look on
        self.states: Dict[str, Dict[str, Any]] = {}  # run -> last state told
        self.keepers: Dict[str, Lines] = {}
        self.waiting: Optional[Dict[str, Run]] = None  # whose keeper's first word hello waits for
        self.orders: Dict[str, Dict[str, Dict[str, Any]]] = {}  # run -> op -> the last one, for whoever is its keeper
        self.logout: Dict[str, Any] = {}  # the verdict last told
        self.greeted = False
        self.discovery = Discovery(reactor, self._etcd_is)
        self.leaving = ""  # how it shows that the host is shutting down
        self.terminated = False  # we were sent SIGTERM
        self.ended_s = float("-inf")  # when a keeper last told that it was
        self.heard = time.monotonic()
        self.lines = 0  # heard so far
        self.lead = lead.Lead(base, reactor, lambda: self.lines, lambda: self.line.send({"ask": "ping"}), self._outranked)
        gpus.prepare()  # before the first fork: keepers and heirs inherit it
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        reactor.on_signals({signal.SIGCHLD: self._reap, signal.SIGTERM: self._terminated, signal.SIGHUP: reactor.stop})
        self.line = Lines(reactor, 0, 1, self._received, reactor.stop)
        self.watches = Watches(reactor.after, self.line.send)
        self.gpu_looks = GpuLooks(reactor)
        reactor.every(1.0, self._watch_silence)
        reactor.every(1.0, self._watch_leaving)

    # --- the conversation -----------------------------------------------------------------------------------------------

    def _received(self, message: Dict[str, Any]) -> None:
        self.heard = time.monotonic()
        self.lines += 1
        op = message.get("op")
        if op == "hello":
            self._hello(message)
        elif op == "ping":
            self.line.send({"pong": message.get("n")})
        elif op == "discovery":
            self.discovery.use(message["etcd"])
        elif op == "etcd":
            self.discovery.ask(message, lambda said: self._reply(message, **said))
        elif op == "http":
            http.ask(self.reactor, message, lambda said: self._reply(message, **said))
        elif op == "dial":
            self._dial(message)
        elif op == "watch":
            self._begin_watch(message)
        elif op == "unwatch":
            self.watches.end(message)
        elif op == "gpus":
            gpus.ask(self.reactor, gpus.DEADLINE_S, lambda look: self._reply(message, gpus=gpus.told(look)), True)
        elif op == "tail":
            run = self._run(message)
            log = pump.Log(run.file("log") if run else "")
            text = log.tail(int(message.get("bytes", 4096)))
            self._reply(message, data=text.decode("latin-1"), end=log.end())
        elif self._may_change(message):
            {"start": self._start, "stop": self._tell_keeper, "fence": self._tell_keeper, "purge": self._purge}[str(op)](
                message
            )

    def _watch_silence(self) -> None:
        if time.monotonic() - self.heard > SILENCE_S:
            self.reactor.stop()

    def _hello(self, message: Dict[str, Any]) -> None:
        self.deployment = message["deployment"]
        if message.get("v") != VERSION:
            return self._refuse("this host's link speaks version %d, the controller %s" % (VERSION, message.get("v")))
        self.discovery.use(message.get("etcd"))
        if message.get("read_only"):
            return self.lead.find(self.deployment, self._looks_on)
        return self.lead.seek(message, SILENCE_S, self._leads, self._outranked)

    def _looks_on(self, leader: Optional[Holder]) -> None:
        self.led_by = leader
        self._welcome()

    def _leads(self) -> None:
        self.read_only = False
        self._welcome()

    def _outranked(self, holder: Holder) -> None:
        self.line.send({"refused": lead.sentence(holder), "holder": holder})
        self.reactor.stop()

    def _welcome(self) -> None:
        latest: Dict[str, Run] = {}
        unfinished: List[Run] = []
        for run in rundir.runs(self.base, self.deployment):
            latest[run.process] = run
            if not run.finished:
                unfinished.append(run)
        for run in latest.values():
            if run not in unfinished:
                self.states[run.run] = finished_state(run)
        # All of them at once: what is closed on the spot must not be taken for the last one that was waited for.
        self.waiting = {run.run: run for run in unfinished}
        for run in unfinished:
            self._attach(run)
        self.reactor.after(HELLO_WAIT_S, self._answer_hello)
        self._heard_all()

    def _refuse(self, why: str) -> None:
        self.line.send({"refused": why})
        self.reactor.stop()

    def _heard_all(self) -> None:
        if self.waiting is not None and not self.waiting:
            self._answer_hello()

    def _answer_hello(self) -> None:
        if self.waiting is None:
            return
        for run in self.waiting.values():
            # A keeper too slow to answer owns its run all the same: left out, it would be started a second time.
            spec, record = run.record("spec.json") or {}, run.record("run.json") or {}
            note = "its keeper has not answered yet"
            self.states[run.run] = run_state(run, spec, record, run.record("exit.json"), "running", notes=[note])
        self.waiting = None
        found = facts.host_facts(self.base)
        self.logout = found["logout"]
        self.leaving = self.leaving or leaving.sign(self.terminated) or ""
        said = dict(found, runs=list(self.states.values()), led_by=self.led_by, leaving=self.leaving, etcd=self.discovery.why)
        self.line.send({"hello": said})
        self.greeted = True
        gpus.watch(self.reactor, lambda look: self.line.send({"gpus": gpus.told(look)}))

    def _tell(self, state: Dict[str, Any]) -> None:
        run = state["run"]
        if state["phase"] == "gone" and self._overlooked(state["process"]):
            self.reactor.stop()  # the next hello tells of both
            return
        if state.get("terminated") and not self.states.get(run, {}).get("terminated"):
            self.ended_s = time.monotonic()
            self._judge_leaving()
        self.states[run] = state
        if state["phase"] == "gone":
            self.orders.pop(run, None)
        if self.waiting is not None:
            self.waiting.pop(run, None)
            self._heard_all()
        else:
            self.line.send({"state": state})

    def _overlooked(self, process: str) -> bool:
        """A run that lives and was on no record when we greeted: a link killed just then had forked its keeper. Whatever is
        started beside it is refused, as it holds the claims.
        """
        if self.waiting is not None or self.read_only:
            return False
        known = {*self.states, *self.keepers}
        on_record = (run for run in rundir.runs(self.base, self.deployment) if run.process == process)
        return any(run.run not in known and not run.finished for run in on_record)

    def _may_change(self, message: Dict[str, Any]) -> bool:
        if self.read_only:
            self._refuse("this link is read-only")
            return False
        successor = self.lead.successor()
        if successor is not None:
            self._outranked(successor)
        return successor is None

    # --- runs and their keepers -----------------------------------------------------------------------------------------

    def _start(self, message: Dict[str, Any]) -> None:
        spec = message["spec"]
        run = Run(self.base, self.deployment, spec["process"], spec["run"])
        if run.run in self.keepers or os.path.isdir(run.path):
            # A repeated start is one start. What two links ask at once meets at the mkdir of the run directory.
            return self._tell(self.states[run.run]) if run.run in self.states else self._attach(run)
        if self.leaving:
            return self._tell(_never(run, "shutdown", "its host is shutting down: %s" % self.leaving))
        for forgotten in rundir.prune(self.base, self.deployment, spec["process"]):
            self.states.pop(forgotten, None)
        self._judge_logout()
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                ours.close()
                birth.keep(self.base, self.deployment, spec, message["env"], theirs.detach())
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        return self._listen(run, ours.detach())

    def _etcd_is(self, why: Optional[str]) -> None:
        if self.greeted:
            self.line.send({"etcd": why})

    def _judge_logout(self) -> None:
        """Said again when it has changed; asked again only while something is wrong, as it costs a millisecond or two."""
        if self.logout.get("remedy"):
            found = logout.verdict()
            if found != self.logout:
                self.logout = found
                self.line.send({"logout": found})

    def _attach(self, run: Run) -> None:
        """Talk to whoever owns this run; if nobody does, start its heir, or close its records if it cannot be alive."""
        if run.finished:
            return self._tell(finished_state(run))
        if self.waiting is not None:
            self.waiting[run.run] = run
        record = run.record("run.json")
        lock = run.lock_if_abandoned()
        if lock is not None:
            if run.finished:  # its keeper ended between our two looks
                os.close(lock)
                return self._tell(finished_state(run))
            record = run.record("run.json")
            if not burial.outlived(run, record):
                self._fork_heir(birth.adopt_abandoned, run, record, lock)
            elif burial.fence_owed(run, record):
                self._fork_heir(burial.bury, run, record, lock)
            else:
                burial.close(run)
            os.close(lock)
            if run.finished:
                return self._tell(finished_state(run))
        elif record is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(run.socket)
                return self._listen(run, sock.detach())
            except OSError:
                sock.close()  # it is just going, or its heir is just coming
        self.reactor.after(AGAIN_S, lambda: self._attach(run))
        return None

    def _listen(self, run: Run, fd: int) -> None:
        line = self.keepers[run.run] = Lines(self.reactor, fd, fd, self._tell, lambda: self._left(run))
        # A keeper may have died with an order unread. Asked twice does no harm: it only brings deadlines closer.
        for message in self.orders.get(run.run, {}).values():
            line.send(message)

    def _left(self, run: Run) -> None:
        self.keepers.pop(run.run, None)
        if self.states.get(run.run, {}).get("phase") != "gone" and os.path.isdir(run.path):
            self.reactor.after(AGAIN_S, lambda: self._attach(run))
        elif not os.path.isdir(run.path):
            self._tell(_never(run, "start", "its keeper died before it began"))

    def _fork_heir(self, live: Callable[..., None], run: Run, record: object, lock: int) -> None:
        pid = os.fork()
        if pid:
            return
        code = 70
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            live(run, record, lock, self.discovery.auth)
            code = 0
        finally:
            os._exit(code)

    def _tell_keeper(self, message: Dict[str, Any]) -> None:
        run = message["run"]
        if self.states.get(run, {}).get("phase") == "gone":
            return
        if message["op"] == "fence" and self.discovery.auth:
            message = dict(message, auth=self.discovery.auth)  # it may be another than when the run began
        self.orders.setdefault(run, {})[message["op"]] = message
        line = self.keepers.get(run)
        if line is not None:
            line.send(message)

    def _reap(self) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    # --- the host ends --------------------------------------------------------------------------------------------------

    def _terminated(self) -> None:
        """If this is the end of the whole host, say so first: who hears only that its runs end starts them here again."""
        self.terminated = True
        self._judge_leaving()
        self.reactor.after(LAST_WORDS_S if self.keepers and not self.leaving else 0.0, self.reactor.stop)

    def _judge_leaving(self) -> None:
        if self.leaving:
            return
        together = self.terminated and time.monotonic() - self.ended_s < leaving.TOGETHER_S
        self._leaves(leaving.sign(self.terminated) or (leaving.TO_ALL if together else ""))

    def _leaves(self, why: str) -> None:
        if why != self.leaving and self.waiting is None:
            self.line.send({"leaving": why})
        self.leaving = why

    def _watch_leaving(self) -> None:
        """A shutdown can be called off."""
        if self.leaving and not self.terminated and leaving.sign(False) == "":
            self._leaves("")

    # --- small services -------------------------------------------------------------------------------------------------

    def _run(self, message: Dict[str, Any]) -> Optional[Run]:
        state = self.states.get(message["run"])
        return None if state is None else Run(self.base, self.deployment, state["process"], state["run"])

    def _begin_watch(self, message: Dict[str, Any]) -> None:
        if "run" not in message:
            return self.watches.begin(message, lambda done: http.ask(self.reactor, message, done))
        loads: List[Loading] = []  # from when the run is known

        def look(done: Callable[[Dict[str, Any]], None]) -> None:
            run = None if loads else self._run(message)
            if run is not None:
                loads.append(Loading(run, self.gpu_looks))
            if loads:
                loads[0].look(done)
            else:
                done({"end": 0})

        return self.watches.begin(message, look)

    def _dial(self, message: Dict[str, Any]) -> None:
        doors = [(str(host), int(port)) for host, port in message["to"]]

        def done(took: List[bool]) -> None:
            self._reply(message, answered=took, stalled=stalled(doors))

        dial(self.reactor, doors, float(message["timeout_s"]), done)

    def _purge(self, message: Dict[str, Any]) -> None:
        """Forget a deployment on this host: logs, records, data. Refused while a run of it lives."""
        living = [run.process for run in rundir.runs(self.base, self.deployment) if not run.finished]
        if not living:
            for folder in ("runs", "data"):
                shutil.rmtree(os.path.join(self.base, folder, self.deployment), ignore_errors=True)
        self._reply(message, living=living)

    def _reply(self, message: Dict[str, Any], **said: Any) -> None:
        self.line.send({"reply": message["id"], **said})


def _never(run: Run, cause: str, message: str) -> Dict[str, Any]:
    """A run that did not begin, and of which there is no record."""
    ended = {"code": None, "signal": None, "at": wall_ms(), "asked": False, "cause": cause, "message": message}
    return run_state(run, {}, {}, ended, "gone")
