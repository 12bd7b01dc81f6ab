"""A controller that systemd runs: which one that is, and that nothing of this machine is started inside it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from supervisor.errors import HostUnreachable, NoInterpreter
from supervisor.transport import HostAddress, transport_for, unit
from tests.transport.conftest import ECHO_HOST, RealHost


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0::/system.slice/noray-lab.service\n", "noray-lab.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/noray-lab.service\n", "noray-lab.service"),
        ("4:cpu:/x.service\n1:name=systemd:/system.slice/noray-lab.service\n0::/\n", "noray-lab.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", ""),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", ""),
        ("0::/system.slice/runner.service/job\n", ""),  # delegated: somebody else's business
        ("4:cpu:/system.slice/x.service\n0::/\n", ""),
        ("0::/\n", ""),
    ],
)
def test_the_unit_that_a_cgroup_is_of(text: str, found: str) -> None:
    assert unit.unit_of(text) == found


@pytest.mark.parametrize(("pid", "ours"), [("mine", True), ("1", False), (None, False)])
def test_it_is_ours_only_if_systemd_executed_us(monkeypatch: pytest.MonkeyPatch, pid: str | None, ours: bool) -> None:
    """What a CI runner starts is in the runner's unit, with all of its variables."""
    monkeypatch.setattr(unit, "unit_of", lambda _: "runner.service")
    monkeypatch.setenv("INVOCATION_ID", "0" * 32)
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()) if pid == "mine" else pid)
    assert unit.own_unit() == ("runner.service" if ours else "")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """We are noray-lab.service, and systemd-run notes its words before it does what it is asked."""
    script = tmp_path / "bin" / "systemd-run"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/asked\n'
        f'if [ -e {tmp_path}/deaf ]; then echo "Failed to connect to bus: No such file or directory" >&2; exit 1; fi\n'
        'while [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(unit, "own_unit", lambda: "noray-lab.service")
    monkeypatch.setattr(unit, "environment", lambda _: dict(os.environ))
    return tmp_path / "asked"


def heard(asked: Path) -> list[str]:
    return asked.read_text().splitlines()


@pytest.mark.anyio
async def test_what_a_service_starts_here_its_manager_starts_beside_it(asked: Path, local: RealHost) -> None:
    channel = await local.transport().open("echo", 20)
    await channel.send({"n": 1})
    async for said in channel:
        assert said == {"n": 1}
        break
    words = heard(asked)
    assert {"--pipe", "--wait", "--collect", "--property=KillMode=process"} <= set(words)
    (name,) = [word for word in words if word.startswith("--unit=")]
    assert name.startswith("--unit=noray-link-")
    assert name.endswith("-noray-lab.service")
    assert words[words.index("--") + 1] == sys.executable
    await channel.aclose()
    assert local.still_running() == []


@pytest.mark.anyio
async def test_a_manager_that_cannot_be_asked_is_asked_again_and_says_nothing_of_the_interpreter(
    asked: Path, local: RealHost
) -> None:
    asked.with_name("deaf").touch()
    with pytest.raises(HostUnreachable, match="Failed to connect to bus"):
        await local.transport().open("echo", 20)
    asked.with_name("deaf").unlink()
    gone = transport_for(HostAddress("here", python="/nowhere/python", host_dir=local.address.host_dir), ECHO_HOST)
    with pytest.raises(NoInterpreter):
        await gone.open("echo", 20)
    await gone.aclose()


def test_root_asks_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    words = unit.beside("noray-lab.service", ["python"])
    assert "--uid=root" in words
    assert "--user" not in words


def test_anybody_else_asks_a_manager_of_their_own_which_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert "--user" in unit.beside("noray-lab.service", ["python"])
    with pytest.raises(HostUnreachable, match="enable-linger"):
        unit.environment("here")
