"""From action to effect. Performing starts work and returns; whatever comes of it comes back as a fact."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

import anyio
from anyio.abc import TaskGroup

from supervisor.core.actions import Action, Fence, Route, Spawn, Stop, TellFence, Unwatch, WakeAt, WakeHostAt, Watch, Witness
from supervisor.core.cordon import Aside, aside
from supervisor.core.facts import Due, Fact, HostDue
from supervisor.core.known import Fleet
from supervisor.core.process import State
from supervisor.plan.build import Plan, PlannedProcess, reachable
from supervisor.plan.launch import launch
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.registration import watch_registration
from supervisor.runtime.routing import Routing
from supervisor.runtime.views import Address, Fronts, counting
from supervisor.runtime.watch import Subject, watch
from supervisor.spec.roles import ROLES

Ports = Mapping[str, int]


class Performer:
    """Owns what is under way: timers and watches, each replaced by the next of its process."""

    def __init__(
        self,
        tasks: TaskGroup,
        links: Mapping[str, HostLink],
        tell: Callable[[Fact], Awaitable[None]],
        fleet: Callable[[], Fleet],
        controller: str,
        secrets: Mapping[str, Mapping[str, str]],
    ) -> None:
        """`fleet`: as it is now. `secrets`: by host."""
        self.plan: Plan | None = None
        self._tasks, self._links, self._tell, self._fleet = tasks, links, tell, fleet
        self._controller, self._secrets = controller, secrets
        self._timers: dict[str, anyio.CancelScope] = {}
        self._watches: dict[str, anyio.CancelScope] = {}
        self._doors_of: Plan | None = None
        self._doors: dict[str, PlannedProcess] = {}  # its frontends: hundreds of workers ask for them
        self._fronts = Fronts(self._frontends)
        self._routing = Routing(tasks, links, tell, self._planned, lambda: (link for link, _, _ in self._frontends()))
        tasks.start_soon(self._fronts.run)
        tasks.start_soon(watch_registration, fleet, self._routing.registered, tell)

    def __call__(self, action: Action) -> None:
        match action:
            case Spawn(process, host, run):
                self._spawn(process, host, run)
            case Stop(host, run, term_s, drain_s):
                self._post(host, {"op": "stop", "run": run, "term_s": term_s, "drain_s": drain_s})
            case Fence(host, run):
                self._post(host, {"op": "fence", "run": run, "now": True})
            case TellFence(host, run, lease):
                self._post(host, {"op": "fence", "run": run, "lease": lease})
            case Watch(process, run):
                self._replace(self._watches, process, lambda: self._watch(process, run))
            case Unwatch(process):
                self._replace(self._watches, process, None)
            case WakeAt(process, run, at_s):
                self._replace(self._timers, process, lambda: self._wake(Due(process, run), at_s))
            case WakeHostAt(host, at_s):
                self._replace(self._timers, host, lambda: self._wake(HostDue(host), at_s))  # no process has a host's name
            case Witness(host):
                self._routing.witness(host)
            case Route():
                self._routing.route(action)

    def _planned(self) -> Plan:
        assert self.plan is not None  # before it there is nothing to act on
        return self.plan

    def _post(self, host: str, message: Mapping[str, object]) -> None:
        if host in self._links:
            self._links[host].post(message)

    def _spawn(self, process: str, host: str, run: str) -> None:
        link = self._links[host]
        if self.plan is None or link.facts is None:
            return  # the host was lost since: its next hello says it has no such run, and decides again
        start = launch(self.plan, process, link.facts, self._secrets.get(host, {}), self._controller)
        link.post({"op": "start", "spec": {**start.spec, "run": run}, "env": dict(start.env)})

    def _replace(self, table: dict[str, anyio.CancelScope], process: str, work: Callable[[], Awaitable[None]] | None) -> None:
        old = table.pop(process, None)
        if old is not None:
            old.cancel()
        if work is not None:
            table[process] = scope = anyio.CancelScope()
            self._tasks.start_soon(self._within, scope, work)

    async def _within(self, scope: anyio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
        with scope:
            await work()

    async def _wake(self, fact: Fact, at_s: float) -> None:
        await anyio.sleep_until(at_s)
        await self._tell(fact)

    async def _watch(self, process: str, run: str) -> None:
        if self.plan is None or process not in self.plan.processes:
            return
        planned, known = self.plan.processes[process], self._fleet().processes.get(process)
        host = planned.wanted.host
        bind = planned.options.get("bind")
        subject = Subject(
            process=process,
            run=run,
            kind=planned.wanted.kind,
            link=self._links[host],
            address=reachable(str(bind)) if bind else self.plan.addresses[host],
            ports=self._live_ports(process),
            served_as=planned.served_as,
            role=planned.role,
            task=planned.task,
            stall_s=planned.wanted.stall_s,
            fronts=self._fronts,
            was_ready=known is not None and known.was_ready,
            served=self._served,
            aside=lambda: self._aside(process),
        )
        await watch(subject, self._tell)

    def _live_ports(self, name: str) -> Ports:
        """Of its run, as last told; empty if it has none."""
        process = self._fleet().processes.get(name)
        return process.seen.ports if process and process.seen else {}

    def _aside(self, name: str) -> Aside:
        fleet = self._fleet()
        process = fleet.processes.get(name)
        return aside(fleet, process) if process else Aside.NO

    def _served(self) -> frozenset[str]:
        """What clients may ask for now: the models of which a worker is ready, or one of each role."""
        planned = self.plan.processes if self.plan else {}
        roles: dict[str, set[str]] = {}
        for name, process in self._fleet().processes.items():
            if process.state is State.READY and name in planned:
                roles.setdefault(planned[name].served_as, set()).add(planned[name].role)
        return frozenset(name for name, there in roles.items() if "" in there or len(there) == len(ROLES)) - {""}

    def _frontends(self) -> Iterator[Address]:
        """Those whose word counts, each through its own host's link."""
        if self.plan is not self._doors_of:
            self._doors_of = self.plan
            everybody = self.plan.processes.items() if self.plan else ()
            self._doors = {name: each for name, each in everybody if each.wanted.kind == "frontend"}
        for name in counting(self._doors, self._fleet().processes):
            planned, port = self._doors[name], self._live_ports(name)["http"]
            yield self._links[planned.wanted.host], reachable(str(planned.options["bind"])), port
