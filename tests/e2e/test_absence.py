"""What a controller that was killed misses, and what the next one makes of it: twelve workers on three hosts, under load.

What is asked of the load, exactly: no request fails through the death of the controller, its absence and its return; none that
was being generated when a worker is killed in that absence, and none that starts once it is fenced. A host that loses its power
takes what it generates with it, and what meets its workers before their keys are gone; that is not asked here.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from supervisor.core.snapshot import ProcessStatus
from supervisor.effects.statedir import StateDir
from tests.e2e.lab import Lab
from tests.e2e.load import Load, Request
from tests.e2e.procs import alive, below, send, until
from tests.hosts.bed import Bed, missing

pytestmark = pytest.mark.root

WORKERS = 12
CLIENTS = 12


class Was(NamedTuple):
    host: str
    run: str | None
    pid: int  # as we see it


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if why := missing():
        pytest.skip(why)
    lab = Lab(tmp_path_factory.mktemp("l"))
    with Bed(lab.place, ["front", "one", "two", "three"], env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.deployment["etcd"] |= {"host": "front", "lease_ttl": 10}  # so long the keys of a host without power are there
        lab.deployment["frontend"] |= {"host": "front", "args": {"router_mode": "round-robin"}}
        lab.deployment["models"] = [lab.service(replicas=WORKERS, hosts=["one", "two", "three"], args={"speedup_ratio": 1.0})]
        lab.over(bed)
        lab.up()
        yield lab
        if lab.living():
            lab.down()


@pytest.fixture
def bed(lab: Lab) -> Bed:
    assert lab.bed is not None
    return lab.bed


def there(lab: Lab) -> dict[str, ProcessStatus]:
    return {p["name"]: p for p in lab.status()["processes"]}


def running(lab: Lab, bed: Bed) -> dict[str, Was]:
    """Who runs where, by /proc."""
    ours = {host.name: host.pids() for host in bed}
    return {name: Was(p["host"], p["run"], ours[p["host"]][p["pid"] or 0]) for name, p in there(lab).items()}


def test_a_controller_that_is_killed_is_missed_by_nobody(lab: Lab, bed: Bed) -> None:
    before = running(lab, bed)
    assert len(before) == WORKERS + 2
    with Load(lambda: lab.stream(120), CLIENTS) as load:
        load.more(CLIENTS)
        lab.kill_controller()
        load.more(2 * CLIENTS)
        lab.up()
        load.more(CLIENTS)
    assert load.failures == []
    assert running(lab, bed) == before
    assert {p["restarts"] for p in there(lab).values()} == {0}


def test_what_dies_while_no_controller_lives_is_told_and_healed_by_the_next(lab: Lab, bed: Bed) -> None:
    known, before = there(lab), running(lab, bed)
    victim = next(name for name, was in before.items() if was.host == "one")
    lost = {name for name, was in before.items() if was.host == "three"}
    assert len(lost) == WORKERS // 3
    workers = [(bed[p["host"]].address, p["ports"]["system"]) for p in known.values() if p["service"] == "mock"]

    lab.kill_controller()
    streams = [Request(lambda: lab.stream(1000)) for _ in range(CLIENTS)]
    until(lambda: all(lab.inflight(port, address) for address, port in workers))
    for pid in (before[victim].pid, *below(before[victim].pid)):
        send(pid, signal.SIGKILL)
    until(lambda: len(lab.instances()) == WORKERS - 1)  # its own keeper did that
    with Load(lambda: lab.stream(20), CLIENTS) as load:
        load.more(2 * CLIENTS)
    for stream in streams:
        stream.wait()
    assert [stream.error for stream in streams] == [None] * CLIENTS
    assert load.failures == []

    bed["three"].reboot()
    lab.up()
    until(lambda: len(lab.instances()) == WORKERS)
    with Load(lambda: lab.stream(20), CLIENTS) as load:
        load.more(2 * CLIENTS)
    assert load.failures == []

    now, again = there(lab), running(lab, bed)
    healthy = before.keys() - lost - {victim}
    assert {name: again[name] for name in healthy} == {name: before[name] for name in healthy}
    assert {name: p["restarts"] for name, p in now.items()} == dict.fromkeys(healthy, 0) | dict.fromkeys(lost | {victim}, 1)
    last = {name: now[name]["last_exit"] for name in lost | {victim}}
    assert all(alive(again[name].pid) and last[name] for name in last)
    assert {(e["code"], e["signal"]) for name, e in last.items() if e and name == victim} == {(None, 9)}
    assert all("rebooted" in e["cause"] for name, e in last.items() if e and name in lost), last
    assert "killed by SIGKILL" in lab.noray("why", victim).stdout
    assert "rebooted" in lab.noray("why", min(lost)).stdout

    assert_the_story_is_whole(lab.state, before, victim)


def assert_the_story_is_whole(state: Path, before: dict[str, Was], victim: str) -> None:
    """No event of the victim's run is missing or there twice, though most of them nobody heard when they happened."""
    with StateDir(state).reading() as store:
        events = store.events()
    ours = [(e.n, e.what) for e in events if e.run == before[victim].run and e.n is not None]
    assert [n for n, _ in ours] == list(range(1, len(ours) + 1))
    assert (ours[0][1], ours[-1][1]) == ("born", "gone")
    assert {"fenced", "exit"} <= {what for _, what in ours}
    assert sum(e.what == "controller" for e in events) == 3
