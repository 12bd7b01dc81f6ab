"""`noray events` over a record as a controller keeps it; no host is there to be asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supervisor.cli import main
from supervisor.effects.statedir import Files, StateDir
from supervisor.effects.store import Row

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = int(time.time() * 1000)  # of the import; the suite may take its time until it comes to this file
BORN = Row(NOW_MS - 36_000_000, "born", "pid 7", "gpu01", "qwen-0", "r1", 1)
EXIT = Row(NOW_MS - 60_000, "exit", "SIGKILL", "gpu01", "qwen-0", "r1", 2)
OTHER = Row(NOW_MS - 90_000, "born", "pid 8", "gpu02", "big-0", "r2", 1)  # heard of last: its host was away
LOST = Row(NOW_MS - 30_000, "host", "silent", "gpu02")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    monkeypatch.setenv("NORAY_STATE", str(tmp_path))
    made = StateDir(tmp_path / "lab")
    made.save(Files("name: lab\nmodels:\n  - {name: qwen, model: m, engine: mocker}\n", Path("deployment.yaml")))
    with made.writing() as store:
        store.write({}, [BORN, EXIT, LOST, OTHER])
    return made


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[str, str]]:
    """(run or host, what) of each event, in order."""
    assert main(["events", "--json", *words]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [(row["run"] or row["host"], row["what"]) for row in rows]


def test_all_by_time_whenever_they_were_heard_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == [("r1", "born"), ("r2", "born"), ("r1", "exit"), ("gpu02", "host")]
    assert told(capsys, "-n", "1") == [("gpu02", "host")]
    assert told(capsys, "-n", "0") == []


def test_of_a_process_a_service_a_host_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "qwen-0") == told(capsys, "qwen") == told(capsys, "r1") == [("r1", "born"), ("r1", "exit")]
    assert told(capsys, "gpu02") == [("r2", "born"), ("gpu02", "host")]
    assert main(["events", "qwen-7"]) == 2
    assert "qwen-7" in capsys.readouterr().err


def test_since(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--since", "5h") == [("r2", "born"), ("r1", "exit"), ("gpu02", "host")]


def test_following_tells_what_comes_once_and_ctrl_c_is_its_end(state: StateDir) -> None:
    argv = [sys.executable, "-m", "supervisor", "events", "-f", "--json", "-n", "1", "gpu01"]
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest itself may be a job in the background
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) as following:
        signal.signal(signal.SIGINT, heeded)
        try:
            assert following.stdout is not None
            assert json.loads(following.stdout.readline())["what"] == "exit"
            for run in ("r3", "r4"):
                with state.writing() as store:
                    store.write({}, [LOST, Row(NOW_MS, "born", "pid 9", "gpu01", "qwen-0", run, 1), EXIT])
                assert json.loads(following.stdout.readline())["run"] == run
            following.send_signal(signal.SIGINT)
            assert following.communicate(timeout=20)[0] == ""
        finally:
            following.kill()
    assert following.returncode == 0
