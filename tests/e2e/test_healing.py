"""Whatever is killed comes back, and nobody's request fails but where the thing killed was the door itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.lab import Lab, pids
from tests.e2e.load import Load


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["frontend"]["args"] = {"router_mode": "round-robin"}
        lab.deployment["models"][0]["replicas"] = 3
        lab.write()
        lab.up()
        yield lab
        lab.down()


def others(lab: Lab, name: str) -> dict[str, int | None]:
    return {n: pid for n, pid in pids(lab.status()).items() if n != name}


def healed(lab: Lab, name: str, restarts: int = 1) -> None:
    def true(status: object) -> bool:
        seen = status["processes"]  # type: ignore[index]
        return bool(status["ready"]) and next(p for p in seen if p["name"] == name)["restarts"] == restarts  # type: ignore[index]

    lab.wait(true)


def test_a_killed_worker_costs_no_request(lab: Lab) -> None:
    rest = others(lab, "mock-1")
    with Load(lambda: lab.stream(30), clients=4) as load:
        load.more(12)
        lab.kill_tree("mock-1")
        healed(lab, "mock-1")
        load.more(24)
    assert load.failures == []
    assert others(lab, "mock-1") == rest
    last = lab.process("mock-1")["last_exit"]
    assert last is not None
    assert (last["code"], last["signal"]) == (None, 9)
    assert last["fenced_at"] - last["at"] < 1.0
    assert len(lab.instances()) == 3


def test_a_killed_frontend_comes_back_alone(lab: Lab) -> None:
    rest = others(lab, "frontend-0")
    lab.kill_tree("frontend-0")
    healed(lab, "frontend-0")
    lab.chat()
    assert others(lab, "frontend-0") == rest
    assert len(lab.instances()) == 3


def test_a_killed_etcd_comes_back_and_nobody_notices(lab: Lab) -> None:
    rest = others(lab, "etcd-0")
    with Load(lambda: lab.stream(10), clients=2) as load:
        load.more(4)
        lab.kill_tree("etcd-0")
        healed(lab, "etcd-0")
        load.more(10)
    assert load.failures == []
    assert others(lab, "etcd-0") == rest


def test_then_nothing_is_wrong(lab: Lab) -> None:
    lab.ready()
    assert "Nothing is wrong" in lab.noray("why").stdout
    lab.chat()
