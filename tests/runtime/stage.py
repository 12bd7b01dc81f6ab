"""The real loop, links and performer; only the hosts are scripted, and they play by the host side's rules."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from supervisor.core.actions import Action
from supervisor.core.facts import Fact, HostLost, Planned
from supervisor.core.known import Fleet
from supervisor.core.process import Process
from supervisor.hostside.watches import Watches
from supervisor.plan.build import Plan
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.loop import supervise
from supervisor.runtime.perform import Performer
from tests.fakes.fake import FakeChannel, FakeHost
from tests.runtime.looking import watches

HEALTHY = {"/health": (200, '{"health":"true"}'), "/live": (200, '{"status":"live"}')}


class ScriptedHost(FakeHost):
    """A host with a link program and, behind it, keepers that outlive every line."""

    def __init__(self, name: str) -> None:
        super().__init__(name, {"link": self.answer})
        self.runs: dict[str, dict[str, Any]] = {}
        self.heard: list[Mapping[str, Any]] = []
        self.http: dict[str, tuple[int, str]] = {}
        self.mute = False  # hears, and says nothing
        self.log_end = 0
        self.news: Callable[[], None] = lambda: None
        self.tasks: TaskGroup | None = None
        self.looks: list[Mapping[str, Any]] = []
        self._watches: dict[FakeChannel, Watches] = {}

    def answer(self, channel: FakeChannel, message: Mapping[str, Any] | None) -> None:
        if message is None:
            return
        self.heard.append(message)
        self.news()
        if self.mute:
            return
        match message["op"]:
            case "hello":
                channel.say({"hello": {"base": "/var/lib/noray", "boot_id": "b1", "runs": list(self.runs.values())}})
            case "ping":
                channel.say({"pong": message["n"]})
            case "start":
                spec = message["spec"]
                if spec["run"] not in self.runs:
                    ports = {name: 18000 + n for n, name in enumerate(spec["ports"])}
                    self.put(spec["run"], process=spec["process"], phase="running", pid=4711, ports=ports, about=spec["about"])
            case "stop":
                if message["run"] in self.runs:
                    self.put(message["run"], asked=True, stop={"step": "term_leader", "until": 0})
            case "http":
                channel.say({"reply": message["id"], **self.asked(message)})
            case "watch":
                self.watches(channel).begin(dict(message), lambda done: None if channel.closed else done(self.looked(message)))
            case "unwatch":
                self.watches(channel).end(dict(message))
            case "tail":
                channel.say({"reply": message["id"], "data": "", "end": self.log_end})

    def looked(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """By itself."""
        self.looks.append(message)
        return self.asked(message)

    def asked(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What is found when it looks: at a log, or at an address."""
        if "run" in message:
            return {"end": self.log_end}
        status, body = self.http.get(message["path"], (0, ""))
        return {"error": "" if status else "connection refused", "status": status, "body": body}

    def watches(self, channel: FakeChannel) -> Watches:
        assert self.tasks is not None
        if channel not in self._watches:
            self._watches[channel] = watches(self.tasks, channel.say)
        return self._watches[channel]

    def put(self, run: str, **changes: Any) -> None:
        """A run changes, and whoever has a line hears of it."""
        self.runs[run] = {**self.runs.get(run, {"run": run}), **changes}
        for channel in self.channels:
            channel.say({"state": self.runs[run]})

    def end(self, process: str, code: int | None = 1, **more: Any) -> None:
        for run in self.live(process):
            ended = {"code": code, "signal": None, "at": 1, "asked": self.runs[run].get("asked", False)}
            self.put(run, phase="gone", exit=ended, **more)

    def live(self, process: str) -> list[str]:
        return [r for r, s in self.runs.items() if s.get("process") == process and s["phase"] != "gone"]

    def ops(self, op: str) -> list[Mapping[str, Any]]:
        return [m for m in self.heard if m["op"] == op]


class Stage:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.hosts = {name: ScriptedHost(name) for name in plan.hosts}
        self.fleet = Fleet()
        self.did: list[Action] = []
        self.facts: list[Fact] = []
        self.links: dict[str, HostLink] = {}
        self._changed = anyio.Event()
        self._send, self._inbox = anyio.create_memory_object_stream[Fact](math.inf)

    async def tell(self, fact: Fact) -> None:
        self.facts.append(fact)
        await self._send.send(fact)

    def __getitem__(self, process: str) -> Process:
        return self.fleet.processes[process]

    def state(self, process: str) -> str:
        return str(self[process].state) if process in self.fleet.processes else ""

    def up(self, host: str = "gpu01") -> bool:
        return host in self.fleet.hosts and self.fleet.hosts[host].up

    async def until(self, what: Callable[[], object], within_s: float = 60.0) -> None:
        """Virtual seconds."""
        with anyio.fail_after(within_s):
            while not what():
                await self._changed.wait()

    def _published(self, before: Fleet, after: Fleet) -> None:
        self.fleet = after
        self._news()

    def _news(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def losses(self) -> list[HostLost]:
        return [f for f in self.facts if isinstance(f, HostLost)]

    @asynccontextmanager
    async def running(self, **hello: Any) -> AsyncIterator[Stage]:
        said = {"deployment": "lab", "controller": "c:1", "epoch": 5, "read_only": False, **hello}
        async with self._send, self._inbox, anyio.create_task_group() as tasks:
            performer = Performer(tasks, self.links, self.tell, lambda: self.fleet, "c:1", {})
            performer.plan = self.plan

            def perform(action: Action) -> None:
                self.did.append(action)
                performer(action)

            for name, host in self.hosts.items():
                host.news, host.tasks = self._news, tasks
                self.links[name] = HostLink(name, host.transport, said, self.tell)
                tasks.start_soon(self.links[name].run)
            tasks.start_soon(supervise, self._inbox, self.fleet, perform, self._published, anyio.current_time)
            self.perform = performer
            await self.tell(Planned(self.plan.wanted))
            yield self
            tasks.cancel_scope.cancel()
