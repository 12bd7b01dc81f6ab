"""The room keeps what it promises: SIGKILL from outside empties it, and there is no way out."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.e2e.procs import environ, everybody, until
from tests.e2e.room import UNSHARE


@pytest.fixture
def argv() -> list[str]:
    if os.geteuid() != 0 or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("making namespaces needs root")
    return [*UNSHARE, sys.executable, str(Path(__file__).with_name("room.py"))]


def test_killed_it_takes_everything_along(argv: list[str]) -> None:
    mark = f"ROOM_TEST={uuid.uuid4().hex}"

    def inside() -> list[int]:
        return [seen.pid for seen in everybody() if mark.encode() in environ(seen.pid) and "sleep" in seen.title]

    script = "setsid sleep 600 & (setsid sleep 600 &) ; exec sleep 600"
    room = subprocess.Popen([*argv, "sh", "-c", script], env=os.environ | dict([mark.split("=")]))
    until(lambda: len([pid for pid in inside() if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]) == 3)
    room.kill()
    room.wait()
    until(lambda: not inside())


def test_there_is_no_way_out(argv: list[str]) -> None:
    routes = subprocess.run([*argv, "ip", "route"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in routes.splitlines()] == ["10.77.0.0/16"]


def test_its_exit_code_is_pytests(argv: list[str]) -> None:
    assert subprocess.run([*argv, "sh", "-c", "exit 5"], check=False).returncode == 5
