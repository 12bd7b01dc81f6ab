"""Where state is looked for: root finds what the machine's service keeps, and only where nothing else was said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.effects import statedir


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service's deployment, another of our own, and one of both."""
    monkeypatch.delenv("NORAY_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(statedir, "SERVICE", tmp_path / "service")
    for place in ("service/lab", "service/both", "state/noray/own", "state/noray/both"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "deployment.json").touch()
    (tmp_path / "service" / "0123abcd").mkdir()  # of the host side
    return tmp_path / "service"


def touched(path: Path) -> Path:
    statedir.StateDir(path).touch()
    return path / "alive"


def test_root_finds_both_and_prefers_where_a_controller_lived_last(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [state.deployment for state in statedir.known()] == ["both", "lab", "own"]
    assert statedir.of("lab").path == service / "lab"
    assert statedir.choose("lab").path == service / "lab"
    mine, services = statedir.root() / "both", service / "both"
    for later, earlier in ((mine, services), (services, mine)):
        os.utime(touched(later), (2e9, 2e9))
        os.utime(touched(earlier), (1e9, 1e9))
        assert statedir.of("both").path == later
    assert statedir.of("new").path == statedir.root() / "new"


def test_nobody_else_looks_there_nor_does_who_was_told_where(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [state.deployment for state in statedir.known()] == ["both", "own"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("NORAY_STATE", str(service.parent / "elsewhere"))
    assert statedir.known() == []
    assert statedir.of("lab").path == service.parent / "elsewhere" / "lab"
