"""The composition root builds each use of a controller so that it may do just what that use is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.app import Controller, Use
from supervisor.core.actions import Spawn, Stop
from supervisor.core.facts import HostFound, Phase, Planned, RunState, StopAsked
from supervisor.core.fleet import step_fleet
from supervisor.core.hand import Held
from supervisor.effects.statedir import Files, StateDir

FILES = Files("name: lab\nmodels:\n  - {name: qwen, model: some/model, engine: mocker}\n", Path("deployment.yaml"))


@pytest.mark.parametrize(("use", "starts"), [(Use.SERVE, True), (Use.END, False), (Use.OBSERVE, False)])
def test_a_passing_controller_starts_nothing_whatever_it_hears_first(tmp_path: Path, use: Use, starts: bool) -> None:
    fleet = Controller(FILES, StateDir(tmp_path / "lab"), use).fleet
    fleet, _ = step_fleet(fleet, Planned(FILES.plan().wanted), 0.0)
    _, actions = step_fleet(fleet, HostFound("local", ()), 1.0)  # before anybody said stop
    assert any(isinstance(action, Spawn) for action in actions) is starts


def test_the_next_controller_starts_nothing_that_was_stopped_by_hand(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "lab")
    state.save_held({"qwen": Held("ann", 1)})
    fleet = Controller(FILES, state, Use.SERVE).fleet
    fleet, _ = step_fleet(fleet, Planned(FILES.plan().wanted), 0.0)
    _, actions = step_fleet(fleet, HostFound("local", ()), 1.0)
    assert sorted(a.process for a in actions if isinstance(a, Spawn)) == ["etcd-0", "frontend-0"]


def test_a_passing_controller_for_some_ends_no_others(tmp_path: Path) -> None:
    controller = Controller(FILES, StateDir(tmp_path / "lab"), Use.END, only=["qwen"])
    fleet, _ = step_fleet(controller.fleet, Planned(controller.plan.wanted), 0.0)
    runs = [RunState(f"0{n}", process, Phase.RUNNING, pid=n) for n, process in enumerate(("etcd-0", "frontend-0", "qwen-0"), 1)]
    fleet, found = step_fleet(fleet, controller.heard(HostFound("local", tuple(runs))), 1.0)
    fleet, stopped = step_fleet(fleet, StopAsked(), 2.0)
    assert {a.run for a in (*found, *stopped) if isinstance(a, Stop)} == {"03"}
    assert not fleet.stopped, "it is there until its host says that it is gone"
