"""All processes and hosts of one deployment: facts come in at `step`, actions go out.

This file owns what no single process can know: which run a fact is about (a stale one dies here), what a host's answer
means for each of its processes (adoption), in which order everything stops, and which runs nobody wants any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .actions import Action, Stop
from .facts import Due, Fact, HostFound, HostLost, Phase, Planned, Probed, RunState, StopAsked, Told
from .process import AT_REST, WAITING, Body, Event, Process, State, at_rest, settle, step, unseen
from .wanted import Wanted

BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: sorts like the numbers it stands for
EVENT_OF = {Phase.RUNNING: Event.RUNNING, Phase.ENDED: Event.ENDED, Phase.STUCK: Event.STUCK, Phase.GONE: Event.GONE}
SURPLUS_TERM_S = 30.0
NOT_YET_ASKED = "not yet asked"


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    up: bool = False
    refused: bool = False
    why: str = NOT_YET_ASKED
    boot_id: str = ""
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    processes: Mapping[str, Process] = field(default_factory=dict)
    hosts: Mapping[str, Host] = field(default_factory=dict)
    observing: bool = False  # only look: nobody will restart what failed, and nothing is asked of the world
    stopping: bool = False
    skip_drain: bool = False
    surplus: Mapping[str, RunState] = field(default_factory=dict)  # runs of ours that no plan wants, until they are gone
    epoch_ms: int = 0  # wall clock at which `now_s` was `epoch_s`: run ids sort by real time
    epoch_s: float = 0.0
    runs: int = 0

    @property
    def stopped(self) -> bool:
        """Everything is down and proven gone, on hosts that all answered."""
        answered = all(host.up for host in self.hosts.values())
        return self.stopping and answered and not self.surplus and all(p.state in AT_REST for p in self.processes.values())

    @property
    def stuck_stopping(self) -> bool:
        """Nothing more can be ended by waiting: the rest is stuck, or on hosts that do not answer."""
        held = {*AT_REST, State.STUCK, State.UNKNOWN}
        return self.stopping and not self.surplus and all(p.state in held for p in self.processes.values())


Result = tuple[Fleet, tuple[Action, ...]]


def _planned(fleet: Fleet, wanted: Mapping[str, Wanted], now_s: float) -> Fleet:
    """New ones wait for their host, changed ones are replaced once stopped, the others are stopped and then forgotten."""
    processes = dict(fleet.processes)
    for name, want in wanted.items():
        old = processes.get(name)
        fresh = Process(want, since_s=now_s, spawnable=old is None and fleet.hosts.get(want.host, Host("")).up)
        processes[name] = replace(old, wanted=want, up=True) if old and old.wanted.host == want.host else fresh
        if old is not None and old.state in AT_REST:
            processes[name] = replace(fresh, spawnable=fleet.hosts.get(want.host, Host("")).up)
    for name in processes.keys() - wanted.keys():
        processes[name] = replace(processes[name], up=False)
    hosts = {p.wanted.host: fleet.hosts.get(p.wanted.host, Host(p.wanted.host)) for p in processes.values()}
    return replace(fleet, processes=processes, hosts={**fleet.hosts, **hosts})


def step_fleet(fleet: Fleet, fact: Fact, now_s: float) -> Result:
    """The one way the fleet moves."""
    actions: tuple[Action, ...] = ()
    match fact:
        case Planned(wanted):
            fleet = _planned(fleet, wanted, now_s)
        case Told(host, state):
            fleet, actions = _told(fleet, host, state, now_s)
        case HostFound():
            fleet, actions = _host_found(fleet, fact, now_s)
        case HostLost():
            fleet, actions = _host_lost(fleet, fact, now_s)
        case Probed(process, run) if _is_about(fleet, process, run):
            fleet, actions = _move(fleet, process, Event.PROBED, fact, now_s)
        case Due(process, run) if _is_about(fleet, process, run):
            fleet, actions = _move(fleet, process, Event.DUE, None, now_s)
        case StopAsked(skip_drain):
            fleet, actions = _stop_asked(fleet, skip_drain)
    fleet, more = _settle_all(fleet, now_s)
    return fleet, (*actions, *more)


def _is_about(fleet: Fleet, process: str, run: str) -> bool:
    return process in fleet.processes and fleet.processes[process].run == run


def _move(fleet: Fleet, name: str, event: Event, body: Body, now_s: float) -> Result:
    process, actions = step(fleet.processes[name], event, body, now_s)
    return replace(fleet, processes={**fleet.processes, name: process}), actions


def _told(fleet: Fleet, host: str, state: RunState, now_s: float) -> Result:
    if state.run in fleet.surplus:
        surplus = {run: s for run, s in fleet.surplus.items() if run != state.run}
        return replace(fleet, surplus=surplus if state.phase is Phase.GONE else {**surplus, state.run: state}), ()
    if not _is_about(fleet, state.process, state.run) or fleet.processes[state.process].wanted.host != host:
        return fleet, ()
    return _move(fleet, state.process, EVENT_OF[state.phase], state, now_s)


def _host_found(fleet: Fleet, found: HostFound, now_s: float) -> Result:
    """Adopt what is wanted, end what is not, and tell every other process of that host that it has no run."""
    host = Host(found.host, up=True, why="", boot_id=found.boot_id, since_s=now_s)
    fleet = replace(fleet, hosts={**fleet.hosts, found.host: host})
    actions: list[Action] = []
    told: set[str] = set()
    for state in sorted(found.runs, key=lambda s: (s.phase is Phase.GONE, s.run)):
        process = fleet.processes.get(state.process)
        wanted = process is not None and process.wanted.host == found.host and state.process not in told
        if process is not None and wanted and _may_adopt(process, state):
            told.add(state.process)
            adopted = replace(process, run=state.run)
            fleet = replace(fleet, processes={**fleet.processes, state.process: adopted})
            fleet, more = _move(fleet, state.process, EVENT_OF[state.phase], state, now_s)
            actions += more
        elif fleet.observing and process is not None and wanted:
            told.add(state.process)
            fleet = replace(fleet, processes={**fleet.processes, state.process: at_rest(process, state, now_s)})
        elif state.phase is not Phase.GONE:
            fleet = replace(fleet, surplus={**fleet.surplus, state.run: state})
            actions.append(Stop(found.host, state.run, SURPLUS_TERM_S))
    for name, process in fleet.processes.items():
        if fleet.observing and process.wanted.host == found.host and name not in told:
            fleet = replace(fleet, processes={**fleet.processes, name: at_rest(process, None, now_s)})
        elif process.wanted.host == found.host and name not in told:
            fleet, more = _move(fleet, name, Event.ABSENT, None, now_s)
            actions += more
    return fleet, tuple(actions)


def _may_adopt(process: Process, state: RunState) -> bool:
    """A live run of a wanted process is ours; a finished one is news only if it is the run we had."""
    return state.phase is not Phase.GONE or (state.run == process.run and process.run != "")


def _host_lost(fleet: Fleet, fact: HostLost, now_s: float) -> Result:
    known = fleet.hosts.get(fact.host)
    since = known.since_s if known and not known.up and known.why != NOT_YET_ASKED else now_s
    host = Host(fact.host, refused=fact.refused, why=fact.why, boot_id=known.boot_id if known else "", since_s=since)
    fleet = replace(fleet, hosts={**fleet.hosts, fact.host: host})
    actions: list[Action] = []
    for name, process in fleet.processes.items():
        if process.wanted.host == fact.host and fleet.observing and not process.run:
            fleet = replace(fleet, processes={**fleet.processes, name: unseen(process, fact.why, now_s)})
        elif process.wanted.host == fact.host:
            fleet, more = _move(fleet, name, Event.LOST, fact.why, now_s)
            actions += more
    return fleet, tuple(actions)


def _stop_asked(fleet: Fleet, skip_drain: bool) -> Result:
    fleet = replace(fleet, observing=False, stopping=True, skip_drain=fleet.skip_drain or skip_drain)
    if not skip_drain:
        return fleet, ()
    hurry: list[Action] = []
    processes = dict(fleet.processes)
    for name, process in processes.items():
        processes[name] = replace(process, skip_drain=True)
        if process.state in (State.DRAINING, State.STOPPING) and process.run:
            hurry.append(Stop(process.wanted.host, process.run, 0.0))
    return replace(fleet, processes=processes), tuple(hurry)


def _settle_all(fleet: Fleet, now_s: float) -> Result:
    if fleet.observing:
        return fleet, ()
    fleet = _lower_next_rank(fleet)
    actions: list[Action] = []
    processes = dict(fleet.processes)
    runs = fleet.runs

    def new_run() -> str:
        nonlocal runs
        runs += 1
        return run_id(fleet.epoch_ms + int((now_s - fleet.epoch_s) * 1000), runs)

    for name, process in fleet.processes.items():
        processes[name], more = settle(process, now_s, new_run)
        actions += more
    return replace(fleet, processes=processes, runs=runs), tuple(actions)


def _lower_next_rank(fleet: Fleet) -> Fleet:
    """While stopping: wish down the lowest rank that is not at rest. Who cannot be reached holds nobody up.

    What has no run at the moment is wished down at once, whatever its rank: a stop starts nothing.
    """
    if not fleet.stopping:
        return fleet
    waiting = {p.wanted.stop_rank for p in fleet.processes.values() if p.state not in {*AT_REST, State.UNKNOWN, State.STUCK}}
    lowest = min(waiting, default=None)
    processes = {
        name: replace(p, up=False) if lowest is None or p.wanted.stop_rank <= lowest or p.state in WAITING else p
        for name, p in fleet.processes.items()
    }
    return replace(fleet, processes=processes)


def run_id(at_ms: int, count: int) -> str:
    """Sortable by time, short enough to type: 9 characters of milliseconds, 2 of a counter."""
    number, text = (at_ms << 10) | (count & 0x3FF), ""
    for _ in range(11):
        text = BASE32[number & 31] + text
        number >>= 5
    return text
