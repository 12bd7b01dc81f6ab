"""What holds after any history. The hosts are models that play by the host side's rules: a run exists once its start was
carried out, only moves forward, may die at any time, and is reported whole whenever its host is found.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.core.actions import Action, Spawn, Stop
from supervisor.core.exit import Exit
from supervisor.core.facts import (
    Asked,
    Due,
    Fact,
    HostFound,
    HostLost,
    LeavingTold,
    Phase,
    Planned,
    Probed,
    RunState,
    StopAsked,
    Told,
)
from supervisor.core.fleet import step_fleet
from supervisor.core.known import Fleet
from supervisor.core.memory import remembered
from supervisor.core.process import AT_REST, State
from supervisor.core.restart import RestartPolicy
from supervisor.core.wanted import Wanted
from tests.core.world import asks

HOSTS = ("a", "b")
NAMES = ("front-0", "work-0", "work-1", "etcd-0")
RANKS = {"front": 0, "work": 1, "etcd": 2}
BUDGET, WINDOW_S = 3, 100.0
POLICY = RestartPolicy(budget=BUDGET, window_s=WINDOW_S)
PHASES = (Phase.RUNNING, Phase.ENDED, Phase.STUCK, Phase.GONE)


@dataclass
class ModelHost:
    """What is true on one machine, whether anybody can see it or not."""

    connected: bool = False
    boot: int = 0
    leaving: str = ""
    runs: dict[str, RunState] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)  # finished ones that a hello may leave out

    def living(self, process: str) -> list[str]:
        return [r for r, s in self.runs.items() if s.process == process and s.phase is not Phase.GONE]

    def record(self) -> tuple[RunState, ...]:
        """As `hello` tells it: every live run, and of a process without one the newest that is over."""
        live = [s for s in self.runs.values() if s.phase is not Phase.GONE]
        over = {s.process: s for s in self.runs.values() if s.phase is Phase.GONE and not self.living(s.process)}
        return (*live, *over.values())


class Deployment(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hosts = {name: ModelHost() for name in HOSTS}
        self.now_s = 0.0
        self.strangers = 0
        self.fleet = Fleet()
        self.past: list[Fact] = []
        self.known: dict[str, str] = {}  # live runs the controller was told of or started: run -> process
        self.begun: dict[str, list[float]] = {}  # process -> when it was spawned, since its last fresh plan
        self.held: set[str] = set()  # processes that were stopped by hand
        self.past_files: dict[str, Wanted] = {}
        self.queue: list[tuple[str, Action]] = []  # on their way to a host, lost with the line

    # --- telling the fleet, and judging what it asks for -----------------------------------------------------------------

    def tell(self, fact: Fact) -> None:
        self.learn(fact)
        before = self.fleet
        self.fleet, actions = step_fleet(before, fact, self.now_s)
        for action in actions:
            self.judge(before, fact, action)
        again, more = step_fleet(self.fleet, fact, self.now_s)
        assert asks(more) == [], f"{fact} told again asked for more"
        assert {n: p.state for n, p in again.processes.items()} == {n: p.state for n, p in self.fleet.processes.items()}
        self.past.append(fact)

    def learn(self, fact: Fact) -> None:
        """What the controller may believe to live: told so, or told nothing else since."""
        if isinstance(fact, Told):
            if fact.state.phase is Phase.GONE:
                self.known.pop(fact.state.run, None)
        elif isinstance(fact, HostFound):
            told = {s.run: s.process for s in fact.runs if s.phase is not Phase.GONE}
            self.known = {r: p for r, p in self.known.items() if not self.is_on(fact.host, r)} | told

    def is_on(self, host: str, run: str) -> bool:
        """Where a run was sent: a start that was lost with the line was never carried out anywhere."""
        return run in self.hosts[host].runs or not any(run in h.runs for h in self.hosts.values())

    def judge(self, before: Fleet, fact: Fact, action: Action) -> None:
        if isinstance(action, Spawn | Stop):
            assert self.fleet.hosts[action.host].up, "asked of a host that is not there"
            assert not isinstance(fact, HostLost) or isinstance(action, Stop), "a silent host started something"
            self.queue.append((action.host, action))
        if isinstance(action, Spawn):
            assert not self.fleet.stopping, "spawned while stopping"
            assert not self.hosts[action.host].leaving, "spawned on a host that shuts down"
            assert action.process not in self.held, "spawned what was stopped by hand"
            assert action.process not in self.known.values(), "a second live run"
            self.known[action.run] = action.process
            asked = before.processes.get(action.process)
            fresh = asked is None or asked.state in AT_REST or not asked.run or isinstance(fact, Asked)
            if fresh:
                self.begun[action.process] = []
            self.begun.setdefault(action.process, []).append(self.now_s)

    @initialize(
        silent=st.sampled_from([(), ("a",), ("b",), HOSTS]), spread=st.lists(st.sampled_from(HOSTS), min_size=4, max_size=4)
    )
    def begin(self, silent: tuple[str, ...], spread: list[str]) -> None:
        self.files_change(dict(zip(NAMES, spread, strict=True)), "h1")
        for host in [name for name in HOSTS if name not in silent]:
            self.line_is_back(host)
        while self.queue:
            self.host_obeys()

    # --- what may happen -------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 5.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for name, process in list(self.fleet.processes.items()):
            if process.next_attempt_s is not None and process.next_attempt_s <= self.now_s:
                self.tell(Due(name, process.run))

    @rule(
        placed=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(HOSTS)),
        version=st.sampled_from(["h1", "h2"]),
    )
    def files_change(self, placed: dict[str, str], version: str) -> None:
        wanted = {
            name: Wanted(name, name[:-2], "mocker", host, version, stop_rank=RANKS[name[:-2]], restart=POLICY)
            for name, host in placed.items()
        }
        self.held &= set(wanted)
        self.past_files = wanted
        self.tell(Planned(wanted))

    @rule(name=st.sampled_from([*NAMES, *RANKS]), word=st.sampled_from(["stop", "start", "restart"]), hurry=st.booleans())
    def operator_says(self, name: str, word: str, hurry: bool) -> None:
        meant = [n for n in self.fleet.wanted if name in (n, n[:-2])]
        if not meant:
            return
        self.held = self.held - set(meant) if word != "stop" else self.held | set(meant)
        runs = frozenset(self.fleet.processes[n].run for n in meant if n in self.fleet.processes) - {""}
        self.tell(Asked(frozenset([name]), word != "stop", runs=runs if word == "restart" else frozenset(), skip_drain=hurry))

    @rule(host=st.sampled_from(HOSTS))
    def line_breaks(self, host: str) -> None:
        self.hosts[host].connected = False
        self.queue = [(h, a) for h, a in self.queue if h != host]
        self.tell(HostLost(host, "gone"))

    @rule(host=st.sampled_from(HOSTS))
    def line_is_back(self, host: str) -> None:
        if not self.hosts[host].connected:
            self.hosts[host].connected = True
            there = self.hosts[host]
            self.tell(HostFound(host, there.record(), str(there.boot), leaving=there.leaving))

    @rule(host=st.sampled_from(HOSTS), orderly=st.booleans())
    def host_reboots(self, host: str, orderly: bool) -> None:
        """Its link says so first, or nobody does; what it ran is closed by whoever comes first afterwards."""
        there = self.hosts[host]
        there.leaving = "it shows" if orderly else ""
        if there.connected and orderly:
            self.tell(LeavingTold(host, there.leaving))
        ended = Exit(None, None, 0, False, "reboot")
        there.runs = {run: replace(s, phase=Phase.GONE, exit=s.exit or ended) for run, s in there.runs.items()}
        self.line_breaks(host)

    @rule(host=st.sampled_from(HOSTS))
    def host_is_up_again(self, host: str) -> None:
        there = self.hosts[host]
        there.boot, there.leaving = there.boot + 1, ""
        self.line_breaks(host)
        self.line_is_back(host)

    @precondition(lambda self: self.queue)
    @rule()
    def host_obeys(self) -> None:
        host, action = self.queue.pop(0)
        runs = self.hosts[host].runs
        if isinstance(action, Spawn):
            want = self.fleet.processes.get(action.process)
            version = want.wanted.launch_hash if want else "h1"
            # Across hosts a run may be there that no controller could know of; on one host never.
            assert not self.hosts[host].living(action.process), "two live runs of one process on one host"
            self.moves(host, RunState(action.run, action.process, Phase.RUNNING, pid=len(runs) + 1, launch_hash=version))
        elif isinstance(action, Stop) and action.run in runs and runs[action.run].phase is Phase.RUNNING:
            self.moves(host, replace(runs[action.run], asked=True, stop_step="term_leader"))

    @rule(data=st.data(), code=st.sampled_from([0, 1, None]))
    def run_moves_on(self, data: st.DataObject, code: int | None) -> None:
        alive = [(h, r) for h, host in self.hosts.items() for r, s in host.runs.items() if s.phase is not Phase.GONE]
        if not alive:
            return
        host, run = data.draw(st.sampled_from(alive))
        state = self.hosts[host].runs[run]
        later = PHASES[PHASES.index(state.phase) + 1 :]
        ended = state.exit or Exit(code, None if code is not None else 9, 0, state.asked)
        self.moves(host, replace(state, phase=data.draw(st.sampled_from(later)), exit=ended))

    @rule(seconds=st.sampled_from([1.0, 50.0]))
    def the_controller_dies_and_another_comes(self, seconds: float) -> None:
        """With its memory and the operator's words; it meets the hosts one by one."""
        if self.fleet.stopping:
            return
        memory = {name: remembered(p) for name, p in self.fleet.processes.items()}
        self.now_s += seconds
        self.queue.clear()
        self.fleet = Fleet(held=self.fleet.held, remembered=memory)
        for host in self.hosts.values():
            host.connected = False
        self.tell(Planned(self.past_files))
        # What it was told of what is in no file any more is forgotten, and found as surplus.
        self.known = {p.run: name for name, p in self.fleet.processes.items() if p.seen and not p.over}

    @rule(host=st.sampled_from(HOSTS), process=st.sampled_from(NAMES))
    def somebody_elses_controller_left_a_run(self, host: str, process: str) -> None:
        """Only where nobody looks, and under an id that sorts anywhere."""
        if not self.hosts[host].connected and not self.hosts[host].living(process):
            self.strangers += 1
            run = f"0{self.strangers:05d}"
            self.hosts[host].runs[run] = RunState(run, process, Phase.RUNNING, pid=7, launch_hash="h1")

    @rule(name=st.sampled_from(NAMES), ready=st.booleans(), progress=st.integers(0, 3))
    def probed(self, name: str, ready: bool, progress: int) -> None:
        process = self.fleet.processes.get(name)
        if process is not None and process.run:
            self.tell(Probed(name, process.run, "stage", ready, ready, "7", progress))

    @rule(data=st.data())
    def an_old_fact_of_a_run_comes_again(self, data: st.DataObject) -> None:
        """Within a connection facts keep their order; a late one about an end, a look or a timer may come at any time."""
        old = [f for f in self.past if isinstance(f, Due | Probed) or (isinstance(f, Told) and f.state.phase is Phase.GONE)]
        if old:
            fact = data.draw(st.sampled_from(old))
            _, actions = step_fleet(self.fleet, fact, self.now_s)
            if isinstance(fact, Told):
                assert asks(actions) == []
            assert not [a for a in actions if isinstance(a, Spawn)] or isinstance(fact, Due)

    @precondition(lambda self: self.fleet.processes)
    @rule(skip_drain=st.booleans(), sure=st.integers(0, 9))
    def stop_is_asked(self, skip_drain: bool, sure: int) -> None:
        if sure == 0 or self.fleet.stopping:
            self.tell(StopAsked(skip_drain))

    def moves(self, host: str, state: RunState) -> None:
        self.hosts[host].runs[state.run] = state
        if self.hosts[host].connected:
            self.tell(Told(host, state))

    # --- what always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def restarts_stay_within_the_budget(self) -> None:
        for name, process in self.fleet.processes.items():
            assert len([t for t in process.restarts_s if t > self.now_s - WINDOW_S]) <= BUDGET, name

    @invariant()
    def a_settled_fleet_asks_for_nothing(self) -> None:
        same = Planned(self.fleet.wanted)
        if not any(p.state in AT_REST for p in self.fleet.processes.values()):
            _, actions = step_fleet(self.fleet, same, self.now_s)
            assert actions == ()

    @invariant()
    def stopped_is_the_truth(self) -> None:
        if self.fleet.stopped and all(h.connected for h in self.hosts.values()):
            assert not [r for h in self.hosts.values() for r, s in h.runs.items() if s.phase is not Phase.GONE]

    @invariant()
    def what_is_called_down_is_gone(self) -> None:
        if all(h.connected for h in self.hosts.values()):
            for name in self.held:
                assert not self.fleet.down({name}) or not [r for h in self.hosts.values() for r in h.living(name)]

    def teardown(self) -> None:
        """Every stop ends, whatever happened before: hosts obey, and what was asked to end ends."""
        self.tell(StopAsked())
        for name, host in self.hosts.items():
            if not host.connected:
                self.line_breaks(name)  # its first answer, or the end of waiting for it
        for _ in range(len(NAMES) * 8):
            while self.queue:
                self.host_obeys()
            for host in self.hosts.values():
                for state in list(host.runs.values()):
                    if host.connected and state.phase is not Phase.GONE and (state.asked or state.phase is not Phase.RUNNING):
                        name = next(n for n, h in self.hosts.items() if h is host)
                        self.moves(name, replace(state, phase=Phase.GONE, exit=state.exit or Exit(0, None, 0, True)))
        for process in self.fleet.processes.values():
            assert process.state in {*AT_REST, State.UNKNOWN}, f"{process.wanted.name} is {process.state}"


TestAnyHistory = Deployment.TestCase
# No shrinking: it takes a minute. For a short history of a failure, leave `phases` out and run it again.
TestAnyHistory.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=(hypothesis.Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
