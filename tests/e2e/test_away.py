"""A host is away, or only our line to it: what clients notice, what is done to its workers, and what is undone.

One deployment, under load: a frontend and etcd on one host, one worker on each of the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from supervisor.core.snapshot import Status
from tests.e2e.lab import Lab
from tests.e2e.load import Load
from tests.hosts.bed import Bed, missing

NOTICED_S = 6.0  # after a cut: from then on, no request is hurt by it
SLOW_S = 3.0
PARTITION_S = 20.0
ALONE_S = 12.0  # longer than a host's link lives without its controller
CLIENTS = 12
TOKENS = 100  # 0.1 to 0.3 s a stream: at any moment many are in flight
WORKERS = ("b", "c", "d", "e")

pytestmark = pytest.mark.root


def made(place, router: str, workers: tuple[str, ...]) -> Iterator[Lab]:  # type: ignore[no-untyped-def]
    if why := missing():
        pytest.skip(why)
    lab = Lab(place)
    with Bed(lab.place, ["a", *workers], env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.over(bed)
        lab.deployment["etcd"]["host"] = "a"
        lab.deployment["frontend"] |= {"host": "a", "args": {"router_mode": router}}
        lab.deployment["models"] = [lab.service(replicas=len(workers), hosts=list(workers), args={"speedup_ratio": 5.0})]
        lab.write()
        lab.up()
        lab.ready()
        yield lab
        lab.down()


@pytest.fixture
def two(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from made(tmp_path_factory.mktemp("l"), request.param, ("b", "c"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from made(tmp_path_factory.mktemp("l"), "round-robin", WORKERS)


def runs(status: Status) -> dict[str, str | None]:
    return {p["name"]: p["run"] for p in status["processes"]}


def cordoned(status: Status) -> set[str]:
    return {p["host"] for p in status["processes"] if p["cordoned"]}


def witness(status: Status, host: str) -> str:
    return next(each.get("witness", "") for each in status["hosts"] if each["name"] == host)


def hurt(load: Load, cut_s: float) -> list[tuple[float, float, str]]:
    """Requests that failed or were slow though they began when the cut should have been noticed."""
    late = [each for each in load.requests if each.at_s > cut_s + NOTICED_S]
    assert len(late) > CLIENTS
    return [(round(e.at_s - cut_s, 2), round(e.took_s, 2), e.failure) for e in late if e.failure or e.took_s > SLOW_S]


def clients(lab: Lab) -> Load:
    """They give up on a silent answer: whose stream is cut with the host that sends it gets no word of that (Dynamo 1.4.2)."""
    return Load(lambda: lab.stream(TOKENS, timeout_s=10.0), CLIENTS)


@pytest.mark.parametrize("two", ["round-robin", "kv"], indirect=True)
def test_a_power_cut_hurts_nobody_who_asks_later_than_six_seconds_after_it(two: Lab) -> None:
    assert two.bed is not None
    with clients(two) as load:
        load.more(2 * CLIENTS)
        two.bed["c"].power_cut()
        cut_s = time.monotonic()
        two.wait(lambda s: cordoned(s) == {"c"})
        load.past(cut_s + NOTICED_S)
    assert not hurt(load, cut_s)
    two.bed["c"].boot()
    assert not cordoned(two.ready())


def test_a_line_of_ours_that_breaks_alone_touches_nothing(lab: Lab) -> None:
    assert lab.bed is not None
    before = runs(lab.ready())
    with clients(lab) as load:
        lab.bed["b"].wire.hide()
        cut_s = time.monotonic()
        seen = lab.wait(lambda s: "only our own line" in witness(s, "b"))
        load.past(cut_s + ALONE_S)
        assert not cordoned(lab.status())
        lab.bed["b"].wire.heal()
        lab.ready()
    assert load.failures == []
    assert runs(lab.status()) == before
    assert seen["verdict"].startswith("DEGRADED")


def test_who_is_cut_off_from_everybody_is_out_of_the_routing_until_he_is_back_with_the_same_run(lab: Lab) -> None:
    """Three at once: nothing passes, nothing passes to it, nothing passes from it."""
    assert lab.bed is not None
    before = runs(lab.ready())
    with clients(lab) as load:
        cut_s = time.monotonic()
        lab.bed["c"].wire.partition()
        lab.bed["d"].wire.one_way("to")
        lab.bed["e"].wire.one_way("from")
        cut_off = lab.wait(lambda s: cordoned(s) == {"c", "d", "e"})
        load.past(cut_s + PARTITION_S)
        for name in "cde":
            lab.bed[name].wire.heal()
        assert not cordoned(lab.ready())
        load.more(CLIENTS)
    assert not hurt(load, cut_s)
    assert runs(lab.status()) == before
    assert cut_off["verdict"].startswith("DEGRADED"), "one of four still serves, and that much is known"
