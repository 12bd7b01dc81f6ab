"""GPUs that nobody gave by hand: planned, given, shown, kept over files and controllers, and given when one comes free."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.core.snapshot import Status
from supervisor.effects.statedir import StateDir
from tests.e2e.lab import Lab, pids
from tests.fakes.nvml import FakeGpus


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus:
    return FakeGpus(tmp_path_factory.mktemp("g"), count=3)


@pytest.fixture
def lab(fake: FakeGpus, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    for key, value in fake.env.items():
        monkeypatch.setenv(key, value)
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        scale(lab, 2)
        yield lab
        lab.down()


def scale(lab: Lab, replicas: int) -> None:
    lab.deployment["models"] = [lab.service(replicas=replicas, args={"speedup_ratio": 10.0, "tensor_parallel_size": 1})]
    lab.write()


def planned(lab: Lab, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.noray("plan", *lab.files, "--json", code=code).stdout)
    return found


def on(seen: Status) -> dict[str, list[int]]:
    return {p["name"]: [gpu["index"] for gpu in p["gpus"]] for p in seen["processes"] if p["service"] == "mock"}


def test_placed_kept_and_found_again(lab: Lab, fake: FakeGpus) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        fake.hold(0, stranger.pid, 700)
        plan = planned(lab)
        assert {row["process"]: row["gpus"] for row in plan["processes"] if row["kind"] == "mocker"} == {
            "mock-0": [1],
            "mock-1": [2],
        }
        assert plan["unplaced"] == {}
        lab.up()
        before = lab.ready()
        assert on(before) == {"mock-0": [1], "mock-1": [2]}

        scale(lab, 3)
        assert f"held by pid {stranger.pid} (sleep 1000" in planned(lab, code=1)["unplaced"]["mock-2"]
        said = lab.noray("up", *lab.files, "--detach", "--yes", code=1)
        lacks = "needs 1 free GPU of one host; nearest is here with 0 of 3 free"
        assert f"no place for mock-2: {lacks} (GPU 0: held by pid {stranger.pid}" in said.stderr
        stranger.kill()
    with_third = lab.ready()
    assert on(with_third) == {"mock-0": [1], "mock-1": [2], "mock-2": [0]}
    assert pids(before).items() <= pids(with_third).items(), "nobody moved"

    lab.kill_controller()
    StateDir(lab.state).save_seats({})
    lab.up()
    adopted = lab.ready()
    assert pids(adopted) == pids(with_third), "what runs says itself where it was placed"
    assert on(adopted) == on(with_third)
