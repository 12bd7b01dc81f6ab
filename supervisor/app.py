"""The composition root: reads nothing, decides nothing, builds everything and owns the outermost task group.

One controller, three uses: `serve` (the real one, with a socket), `end` (a passing one, for `down` without a controller) and
`observe` (only looks, for `status` without one). All run the same loop over the same facts.
"""

from __future__ import annotations

import enum
import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace

import anyio
import anyio.lowlevel
from anyio.abc import ObjectReceiveStream, TaskStatus

from supervisor.control import wire
from supervisor.control.server import serve
from supervisor.core.actions import Action, Unwatch, Watch
from supervisor.core.facts import Beat, Fact, HostFound, HostLost, Placed, Planned, Told
from supervisor.core.hand import meant
from supervisor.core.known import NOT_YET_ASKED, Fleet
from supervisor.core.left import left_over
from supervisor.core.process import LIVE, State
from supervisor.core.snapshot import ControllerStatus, Status
from supervisor.core.status import status
from supervisor.effects.statedir import Files, StateDir
from supervisor.errors import HostUnreachable, NorayError, UsageError
from supervisor.log import log
from supervisor.orders import Orders
from supervisor.placing import Placing
from supervisor.plan.build import Plan
from supervisor.plan.diff import diff
from supervisor.plan.launch import HostFacts
from supervisor.plan.login import target
from supervisor.recording import Recorder
from supervisor.replacing import keep_replacing
from supervisor.runtime.dial import connect
from supervisor.runtime.greeting import Greeting, version
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.loop import supervise
from supervisor.runtime.perform import Performer
from supervisor.spec import Host, load_env_file

OBSERVE_S = 3.0  # how long an onlooker waits for everything to show what it is
ANSWERED_S = 0.2  # for the last lines to clients, which are still on their way
FOLLOW_PART = 40.0  # 1/40 of our time goes into snapshots for one reader; sending them costs as much again (measured)
SUPERSEDED_S = 1.0  # for whoever started this controller to come and read why it ends


class Use(enum.Enum):
    SERVE = "serve"
    END = "end"
    OBSERVE = "observe"


class Controller:
    """One life of a controller. Call `run` once; `changes` and `snapshot` from tasks beside it."""

    def __init__(self, files: Files, state: StateDir, use: Use, *, only: Sequence[str] = (), take_over: bool = False) -> None:
        """`only`: of these processes and services; of all others it hears nothing and knows nothing. With END only.
        `take_over`: lead even where another controller of this deployment, alive, does.

        Raises UsageError for a name that the files do not know.
        """
        self.state, self.use, self.superseded = state, use, ""
        self._links: dict[str, HostLink] = {}
        self.placing = Placing(self, state, self._links)
        self.files, self._plan = files, self.placing.known(files)
        if only:
            self._plan = self._plan.part(meant(only, self._plan.wanted))
        self._only = bool(only)
        self._since_s = time.time()
        self.fleet = Fleet(
            observing=use is Use.OBSERVE,
            stopping=use is Use.END,  # from the first fact on: it must start nothing
            held=state.load_held(),
            cordons=state.load_cordons(),
            epoch_ms=int(time.time() * 1000),
            epoch_s=0.0,
        )
        self._changed = anyio.Event()
        self._scopes: list[anyio.CancelScope] = []
        self._secrets: dict[str, Mapping[str, str]] = {}
        self._me, self._take_over = Greeting(self._since_s), take_over
        self._ended = anyio.Event()
        self._told = self._taken = 0  # facts on their way through the inbox
        self.orders = Orders(self)
        self.recorder = Recorder(state, only)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Until the deployment was brought down through it, or it is cancelled (which touches nothing that runs).

        Ends as well when another controller runs the deployment; `superseded` then says which.
        """
        self.fleet = replace(self.fleet, epoch_s=anyio.current_time(), epoch_ms=int(time.time() * 1000))
        self._send, inbox = anyio.create_memory_object_stream[Fact](math.inf)
        try:
            await self._run(inbox, task_status)
        finally:
            self.recorder.note("controller", "ended")
            self.recorder.close()

    async def _run(self, inbox: ObjectReceiveStream[Fact], task_status: TaskStatus[None]) -> None:
        async with self._send, inbox, anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._performer = Performer(tasks, self._links, self.tell, lambda: self.fleet, self._me.name, self._secrets)
            if self.use is Use.SERVE:
                await tasks.start(self._serve)
                self.state.save(self.files)  # not before nobody else is at it
                tasks.start_soon(self._heartbeat)
                tasks.start_soon(self.placing.run)
                tasks.start_soon(keep_replacing, self)
            if self.use is not Use.OBSERVE:
                self._remember()
                tasks.start_soon(self.recorder.run)
            tasks.start_soon(self._loop, inbox)
            await self._adopt_plan(self._plan)
            task_status.started()
            await self._ended.wait()
            tasks.cancel_scope.cancel()

    # --- the loop and what is around it -------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Take up what the last controller knew. Only one that serves goes on with it: whoever only ends things does without,
        also where nothing can be written."""
        try:
            known = self.recorder.begin(self.fleet.epoch_ms, self.fleet.epoch_s)
            self._me = replace(self._me, epoch=self.state.next_epoch())
        except NorayError as error:
            if self.use is Use.SERVE:
                raise
            log.error("not recorded", why=str(error))
            return
        if self.use is Use.SERVE:
            self.fleet = replace(self.fleet, remembered=known)
        self.recorder.note("controller", f"noray {version()} began as {self._me.name}, to {self.use.value}")

    async def _loop(self, inbox: ObjectReceiveStream[Fact]) -> None:
        await supervise(inbox, self.fleet, self._perform, self._published, anyio.current_time)

    async def _serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        await serve(self.state.socket, self._handle, version=version(), task_status=task_status)

    async def tell(self, fact: Fact) -> None:
        if isinstance(fact, HostFound) and self.placing.learn(self._plan, fact):
            await self.adopt_places(self._narrowed(self.placing.known(self.files)))
        link = self._links.get(fact.host) if isinstance(fact, Told | HostFound) else None
        self.recorder.heard(fact, link.facts.clock_ahead_ms if link and link.facts else 0)
        self._told += 1
        self._send.send_nowait(self.heard(fact))
        if self.use is Use.SERVE and isinstance(fact, HostLost) and fact.held_by and not self.superseded:
            self.superseded = fact.why
            for scope in self._scopes:
                scope.cancel()
            self._tasks.start_soon(self._end_soon, SUPERSEDED_S)
        await anyio.lowlevel.checkpoint()

    def heard(self, fact: Fact) -> Fact:
        """With `only`: what is left of it. The runs of others are not surplus."""
        if self._only and isinstance(fact, HostFound):
            return replace(fact, runs=tuple(run for run in fact.runs if run.process in self._plan.processes))
        return fact

    async def taken_in(self) -> None:
        """Until the fleet has moved by every fact that was told so far."""
        told = self._told
        while self._taken < told:
            await self.change()

    async def beat(self) -> None:
        """Until the loop has taken in a fact that is told now."""
        await self.tell(Beat())
        await self.taken_in()

    @property
    def adopted(self) -> bool:
        """Every host has answered, or has been found not to: what runs is known as far as it can be."""
        known = self.fleet.hosts
        return all(name in known and not known[name].unasked for name in self._plan.hosts)

    def _perform(self, action: Action) -> None:
        if self.use is not Use.OBSERVE or isinstance(action, Watch | Unwatch):
            self._performer(action)

    def _published(self, before: Fleet, after: Fleet) -> None:
        self.fleet = after
        self._taken += 1
        if self.use is Use.SERVE and (after.held != before.held or after.cordons != before.cordons):
            self.orders.remember(after.held, after.cordons)
        moved = {name: p for name, p in after.processes.items() if before.processes.get(name) is not p}
        if self.use is Use.SERVE and self.placing.turned_away(self._plan, moved.values()):
            self._tasks.start_soon(self.adopt_places, self.placing.known(self.files))
        for name, process in moved.items():
            was = before.processes.get(name)
            if was is None or was.state is not process.state:
                old = str(was.state) if was else "new"
                log.info("transition", process=name, run=process.run, was=old, now=str(process.state), why=process.reason)
                if was is not None:
                    text = f"{process.state}, was {old}{process.reason and ': ' + process.reason}"
                    self.recorder.note("state", text, host=process.wanted.host, process=name, run=process.run)
        self.recorder.moved(before.processes, after.processes, moved)
        for name, host in after.hosts.items():
            if name not in before.hosts or before.hosts[name].up != host.up:
                log.info("host", host=name, up=host.up, why=host.why)
                there = [p.wanted.name for p in after.processes.values() if p.wanted.host == name and p.state in LIVE]
                text = f"found, with {', '.join(there) or 'nothing that runs'}" if host.up else f"lost: {host.why}"
                self.recorder.note("host", text, host=name)
        self._changed.set()
        self._changed = anyio.Event()

    async def _adopt_plan(self, plan: Plan) -> None:
        self._use(plan)
        await self.tell(Planned(plan.wanted))

    def _use(self, plan: Plan) -> None:
        self._plan = self._performer.plan = plan
        for name, host in plan.hosts.items():
            self._secrets[name] = load_env_file(host.env_file) if host.env_file else {}
            if name not in self._links:
                self._links[name] = self._link(host)
                self._tasks.start_soon(self._keep, self._links[name])
            self._links[name].use(target(plan.etcd_urls, self._secrets[name], name) if plan.external else None)

    def _link(self, host: Host) -> HostLink:
        onlooker = self.use is Use.OBSERVE
        hello = self._me.hello(self._plan.deployment, read_only=onlooker, take_over=self._take_over)

        def leads_elsewhere() -> bool:
            return any(other.up for other in self.fleet.hosts.values() if other.name != host.name)

        return HostLink(host.name, lambda: connect(host), hello, self.tell, not onlooker, leads_elsewhere)

    def _narrowed(self, plan: Plan) -> Plan:
        return plan.part(list(self._plan.wanted)) if self._only else plan

    async def _keep(self, link: HostLink) -> None:
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            await link.run()

    async def _heartbeat(self) -> None:
        while True:
            self.state.touch()
            await anyio.sleep(1.0)

    # --- what may be asked of it --------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        return self._plan

    async def adopt_places(self, plan: Plan) -> None:
        self._use(plan)
        await self.tell(Placed(plan.wanted))

    def snapshot(self) -> Status:
        me: ControllerStatus = {"pid": os.getpid(), "version": version(), "since": self._since_s}
        return status(
            self.fleet,
            deployment=self._plan.deployment,
            endpoints=self._plan.endpoints,
            controller=me if self.use is Use.SERVE else None,
            now_s=anyio.current_time(),
            gone_since=self.state.last_alive,
        )

    def host_facts(self) -> dict[str, HostFacts]:
        """What the hosts that answered said of themselves."""
        return {name: link.facts for name, link in self._links.items() if link.facts is not None}

    async def change(self) -> None:
        await self._changed.wait()

    async def changes(self) -> AsyncGenerator[Status, None]:
        """The snapshot now, and again after what changes; a slow reader gets the newest. Of hundreds of processes it takes
        10 ms: then not after each change, or following a start would take longer than starting.
        """
        while True:
            changed, began_s = self._changed, time.process_time()
            seen = self.snapshot()
            again_s = anyio.current_time() + FOLLOW_PART * (time.process_time() - began_s)
            yield seen
            await changed.wait()
            await anyio.sleep_until(again_s)

    async def observe(self) -> Status:
        """Look until everything that lives has shown what it is, at most OBSERVE_S."""
        with anyio.move_on_after(OBSERVE_S):
            async for _ in self.changes():
                asked = [h for h in self.fleet.hosts.values() if h.up or h.why != NOT_YET_ASKED]
                placed = [p for p in self.fleet.processes.values() if p.wanted.host]
                moving = [p for p in placed if p.state in (State.PENDING, State.STARTING)]
                blind = [h for h in asked if h.up and h.gpus_s is None]
                if self.fleet.hosts and len(asked) == len(self.fleet.hosts) and not moving and not blind:
                    break
        return self.snapshot()

    async def purge(self) -> list[str]:
        """Remove what the deployment left on its hosts and here; returns where that failed, and why."""
        failed = []
        for name, link in self._links.items():
            try:
                reply = await link.request({"op": "purge"})
                if reply["living"]:
                    failed.append(f"{name}: {', '.join(reply['living'])} still there")
            except HostUnreachable as error:
                failed.append(str(error))
        if not failed:
            self.recorder.close()
            self.state.remove()
        return failed

    def end(self) -> None:
        """Let `run` return. Touches nothing that runs."""
        self._ended.set()

    async def _handle(self, request: wire.Request) -> AsyncIterator[Mapping[str, object]]:
        match request.verb:
            case "status":
                yield _plain(self.snapshot())
            case "follow":
                async for seen in self.changes():
                    yield _plain(seen)
            case "apply":
                async for item in self._apply(request.args):
                    yield item
            case "down":
                try:
                    async for seen in self.orders.stop(bool(request.args.get("skip_drain"))):
                        yield _plain(seen)
                except BaseException:  # who asked is gone, the order stands
                    self._tasks.start_soon(self._end_when_stopped)
                    raise
                left = left_over(self.fleet)
                failed = await self.purge() if request.args.get("purge") and not left else []
                yield {"ended": {"left": left, "failed": failed}}
                self._tasks.start_soon(self._end_soon, ANSWERED_S)
            case "stop" | "start" | "restart" as verb:
                async for item in self.orders.by_hand(verb, request.args):
                    yield item
            case "cordon" | "uncordon" as verb:
                async for item in self.orders.cordon(verb == "cordon", request.args):
                    yield item
            case verb:
                raise UsageError(f"this controller does not know the verb {verb}")

    async def _end_when_stopped(self) -> None:
        """A controller that stopped everything and starts nothing more is in the way of the next `up`."""
        while not self.fleet.stopped:
            await self.change()
        await self._end_soon(ANSWERED_S)

    async def _end_soon(self, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        self.end()

    async def _apply(self, args: Mapping[str, object]) -> AsyncIterator[Mapping[str, object]]:
        files = Files.of_args(args)
        named = files.plan().deployment
        if named != self._plan.deployment:
            raise UsageError(f"this controller runs {self._plan.deployment}, not {named}")
        if self.fleet.stopping:
            raise UsageError(f"{named} is being brought down", "wait for that, then: noray up")
        plan, found = await self.placing.chosen(files)
        changes = diff(self._plan.wanted, plan.wanted)
        yield {"changes": [{"process": c.process, "what": c.what, "why": c.why} for c in changes]}
        if not args.get("dry_run"):
            self.placing.keep(plan, found)  # first: if that fails, all is as it was
            self.state.save(files)
            self.files = files
            await self._adopt_plan(plan)


def _plain(seen: Status) -> Mapping[str, object]:
    return dict(seen)
