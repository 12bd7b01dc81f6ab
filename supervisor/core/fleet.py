"""All processes and hosts of one deployment: facts come in at `step`, actions go out.

This file owns what no single process can know: which run a fact is about (a stale one dies here), what a host's answer
means for each of its processes (adoption), in which order everything stops, and which runs nobody wants any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from . import absence, cordon
from .actions import Action, Stop, Unwatch, Watch
from .facts import (
    Asked,
    CordonAsked,
    Due,
    EtcdTold,
    Fact,
    GpusSeen,
    HostDue,
    HostFound,
    HostLost,
    LeavingTold,
    LogoutTold,
    Phase,
    Placed,
    Planned,
    Probed,
    RegistryLost,
    Routed,
    RunState,
    StopAsked,
    Told,
    Witnessed,
)
from .hand import after, dropped, held_by, lowered, raised, within
from .ids import run_ms
from .known import Fleet, Host, Surplus
from .life import at_rest, step
from .memory import recalled
from .process import AT_REST, Body, Event, Process, State, to, with_run
from .turns import settled, warmed
from .wanted import STORES, Wanted

EVENT_OF = {Phase.RUNNING: Event.RUNNING, Phase.ENDED: Event.ENDED, Phase.STUCK: Event.STUCK, Phase.GONE: Event.GONE}
REGISTRY_LOST = "etcd has lost its data: who is registered must register anew"
SURPLUS_DRAIN_S, SURPLUS_TERM_S = 60.0, 90.0  # as Stop has them: nobody knows its own any more

Result = tuple[Fleet, tuple[Action, ...]]


def step_fleet(fleet: Fleet, fact: Fact, now_s: float) -> Result:
    """The one way the fleet moves. A fact that is told again changes nothing."""
    after, actions = _step(fleet, fact, now_s)
    if after.observing:
        return after, actions
    return after, (*actions, *cordon.routes(fleet, after))


def _step(fleet: Fleet, fact: Fact, now_s: float) -> Result:
    before = fleet
    actions: tuple[Action, ...] = ()
    match fact:
        case Planned(wanted):
            fleet = _planned(fleet, wanted, now_s)
        case Placed(wanted):
            fleet = _placed(fleet, wanted, now_s)
        case Told(host, state):
            fleet, actions = _told(fleet, host, state, now_s)
        case HostFound(host) if host not in fleet.hosts or not fleet.hosts[host].up or _rebooted(fleet, fact):
            fleet, actions = _host_found(fleet, fact, now_s)
        case HostLost():
            fleet, actions = _host_lost(fleet, fact, now_s)
        case HostDue(host) if host in fleet.hosts:
            fleet, actions = absence.due(fleet, host, now_s)
        case Witnessed(host) if host in fleet.hosts:
            fleet, actions = absence.witnessed(fleet, fact, now_s)
        case Routed(host) if host in fleet.hosts:
            fleet, actions = absence.routed(fleet, fact)
        case RegistryLost():
            fleet, actions = _registry_lost(fleet, now_s)
        case LeavingTold(host, leaving) if host in fleet.hosts:
            fleet = replace(fleet, hosts={**fleet.hosts, host: _leaves(fleet.hosts[host], leaving, now_s)})
        case EtcdTold(host, etcd) if host in fleet.hosts:
            fleet = replace(fleet, hosts={**fleet.hosts, host: replace(fleet.hosts[host], etcd=etcd)})
        case LogoutTold(host, logout) if host in fleet.hosts:
            fleet = replace(fleet, hosts={**fleet.hosts, host: replace(fleet.hosts[host], logout=logout)})
        case GpusSeen(host) if host in fleet.hosts:
            fleet = _gpus_seen(fleet, fact, now_s)
        case Probed(process, run) if _is_about(fleet, process, run):
            fleet, actions = _move(fleet, process, Event.PROBED, fact, now_s)
        case Due(process, run) if _is_about(fleet, process, run):
            fleet, actions = _move(fleet, process, Event.DUE, None, now_s)
        case StopAsked(skip_drain):
            fleet, actions = _stop_asked(fleet, skip_drain)
        case Asked():
            fleet, actions = _asked(fleet, fact, now_s)
        case CordonAsked():
            fleet = replace(fleet, cordons=cordon.after(fleet.cordons, fact))
    if fleet.observing:
        return fleet, tuple(a for a in actions if isinstance(a, Watch | Unwatch))
    fleet, more = settled(before, warmed(fleet), now_s)
    followed = _follow_plan(fleet, now_s, before)
    if followed is fleet:
        return fleet, (*actions, *more)
    fleet, last = settled(fleet, followed, now_s)
    return fleet, (*actions, *more, *last)


def _planned(fleet: Fleet, wanted: Mapping[str, Wanted], now_s: float) -> Fleet:
    """New ones wait for their host, changed ones are replaced once stopped, the others are stopped and then forgotten."""
    names = dict.fromkeys((*wanted, *fleet.processes))
    hosts = {want.host: Host(want.host) for want in wanted.values() if want.host}
    cordons = cordon.within(fleet.cordons, fleet.wanted, wanted)
    fleet = replace(fleet, wanted=wanted, hosts={**hosts, **fleet.hosts}, held=within(fleet.held, wanted), cordons=cordons)
    processes: dict[str, Process] = {}
    for name in names:
        old, want = fleet.processes.get(name), wanted.get(name)
        if old is None and want is not None:
            was = fleet.remembered.get(name)
            processes[name] = recalled(_fresh(fleet, want, now_s), was, now_s, was is not None and was.host in fleet.hosts)
        elif old is None or (want is not None and _wished_up(fleet, want) and _worth_another_try(old, want)):
            processes[name] = _fresh(fleet, wanted[name], now_s, old)
        elif want is None or want.host != old.wanted.host:
            processes[name] = replace(old, up=False)
        else:
            reason = want.unplaced or old.reason
            processes[name] = replace(old, wanted=want, up=_wished_up(fleet, want), reason=reason)
    return _follow_plan(replace(fleet, processes=processes, remembered={}), now_s)


def _placed(fleet: Fleet, wanted: Mapping[str, Wanted], now_s: float) -> Fleet:
    """Moves only who had no place, and who failed in the one it had: to plan anew would try again whatever has failed.

    Those that stand in for others come and go this way.
    """
    hosts = {want.host: Host(want.host) for want in wanted.values() if want.host}
    fleet = replace(fleet, hosts={**hosts, **fleet.hosts})
    processes = {n: fleet.processes.get(n) or _fresh(fleet, want, now_s) for n, want in wanted.items()}
    for name, process in fleet.processes.items():
        want = wanted.get(name)
        if want is None:
            processes[name] = replace(process, up=False)
            continue
        loses = process.wanted.host and not want.host and process.state in (State.FAILED, State.BACKOFF)
        finds = want.host and not process.wanted.host
        if loses or finds:
            fresh = _fresh(fleet, want, now_s, process)
            processes[name] = replace(
                fresh, restarts=process.restarts, restarts_s=process.restarts_s, last_exit=process.last_exit
            )
        elif not process.wanted.host:
            processes[name] = replace(process, wanted=want, reason=want.unplaced)
    return replace(fleet, wanted=wanted, processes=processes)


def _worth_another_try(old: Process, want: Wanted) -> bool:
    """What is at rest is what the operator means by trying again; what waits need not, once it would start as another."""
    mended = old.state is State.BACKOFF and old.wanted.launch_hash != want.launch_hash
    return old.state in AT_REST or mended


def _wished_up(fleet: Fleet, want: Wanted) -> bool:
    return not fleet.stopping and held_by(fleet.held, want) is None


def _fresh(fleet: Fleet, want: Wanted, now_s: float, was: Process | None = None) -> Process:
    """`was`: what it was until now. Of that only the clients know more."""
    up, served_s = _wished_up(fleet, want), was.served_s if was else None
    begun = Process(want, since_s=now_s, up=up, skip_drain=fleet.skip_drain, served_s=served_s)
    if not want.host:
        return replace(begun, reason=want.unplaced)
    host = fleet.hosts[want.host]
    if host.up or host.unasked:
        return replace(begun, spawnable=host.up)
    return replace(begun, state=State.UNKNOWN, reason=host.why)


def _follow_plan(fleet: Fleet, now_s: float, before: Fleet | None = None) -> Fleet:
    """Forget what no plan wants once nothing of it is left; what moved begins anew on its new host. Under the same plan as
    `before` only whom something has happened to can be one of those.
    """
    if before is not None and fleet.wanted is before.wanted:
        moved = [name for name, process in fleet.processes.items() if before.processes.get(name) is not process]
        if all(name in fleet.wanted and fleet.wanted[name].host == fleet.processes[name].wanted.host for name in moved):
            return fleet
    processes: dict[str, Process] = {}
    for name, process in fleet.processes.items():
        want = fleet.wanted.get(name)
        in_place = want is not None and want.host == process.wanted.host
        if in_place or (process.run and process.state not in AT_REST):
            processes[name] = process
        elif want is not None:
            processes[name] = _fresh(fleet, want, now_s, process)
    return fleet if processes == fleet.processes else replace(fleet, processes=processes)


def _is_about(fleet: Fleet, process: str, run: str) -> bool:
    return process in fleet.processes and fleet.processes[process].run == run


def _move(fleet: Fleet, name: str, event: Event, body: Body, now_s: float) -> Result:
    process, actions = step(fleet.processes[name], event, body, now_s)
    return replace(fleet, processes={**fleet.processes, name: process}), actions


def _told(fleet: Fleet, host: str, state: RunState, now_s: float) -> Result:
    if state.run in fleet.surplus:
        surplus = {run: s for run, s in fleet.surplus.items() if run != state.run}
        return replace(
            fleet, surplus=surplus if state.phase is Phase.GONE else {**surplus, state.run: Surplus(host, state)}
        ), ()
    if not _is_about(fleet, state.process, state.run) or fleet.processes[state.process].wanted.host != host:
        return fleet, ()
    if state.phase is Phase.GONE:
        fleet = absence.gone(fleet, host, state)
    if fleet.processes[state.process].over:
        return fleet, ()  # the dead do not rise: an old fact
    if state.exit is not None and state.exit.cause == "terminated" and fleet.hosts[host].leaving:
        why = f"its host was shutting down: {fleet.hosts[host].leaving}"
        state = replace(state, exit=replace(state.exit, cause="shutdown", message=why))
    return _move(fleet, state.process, EVENT_OF[state.phase], state, now_s)


def _host_found(fleet: Fleet, found: HostFound, now_s: float) -> Result:
    """Adopt what is wanted, end what is not, and tell every other process of that host that it has no run."""
    known = fleet.hosts.get(found.host, Host(found.host))
    host = replace(known, up=True, refused=False, why="", boot_id=found.boot_id, since_s=now_s, logout=found.logout)
    host = _leaves(replace(host, held_by=found.held_by, etcd=found.etcd), found.leaving, now_s)
    rebooted = "reboot" if _rebooted(fleet, found) else None
    elsewhere = {run: s for run, s in fleet.surplus.items() if s.host != found.host}
    newest_ms = max((run_ms(state.run) for state in found.runs), default=0)
    fleet = replace(fleet, hosts={**fleet.hosts, found.host: host}, surplus=elsewhere)
    fleet = replace(fleet, newest_ms=max(fleet.newest_ms, newest_ms))
    fleet, routes = absence.found(fleet, found)
    actions: list[Action] = [*routes]
    told: set[str] = set()
    for state in sorted(found.runs, key=lambda s: (s.phase is Phase.GONE, not _is_about(fleet, s.process, s.run), s.run)):
        process = fleet.processes.get(state.process)
        wanted = process is not None and process.wanted.host == found.host and state.process not in told
        if process is not None and wanted and _may_adopt(process, state):
            told.add(state.process)
            adopted = with_run(process, state.run, now_s)
            fleet = replace(fleet, processes={**fleet.processes, state.process: adopted})
            fleet, more = _move(fleet, state.process, EVENT_OF[state.phase], state, now_s)
            actions += more
        elif fleet.observing and process is not None and wanted:
            told.add(state.process)
            fleet = replace(fleet, processes={**fleet.processes, state.process: at_rest(process, state, now_s)})
        elif state.phase is not Phase.GONE:
            fleet = replace(fleet, surplus={**fleet.surplus, state.run: Surplus(found.host, state)})
            slow = Stop(found.host, state.run, SURPLUS_TERM_S, SURPLUS_DRAIN_S)
            actions.append(Stop(found.host, state.run, 0.0) if fleet.skip_drain else slow)
    for name, process in fleet.processes.items():
        if fleet.observing and process.wanted.host == found.host and name not in told:
            fleet = replace(fleet, processes={**fleet.processes, name: at_rest(process, None, now_s)})
        elif process.wanted.host == found.host and name not in told:
            fleet, more = _move(fleet, name, Event.ABSENT, rebooted, now_s)
            actions += more
    return fleet, tuple(actions)


def _rebooted(fleet: Fleet, found: HostFound) -> bool:
    known = fleet.hosts.get(found.host)
    return known is not None and "" != known.boot_id != found.boot_id != ""


def _leaves(host: Host, why: str, now_s: float) -> Host:
    return replace(host, leaving=why, leaving_s=host.leaving_s if host.leaving and why else now_s)


def _may_adopt(process: Process, state: RunState) -> bool:
    """A live run of a wanted process is ours; a finished one is news only if it is the run we had."""
    return state.phase is not Phase.GONE or (state.run == process.run and process.run != "")


def _host_lost(fleet: Fleet, fact: HostLost, now_s: float) -> Result:
    known = fleet.hosts.get(fact.host, Host(fact.host))
    since = known.since_s if not known.up and not known.unasked else now_s
    host = replace(known, up=False, refused=fact.refused, why=fact.why, since_s=since, held_by=fact.held_by)
    fleet, looks = absence.lost(replace(fleet, hosts={**fleet.hosts, fact.host: host}), fact, now_s)
    actions: list[Action] = [*looks]
    for name, process in fleet.processes.items():
        if process.wanted.host == fact.host:
            fleet, more = _move(fleet, name, Event.LOST, fact.why, now_s)
            actions += more
    return fleet, tuple(actions)


def _gpus_seen(fleet: Fleet, seen: GpusSeen, now_s: float) -> Fleet:
    """News for the reader. A look that failed leaves what was known: it says nothing about the cards."""
    host = replace(fleet.hosts[seen.host], gpus_s=now_s, gpus_error=seen.error)
    return replace(fleet, hosts={**fleet.hosts, seen.host: host if seen.error else replace(host, gpus=seen.gpus)})


def _registry_lost(fleet: Fleet, now_s: float) -> Result:
    """Every Dynamo process begins anew, all at once: what they share is gone, and none has failed. Nothing new reaches them, so
    there is nothing to wait for before SIGTERM, on which each ends what it is answering.
    """
    actions: list[Action] = []
    processes = dict(fleet.processes)
    for name, process in fleet.processes.items():
        want = process.wanted
        if want.kind not in STORES and process.up and process.state in (State.STARTING, State.READY):
            process = to(replace(process, asked=True), State.DRAINING, REGISTRY_LOST, now_s)
            processes[name] = process
            actions += [Unwatch(name), Stop(want.host, process.run, want.term_s)]
    return replace(fleet, processes=processes), tuple(actions)


def _stop_asked(fleet: Fleet, skip_drain: bool) -> Result:
    """Everything is wished down at once; `_turn` says whose turn it is. To skip the drain is asked once for each run."""
    hurry: list[Action] = []
    processes = dict(fleet.processes)
    for name, process in fleet.processes.items():
        processes[name], more = lowered(process, skip_drain)
        hurry += more
    if skip_drain and not fleet.skip_drain:
        hurry += [Stop(s.host, run, 0.0) for run, s in fleet.surplus.items() if fleet.hosts[s.host].up]
    fleet = replace(fleet, processes=processes, stopping=True, skip_drain=fleet.skip_drain or skip_drain)
    return fleet, tuple(hurry)


def _asked(fleet: Fleet, asked: Asked, now_s: float) -> Result:
    """Down: like a stop of everything, for these. Up: what is at rest begins anew, and what only waits to try again."""
    fleet = replace(fleet, held=after(fleet.held, asked, fleet.wanted))
    actions: list[Action] = []
    processes = dict(fleet.processes)
    for process in fleet.covered(asked.names):
        name, want = process.wanted.name, fleet.wanted.get(process.wanted.name)
        if not asked.up:
            processes[name], more = lowered(dropped(process, now_s), asked.skip_drain)
            actions += more
        elif fleet.stopping or want is None or want.host != process.wanted.host:
            continue  # on its way down for another reason; if it comes back, it comes back up
        elif process.state in (*AT_REST, State.BACKOFF):
            processes[name] = _fresh(fleet, want, now_s, process)
        else:
            processes[name] = raised(process, asked)
    return replace(fleet, processes=processes), tuple(actions)
