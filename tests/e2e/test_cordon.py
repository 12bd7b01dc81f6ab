"""`noray cordon` and `uncordon`: no new requests, nothing is ended, and it stays so whatever befalls worker and controller."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from supervisor.core.snapshot import Status
from tests.e2e.lab import PATIENCE_S, Lab, pids
from tests.e2e.load import Load, Request
from tests.e2e.procs import until


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two workers; each test finds them serving."""
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["models"][0] |= {"replicas": 2, "args": {"speedup_ratio": 1.0}}
        lab.write()
        lab.up()
        yield lab
        lab.down()


@pytest.fixture(autouse=True)
def all_in(pair: Lab) -> None:
    cordoned = [p["name"] for p in pair.status()["processes"] if "cordon" in p]
    if cordoned:  # by a test that failed
        pair.noray("uncordon", *cordoned)


def instances(lab: Lab, count: int) -> set[int]:
    """Whom the frontend routes to, once it is that many."""
    until(lambda: len(lab.instances()) == count, PATIENCE_S)
    return lab.instances()


def mock_1(seen: Status) -> tuple[str, bool, str | None]:
    return next((p["state"], p["cordoned"], p["run"]) for p in seen["processes"] if p["name"] == "mock-1")


def test_out_and_back_under_load_without_a_failed_request(pair: Lab) -> None:
    before = pids(pair.ready())
    both = instances(pair, 2)
    with Load(lambda: pair.stream(30), 4) as clients:
        clients.more(4)
        assert "mock-1 is out of the routing, until: noray uncordon mock-1" in pair.noray("cordon", "mock-1").stdout
        rest = instances(pair, 1)
        port = pair.process("mock-1")["ports"]["system"]
        until(lambda: not pair.busy(port))
        clients.more(8)
        assert not pair.busy(port)
        assert pair.status()["verdict"].startswith("DEGRADED  mock 1/2 serving")
        assert (pair.process("mock-1")["state"], pair.process("mock-1")["cordoned"]) == ("ready", True)
        pair.noray("uncordon", "mock-1")
        assert instances(pair, 2) == both
        until(lambda: pair.busy(port))
        clients.more(4)
    assert clients.failures == []
    assert rest < both
    assert pair.ready()["verdict"].startswith("READY")
    assert pids(pair.status()) == before


def test_what_it_is_answering_goes_on(pair: Lab) -> None:
    port = pair.ready() and pair.process("mock-0")["ports"]["system"]
    pair.noray("cordon", "mock-1")
    request = Request(lambda: pair.stream(1500))
    until(lambda: pair.busy(port))
    pair.noray("uncordon", "mock-1")
    pair.noray("cordon", "mock-0")
    assert pair.busy(port)
    request.wait()
    assert request.error is None
    pair.noray("uncordon", "mock-0")
    instances(pair, 2)


def test_it_outlives_its_worker_and_its_controller(pair: Lab) -> None:
    pair.noray("cordon", "mock-1")
    (rest,) = instances(pair, 1)
    run = pair.process("mock-1")["run"]
    pair.kill_tree("mock-1")
    pair.wait(lambda s: mock_1(s)[:2] == ("ready", True) and mock_1(s)[2] != run)
    assert instances(pair, 1) == {rest}
    pair.kill_controller()
    assert "noray uncordon mock-1" in pair.noray("up", *pair.files, "--detach").stdout
    pair.wait(lambda s: mock_1(s)[:2] == ("ready", True))
    assert instances(pair, 1) == {rest}
    pair.noray("uncordon", "mock-1")
    instances(pair, 2)
    pair.ready()


def test_stopped_and_drained_while_it_is_out(pair: Lab) -> None:
    pair.noray("cordon", "mock-1")
    pair.noray("stop", "mock-1", "--yes")
    pair.noray("uncordon", "mock-1")
    pair.noray("start", "mock-1")
    instances(pair, 2)


def test_what_cannot_be_cordoned_is_refused_by_name(pair: Lab) -> None:
    assert "mock-1" in pair.noray("cordon", "mokc-1", code=2).stderr
    assert "no worker" in pair.noray("cordon", "frontend-0", code=2).stderr
    assert len(instances(pair, 2)) == 2
