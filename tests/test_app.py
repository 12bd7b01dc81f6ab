"""The composition root builds each use of a controller so that it may do just what that use is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.app import Controller, Use
from supervisor.core.actions import Spawn
from supervisor.core.facts import HostFound, Planned
from supervisor.core.fleet import step_fleet
from supervisor.effects.statedir import Files, StateDir

FILES = Files("name: lab\nmodels:\n  - {name: qwen, model: some/model, engine: mocker}\n", Path("deployment.yaml"))


@pytest.mark.parametrize(("use", "starts"), [(Use.SERVE, True), (Use.END, False), (Use.OBSERVE, False)])
def test_a_passing_controller_starts_nothing_whatever_it_hears_first(tmp_path: Path, use: Use, starts: bool) -> None:
    fleet = Controller(FILES, StateDir(tmp_path / "lab"), use).fleet
    fleet, _ = step_fleet(fleet, Planned(FILES.plan().wanted), 0.0)
    _, actions = step_fleet(fleet, HostFound("local", ()), 1.0)  # before anybody said stop
    assert any(isinstance(action, Spawn) for action in actions) is starts
