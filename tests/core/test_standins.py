"""Replicas whose host stays away: one for one, after its time, nobody moved, and the newest leaves when the old one is back."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.actions import Action, Spawn, Stop
from supervisor.core.facts import Fact, HostFound, LeavingTold, Phase, Placed
from supervisor.core.standins import look_again_s, stand_ins
from supervisor.core.status import status
from supervisor.core.wanted import Wanted
from tests.core.world import World, by_name, exited, run_state, spawns, stops, wanted

AFTER_S = 60.0
HOSTS = ("gpu01", "gpu02", "gpu03")


class Site(World):
    """Two replicas on each of two hosts, a third host free; stand-ins are placed where there is a host, as placing does it."""

    def __init__(self, after_s: float | None = AFTER_S) -> None:
        super().__init__()
        self.regular = [wanted(f"qwen-{n}", HOSTS[n // 2], replica=n, lost_after_s=after_s) for n in range(4)]
        self.regular.append(wanted("etcd-0", "gpu03"))
        self.plan(*self.regular)
        for host in HOSTS:
            self.found(host=host)
        self.serve(*(want.name for want in self.regular))
        self.did.clear()

    def serve(self, *names: str) -> None:
        self.runs(*names)
        self.ready(*names)

    def tell(self, fact: Fact) -> tuple[Action, ...]:
        actions = super().tell(fact)
        return (*actions, *self.replace()) if not isinstance(fact, Placed) else actions

    def passes(self, seconds: float) -> tuple[Action, ...]:
        self.now_s += seconds
        return self.replace()

    def replace(self) -> tuple[Action, ...]:
        actions: tuple[Action, ...] = ()
        for _ in range(3):
            if (meant := stand_ins(self.fleet, self.now_s)) == self.standing_in:
                break
            new = [self.fleet.wanted.get(name) or self.stand_in(name, who) for name, who in meant.items()]
            actions += super().tell(Placed(by_name(*self.regular, *new)))
        return actions

    def stand_in(self, name: str, who: str) -> Wanted:
        places = [host.name for host in self.fleet.hosts.values() if host.up and host.name != self[who].wanted.host]
        host = places[-1] if places else ""
        number = int(name.rpartition("-")[2])
        return wanted(name, host, replica=number, lost_after_s=AFTER_S, replaces=who, unplaced="" if host else "no room")

    @property
    def standing_in(self) -> dict[str, str]:
        return {name: want.replaces for name, want in self.fleet.wanted.items() if want.replaces}

    def back(self, host: str, boot: str = "", rebooted: bool = False) -> tuple[Action, ...]:
        """With what it ran, or with the records of that."""
        there = [p for p in self.fleet.processes.values() if p.wanted.host == host and p.run]
        phase, ended = (Phase.GONE, exited(None, cause="reboot")) if rebooted else (Phase.RUNNING, None)
        return self.tell(HostFound(host, tuple(run_state(p.run, phase, p.wanted.name, exit=ended) for p in there), boot))


def test_a_host_that_blinks_changes_nothing() -> None:
    site = Site()
    for _ in range(5):
        site.lost("gpu01")
        assert look_again_s(site.fleet, site.now_s) == site.now_s + AFTER_S
        site.passes(AFTER_S - 0.1)
        site.back("gpu01")
        site.passes(1.0)
    site.ready("qwen-0", "qwen-1")
    assert (site.standing_in, spawns(site.did), stops(site.did)) == ({}, [], [])
    assert look_again_s(site.fleet, site.now_s) is None


def test_each_replica_that_is_away_for_long_has_one_stand_in_elsewhere() -> None:
    site = Site()
    site.lost("gpu01")
    assert spawns(site.passes(AFTER_S)) == ["qwen-4", "qwen-5"]
    assert site.standing_in == {"qwen-4": "qwen-0", "qwen-5": "qwen-1"}
    assert {site[name].wanted.host for name in site.standing_in} == {"gpu03"}
    assert site.passes(1e6) == ()
    site.lost("gpu01")
    assert site.passes(1e6) == ()
    assert (site.states["qwen-0"], site.states["etcd-0"]) == ("unknown", "ready")


def test_when_it_serves_again_the_newest_is_drained_and_forgotten() -> None:
    site = Site()
    site.lost("gpu01")
    site.passes(AFTER_S)
    site.serve("qwen-4", "qwen-5")
    assert not stops(site.back("gpu01")), "it is found, and does not serve yet"
    site.now_s += 1
    assert stops(site.ready("qwen-0")) == [(site["qwen-4"].run, 90.0)]
    assert site.states["qwen-5"] == "ready", "its own one does not serve yet"
    site.ends(process="qwen-4")
    assert "qwen-4" not in site.states
    site.ready("qwen-1")
    site.ends(process="qwen-5")
    assert sorted(site.states) == ["etcd-0", "qwen-0", "qwen-1", "qwen-2", "qwen-3"]
    assert set(site.states.values()) == {"ready"}


def test_one_whose_run_ended_meanwhile_comes_back_first() -> None:
    site = Site()
    site.lost("gpu01")
    site.passes(AFTER_S)
    site.serve("qwen-4", "qwen-5")
    site.back("gpu01", "b2", rebooted=True)
    assert spawns(site.due("qwen-0")) == ["qwen-0"]
    assert (site.states["qwen-4"], stops(site.did)) == ("ready", [])
    site.runs("qwen-0")
    assert stops(site.ready("qwen-0")) == [(site["qwen-4"].run, 90.0)]


def test_a_stand_in_that_is_lost_itself_has_one_and_both_leave_in_the_end() -> None:
    site = Site()
    site.lost("gpu01")
    site.passes(AFTER_S)
    site.serve("qwen-4", "qwen-5")
    site.lost("gpu03")
    assert spawns(site.passes(AFTER_S)) == ["qwen-6", "qwen-7"]
    assert site.standing_in == {"qwen-6": "qwen-0", "qwen-7": "qwen-1"}
    first = {site[name].run for name in ("qwen-4", "qwen-5")}
    site.serve("qwen-6", "qwen-7")
    assert {run for run, _ in stops(site.back("gpu03"))} == first, "nobody wants them any more"
    site.back("gpu01")
    assert {run for run, _ in stops(site.ready("qwen-0", "qwen-1"))} == {site[name].run for name in ("qwen-6", "qwen-7")}


def test_the_operators_word_and_the_files_end_it_too() -> None:
    site = Site()
    site.lost("gpu01")
    site.asked("qwen-0", up=False)
    assert spawns(site.passes(AFTER_S)) == ["qwen-4"], "who is stopped by hand is not missed"
    assert site.standing_in == {"qwen-4": "qwen-1"}
    site.serve("qwen-4")
    assert [run for run, _ in stops(site.asked("qwen-1", up=False))] == [site["qwen-4"].run]


def test_in_a_down_it_leaves_in_its_turn_and_nobody_comes() -> None:
    site = Site()
    site.lost("gpu01")
    site.passes(AFTER_S)
    site.serve("qwen-4", "qwen-5")
    site.lost("gpu02")
    site.stop()
    site.passes(1e6)
    assert sorted(site.standing_in) == ["qwen-4", "qwen-5"]
    assert not [a for a in site.did if isinstance(a, Spawn) and a.host == "gpu01"]


def test_who_had_failed_there_is_not_missed_and_a_host_that_refuses_is_not_lost() -> None:
    site = Site()
    site.ends(exited(None, cause="missing"), "qwen-0")
    site.lost("gpu01")
    site.lost("gpu02", refused=True)
    assert spawns(site.passes(AFTER_S)) == ["qwen-4"]
    assert site.standing_in == {"qwen-4": "qwen-1"}


def test_without_the_key_nobody_is_ever_replaced() -> None:
    site = Site(after_s=None)
    site.lost("gpu01")
    assert site.passes(1e9) == ()


def test_a_new_controller_keeps_those_on_record_while_the_host_is_still_away() -> None:
    site = Site()
    site.lost("gpu01")
    site.passes(AFTER_S)
    heir = World()
    heir.plan(*site.fleet.wanted.values())
    assert stand_ins(heir.fleet, 0.0) == site.standing_in, "before anybody answered"
    heir.found(run_state("4", process="qwen-4"), run_state("5", process="qwen-5"), host="gpu03")
    heir.lost("gpu01")
    assert stand_ins(heir.fleet, 1e6) == site.standing_in
    assert not stops(heir.did)


def test_status_says_who_is_there_for_whom_and_counts_them_once() -> None:
    site = Site()
    site.lost("gpu01")
    site.passes(AFTER_S)
    site.serve("qwen-4", "qwen-5")
    seen = status(site.fleet, deployment="lab", endpoints=[], controller={"pid": 1, "version": "", "since": 0.0}, now_s=99.0)
    told = {p["name"]: (p.get("replaces"), p.get("replaced_by")) for p in seen["processes"]}
    assert (told["qwen-0"], told["qwen-4"], told["qwen-2"]) == ((None, "qwen-4"), ("qwen-0", None), (None, None))
    (qwen,) = [s for s in seen["services"] if s["name"] == "qwen"]
    assert (qwen["wanted"], qwen["serving"]) == (4, 4)
    assert seen["ready"]


HAPPENINGS = st.lists(
    st.tuples(st.sampled_from(["lost", "back", "rebooted", "ready", "ends", "leaves", "pass"]), st.integers(0, 9)), max_size=40
)


# No shrinking: what fails here is short enough, and its seed is always the same.
@settings(max_examples=150, deadline=None, derandomize=True, phases=(hypothesis.Phase.generate,))
@given(HAPPENINGS)
def test_whatever_happens_it_is_one_for_one_and_nobody_else_moves(happenings: list[tuple[str, int]]) -> None:
    site = Site()
    homes = {want.name: want.host for want in site.regular}
    for what, number in happenings:
        host, before = HOSTS[number % 3], dict(site.standing_in)
        serving = {name for name, state in site.states.items() if state == "ready"}
        done = len(site.did)
        if what == "pass":
            site.passes(10.0 * number)
        elif what == "lost":
            site.lost(host)
        elif what in ("back", "rebooted") and not site.fleet.hosts[host].up:
            site.back(host, rebooted=what == "rebooted", boot=f"b{len(site.did)}" if what == "rebooted" else "")
        elif what == "leaves":
            site.tell(LeavingTold(host, "it shows" if number > 4 else ""))
        elif what in ("ready", "ends"):
            process = list(site.fleet.processes.values())[number % len(site.states)]
            there = site.fleet.hosts.get(process.wanted.host)
            if process.run and there is not None and there.up and what == "ready":
                site.serve(process.wanted.name)
            elif process.run and there is not None and there.up and process.state != "pending":
                site.ends(exited(1), process.wanted.name)
        for name in site.states:
            site.due(name)
        judge(site, homes, before, serving, site.did[done:])


def judge(site: Site, homes: dict[str, str], before: dict[str, str], serving: set[str], did: list[Action]) -> None:
    now = site.standing_in
    assert len(set(now.values())) == len(now), "two for one"
    for name, who in now.items():
        assert who in homes
        assert name not in homes
        if before.get(name) != who:
            host = site.fleet.hosts[homes[who]]
            assert not host.up
            assert site.now_s >= host.since_s + AFTER_S
    assert all(p.wanted.host == homes[n] for n, p in site.fleet.processes.items() if n in homes), "moved"
    assert not [a for a in did if isinstance(a, Spawn) and a.process in homes and a.host != homes[a.process]]
    live = {p.run: n for n, p in site.fleet.processes.items() if n in homes}
    assert not [a for a in did if isinstance(a, Stop) and a.run in live], "ended who was wanted"
    for name in before.keys() - now.keys():
        who = before[name]
        assert site.states.get(who) == "ready" or who in serving or who in now.values(), "left before its own one was back"


def test_an_unplaced_stand_in_waits_and_is_one_all_the_same() -> None:
    site = Site()
    for host in HOSTS:
        site.lost(host)
    assert spawns(site.passes(AFTER_S)) == []
    assert len(site.standing_in) == 4
    assert {site[name].reason for name in site.standing_in} == {"no room"}
    assert site.passes(1e6) == ()


def test_numbers_of_others_are_not_taken() -> None:
    site = Site()
    site.regular.append(replace(wanted("x-0", "gpu03"), service="qwen-4"))
    site.plan(*site.regular)
    site.lost("gpu01")
    site.passes(AFTER_S)
    assert site.standing_in == {"qwen-5": "qwen-0", "qwen-6": "qwen-1"}
