"""etcd away, killed, and emptied, under load: hands off while it is away; all begin anew, at once, when its data is gone."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator

import pytest

from supervisor.core.snapshot import Status
from tests.e2e.lab import Lab, pids, states
from tests.e2e.load import Load
from tests.e2e.procs import send, until

AWAY_S = 5.0  # Dynamo's lease is 60 s


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["models"][0]["replicas"] = 2
        lab.write()
        lab.up()
        yield lab
        lab.down()


def dynamo(seen: dict[str, int | None]) -> dict[str, int | None]:
    return {name: pid for name, pid in seen.items() if name != "etcd-0"}


def test_away_for_less_than_the_lease_nobody_is_touched_and_no_request_fails(pair: Lab) -> None:
    before = pair.ready()
    etcd = pids(before)["etcd-0"]
    assert etcd is not None
    with Load(lambda: pair.stream(30), 4) as clients:
        clients.more(4)
        send(etcd, signal.SIGSTOP)
        seen = pair.wait(lambda s: states(s)["etcd-0"] == "starting")
        began_s = seen["asof"]
        seen = pair.wait(lambda s: s["asof"] > began_s + AWAY_S)
        assert states(seen) == {"etcd-0": "starting", "frontend-0": "ready", "mock-0": "ready", "mock-1": "ready"}
        clients.more(8)
        send(etcd, signal.SIGCONT)
        after = pair.ready()
        clients.more(8)
    assert clients.failures == []
    assert pids(after) == pids(before)


def test_who_dies_meanwhile_waits_for_it_and_is_no_failure_of_its_own(pair: Lab) -> None:
    before = pair.ready()
    etcd = pids(before)["etcd-0"]
    assert etcd is not None
    send(etcd, signal.SIGSTOP)
    pair.wait(lambda s: states(s)["etcd-0"] == "starting")
    pair.kill_tree("frontend-0")
    pair.kill_tree("mock-1")
    waits = {p["name"]: p for p in pair.wait(all_wait)["processes"]}
    assert waits["mock-1"]["state"] == "stopping", "it cannot be fenced, so its end is not over"
    send(etcd, signal.SIGCONT)
    after = pair.ready()
    assert {name for name, pid in pids(after).items() if pid != pids(before)[name]} == {"frontend-0", "mock-1"}
    until(lambda: len(pair.instances()) == 2)


def all_wait(seen: Status) -> bool:
    told = {p["name"]: p["reason"] for p in seen["processes"]}
    return (told["frontend-0"], told["mock-1"]) == ("waits for etcd", "ending what it left behind")


def test_killed_for_good_it_is_replaced_with_its_data_and_no_request_fails(pair: Lab) -> None:
    before = pids(pair.ready())
    with Load(lambda: pair.stream(30), 4) as clients:
        clients.more(4)
        pair.kill_tree("etcd-0")
        pair.wait(lambda s: s["ready"] and pids(s)["etcd-0"] != before["etcd-0"])
        clients.more(8)
    assert clients.failures == []
    assert dynamo(pids(pair.ready())) == dynamo(before)


def test_its_data_lost_all_serve_again_without_a_human(pair: Lab) -> None:
    before = pids(pair.ready())
    restarts = {p["name"]: p["restarts"] for p in pair.status()["processes"] if p["name"] != "etcd-0"}
    pair.noray("stop", "etcd", "--yes")
    (data,) = (path.parent for path in pair.host_dir.glob("**/etcd/member"))
    shutil.rmtree(data)
    pair.noray("start", "etcd")
    after = pair.wait(lambda s: s["ready"] and all(pid != before[name] for name, pid in pids(s).items()))
    counted = {p["name"]: p["restarts"] for p in after["processes"] if p["name"] in restarts}
    assert counted == restarts, "none of them has failed"
    pair.chat()
    assert "etcd has lost its data" in pair.noray("events", "mock-0").stdout
