"""Facts in, actions out: a fleet with a clock, and short words for the facts about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.actions import Action, Fence, Spawn, Stop
from supervisor.core.exit import Exit
from supervisor.core.facts import Asked, Due, Fact, HostFound, HostLost, Phase, Planned, Probed, RunState, StopAsked, Told
from supervisor.core.fleet import step_fleet
from supervisor.core.known import Fleet
from supervisor.core.process import Process, State
from supervisor.core.wanted import Wanted


def wanted(name: str = "qwen-0", host: str = "gpu01", **more: Any) -> Wanted:
    more.setdefault("launch_hash", "h1")
    return Wanted(name, name.rpartition("-")[0], "mocker", host, **more)


def by_name(*some: Wanted) -> dict[str, Wanted]:
    return {w.name: w for w in some}


def run_state(run: str, phase: Phase = Phase.RUNNING, process: str = "qwen-0", **more: Any) -> RunState:
    more.setdefault("pid", 100 + sum(run.encode()))
    more.setdefault("launch_hash", "h1")
    return RunState(run, process, phase, **more)


def exited(code: int | None = 1, signal: int | None = None, asked: bool = False, **more: Any) -> Exit:
    return Exit(code, signal, 0, asked, **more)


@dataclass
class World:
    """One fleet over time. Every method tells it one fact and gives back the actions; `did` keeps them all."""

    fleet: Fleet = field(default_factory=Fleet)
    now_s: float = 0.0
    did: list[Action] = field(default_factory=list)

    def tell(self, fact: Fact) -> tuple[Action, ...]:
        self.fleet, actions = step_fleet(self.fleet, fact, self.now_s)
        self.did += actions
        return actions

    def plan(self, *some: Wanted) -> tuple[Action, ...]:
        return self.tell(Planned(by_name(*some)))

    def found(self, *runs: RunState, host: str = "gpu01") -> tuple[Action, ...]:
        return self.tell(HostFound(host, runs))

    def lost(self, host: str = "gpu01", **more: Any) -> tuple[Action, ...]:
        return self.tell(HostLost(host, "the line broke", **more))

    def told(self, phase: Phase, process: str = "qwen-0", **more: Any) -> tuple[Action, ...]:
        """About the run that the fleet believes in."""
        p = self[process]
        return self.tell(Told(p.wanted.host, run_state(p.run, phase, process, **{"launch_hash": p.wanted.launch_hash, **more})))

    def runs(self, *processes: str) -> None:
        for process in processes or ("qwen-0",):
            self.told(Phase.RUNNING, process)

    def ready(self, *processes: str, **more: Any) -> tuple[Action, ...]:
        actions: tuple[Action, ...] = ()
        for process in processes or ("qwen-0",):
            probed = Probed(process, self[process].run, "serving", ready=True, proven=True, **more)
            actions += self.tell(probed)
        return actions

    def ends(self, ended: Exit | None = None, process: str = "qwen-0", **more: Any) -> tuple[Action, ...]:
        """Its leader ends and its tree is proven empty."""
        ended = ended or exited(asked=self[process].state in (State.DRAINING, State.STOPPING))
        more = {"exit": ended, "asked": ended.asked, **more}
        return (*self.told(Phase.ENDED, process, **more), *self.told(Phase.GONE, process, **more))

    def due(self, process: str = "qwen-0") -> tuple[Action, ...]:
        return self.tell(Due(process, self[process].run))

    def stop(self, skip_drain: bool = False) -> tuple[Action, ...]:
        return self.tell(StopAsked(skip_drain))

    def asked(self, *names: str, up: bool, **more: Any) -> tuple[Action, ...]:
        return self.tell(Asked(frozenset(names), up, "ann", 1000, **more))

    def __getitem__(self, process: str) -> Process:
        return self.fleet.processes[process]

    @property
    def states(self) -> dict[str, str]:
        return {name: str(p.state) for name, p in self.fleet.processes.items()}

    @property
    def state(self) -> State:
        return self["qwen-0"].state

    @property
    def run(self) -> str:
        return self["qwen-0"].run


def up(*some: Wanted, now_s: float = 0.0) -> World:
    """A world where all of these are ready."""
    world = World(now_s=now_s)
    some = some or (wanted(),)
    world.plan(*some)
    for host in dict.fromkeys(w.host for w in some):
        world.found(host=host)
    world.runs(*(w.name for w in some))
    world.ready(*(w.name for w in some))
    assert set(world.states.values()) == {"ready"}
    world.did.clear()
    return world


def spawns(actions: Iterable[Action]) -> list[str]:
    return [a.process for a in actions if isinstance(a, Spawn)]


def stops(actions: Iterable[Action]) -> list[tuple[str, float]]:
    return [(a.run, a.term_s) for a in actions if isinstance(a, Stop)]


def asks(actions: Iterable[Action]) -> list[Action]:
    """What changes the world; not looking at it and not timers."""
    return [a for a in actions if isinstance(a, Spawn | Stop | Fence)]
