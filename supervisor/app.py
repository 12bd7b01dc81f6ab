"""The composition root: reads nothing, decides nothing, builds everything and owns the outermost task group.

One controller, three uses: `serve` (the real one, with a socket), `end` (a passing one, for `down` without a controller) and
`observe` (only looks, for `status` without one). All run the same loop over the same facts.
"""

from __future__ import annotations

import enum
import math
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import anyio
import structlog
from anyio.abc import ObjectReceiveStream, TaskStatus

from supervisor.control import wire
from supervisor.control.server import serve
from supervisor.core.actions import Action, Unwatch, Watch
from supervisor.core.facts import Fact, HostLost, Planned, StopAsked
from supervisor.core.fleet import NOT_YET_ASKED, Fleet
from supervisor.core.process import State
from supervisor.core.snapshot import ControllerStatus, Status
from supervisor.core.status import status
from supervisor.effects.statedir import Files, StateDir
from supervisor.errors import HostUnreachable, UsageError
from supervisor.plan.build import Plan
from supervisor.plan.diff import diff
from supervisor.plan.launch import HostFacts
from supervisor.runtime.greeting import Greeting
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.loop import supervise
from supervisor.runtime.perform import Performer
from supervisor.spec import Host, load_env_file
from supervisor.transport import HostAddress, Transport, transport_for

log = structlog.get_logger()

OBSERVE_S = 3.0  # how long an onlooker waits for everything to show what it is
UNREACHED_S = 30.0  # how long a stop waits for hosts that do not answer
ANSWERED_S = 0.2  # for the last lines to clients, which are still on their way
SUPERSEDED_S = 1.0  # for whoever started this controller to come and read why it ends


class Use(enum.Enum):
    SERVE = "serve"
    END = "end"
    OBSERVE = "observe"


def version() -> str:
    try:
        return metadata.version("noray")
    except metadata.PackageNotFoundError:
        return "0 (not installed)"


class Controller:
    """One life of a controller. Call `run` once; `changes` and `snapshot` from tasks beside it."""

    def __init__(self, files: Files, state: StateDir, use: Use, take_over: bool = False) -> None:
        """`take_over`: lead even where another controller of this deployment, alive, does."""
        self.state, self.use, self.superseded = state, use, ""
        self._files, self._plan = files, files.plan()
        self._since_s = time.time()
        self.fleet = Fleet(
            observing=use is Use.OBSERVE,
            stopping=use is Use.END,  # from the first fact on: it must start nothing
            epoch_ms=int(time.time() * 1000),
            epoch_s=0.0,
        )
        self._changed = anyio.Event()
        self._links: dict[str, HostLink] = {}
        self._scopes: list[anyio.CancelScope] = []
        self._secrets: dict[str, Mapping[str, str]] = {}
        self._me, self._take_over = Greeting(self._since_s), take_over
        self._ended = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Until the deployment was brought down through it, or it is cancelled (which touches nothing that runs).

        Ends as well when another controller runs the deployment; `superseded` then says which.
        """
        self.fleet = replace(self.fleet, epoch_s=anyio.current_time(), epoch_ms=int(time.time() * 1000))
        self._send, inbox = anyio.create_memory_object_stream[Fact](math.inf)
        if self.use is Use.SERVE:
            self.state.save(self._files)
        async with self._send, inbox, anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._performer = Performer(
                tasks, self._links, self._tell, lambda name: _ports(self.fleet, name), self._me.name, self._secrets
            )
            if self.use is Use.SERVE:
                await tasks.start(self._serve)
                tasks.start_soon(self._heartbeat)
            tasks.start_soon(self._loop, inbox)
            await self._adopt_plan(self._plan)
            task_status.started()
            await self._ended.wait()
            tasks.cancel_scope.cancel()

    # --- the loop and what is around it -------------------------------------------------------------------------------

    async def _loop(self, inbox: ObjectReceiveStream[Fact]) -> None:
        await supervise(inbox, self.fleet, self._perform, self._published, anyio.current_time)

    async def _serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        await serve(self.state.socket, self._handle, version=version(), task_status=task_status)

    async def _tell(self, fact: Fact) -> None:
        await self._send.send(fact)
        if self.use is Use.SERVE and isinstance(fact, HostLost) and fact.held_by and not self.superseded:
            self.superseded = fact.why
            for scope in self._scopes:
                scope.cancel()
            self._tasks.start_soon(self._end_soon, SUPERSEDED_S)

    def _perform(self, action: Action) -> None:
        if self.use is not Use.OBSERVE or isinstance(action, Watch | Unwatch):
            self._performer(action)

    def _published(self, before: Fleet, after: Fleet) -> None:
        self.fleet = after
        for name, process in after.processes.items():
            was = before.processes.get(name)
            if was is None or was.state is not process.state:
                old = str(was.state) if was else "new"
                log.info("transition", process=name, run=process.run, was=old, now=str(process.state), why=process.reason)
        for name, host in after.hosts.items():
            if name not in before.hosts or before.hosts[name].up != host.up:
                log.info("host", host=name, up=host.up, why=host.why)
        self._changed.set()
        self._changed = anyio.Event()

    async def _adopt_plan(self, plan: Plan) -> None:
        self._plan = self._performer.plan = plan
        for name, host in plan.hosts.items():
            self._secrets[name] = load_env_file(host.env_file) if host.env_file else {}
            if name not in self._links:
                self._links[name] = self._link(host)
                self._tasks.start_soon(self._keep, self._links[name])
        await self._tell(Planned(plan.wanted))

    def _link(self, host: Host) -> HostLink:
        onlooker = self.use is Use.OBSERVE
        hello = self._me.hello(self._plan.deployment, read_only=onlooker, take_over=self._take_over)

        def leads_elsewhere() -> bool:
            return any(other.up for other in self.fleet.hosts.values() if other.name != host.name)

        return HostLink(host.name, lambda: connect(host), hello, self._tell, not onlooker, leads_elsewhere)

    async def _keep(self, link: HostLink) -> None:
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            await link.run()

    async def _heartbeat(self) -> None:
        while True:
            self.state.touch()
            await anyio.sleep(1.0)

    # --- what may be asked of it --------------------------------------------------------------------------------------

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

    async def changes(self) -> AsyncIterator[Status]:
        """The snapshot now, and again after every change; a slow reader gets the newest."""
        while True:
            changed = self._changed
            yield self.snapshot()
            await changed.wait()

    async def observe(self) -> Status:
        """Look until everything that lives has shown what it is, at most OBSERVE_S."""
        with anyio.move_on_after(OBSERVE_S):
            async for _ in self.changes():
                asked = [h for h in self.fleet.hosts.values() if h.up or h.why != NOT_YET_ASKED]
                moving = [p for p in self.fleet.processes.values() if p.state in (State.PENDING, State.STARTING)]
                if self.fleet.hosts and len(asked) == len(self.fleet.hosts) and not moving:
                    break
        return self.snapshot()

    async def stop(self, skip_drain: bool = False) -> AsyncIterator[Status]:
        """Bring everything down, in order; ends when all is gone, or when waiting longer cannot help."""
        await self._tell(StopAsked(skip_drain))
        waited = False
        async for seen in self.changes():
            yield seen
            if self.fleet.stopped:
                return
            if self.fleet.stuck_stopping:
                if waited or all(host.up or host.refused for host in self.fleet.hosts.values()):
                    return
                waited = True
                with anyio.move_on_after(UNREACHED_S):
                    while self.fleet.stuck_stopping and not self.fleet.stopped:
                        await self._changed.wait()

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
                async for seen in self.stop(bool(request.args.get("skip_drain"))):
                    yield _plain(seen)
                left = self.left_over()
                failed = await self.purge() if request.args.get("purge") and not left else []
                yield {"ended": {"left": left, "failed": failed}}
                self._tasks.start_soon(self._end_soon, ANSWERED_S)
            case verb:
                raise UsageError(f"this controller does not know the verb {verb}")

    async def _end_soon(self, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        self.end()

    def left_over(self) -> list[str]:
        """What a stop could not end, as the operator should read it."""
        left = []
        for name, p in self.fleet.processes.items():
            host = self.fleet.hosts[p.wanted.host]
            if p.state is State.UNKNOWN and not host.up:
                left.append(f"not known: {name} ({host.name} does not answer: {host.why})")
            elif p.state not in (State.STOPPED, State.FAILED):
                pid = f" (pid {p.seen.pid} on {p.wanted.host})" if p.seen and p.seen.pid else f" ({p.wanted.host})"
                left.append(f"still running: {name}{pid}: {p.state}, {p.reason}")
        return left

    async def _apply(self, args: Mapping[str, object]) -> AsyncIterator[Mapping[str, object]]:
        files = _files_from(args)
        plan = files.plan()
        if plan.deployment != self._plan.deployment:
            raise UsageError(f"this controller runs {self._plan.deployment}, not {plan.deployment}")
        changes = diff(self._plan.wanted, plan.wanted)
        yield {"changes": [{"process": c.process, "what": c.what, "why": c.why} for c in changes]}
        if not args.get("dry_run"):
            self._files = files
            self.state.save(files)
            await self._adopt_plan(plan)


def connect(host: Host) -> Transport:
    return transport_for(
        HostAddress(
            name=host.name,
            transport=host.transport,
            address=host.address,
            port=host.port,
            user=host.user,
            python=host.python,
            known_hosts=host.known_hosts,
            key=host.key,
            host_dir=host.host_dir,
        )
    )


def _ports(fleet: Fleet, name: str) -> Mapping[str, int]:
    process = fleet.processes.get(name)
    return process.seen.ports if process and process.seen else {}


def _files_from(args: Mapping[str, object]) -> Files:
    inventory, inventory_path = args.get("inventory"), args.get("inventory_path")
    return Files(
        str(args["deployment"]),
        Path(str(args["deployment_path"])),
        str(inventory) if inventory is not None else None,
        Path(str(inventory_path)) if inventory_path is not None else None,
    )


def _plain(seen: Status) -> Mapping[str, object]:
    return dict(seen)
