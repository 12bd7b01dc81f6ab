"""The controller is SIGKILLed after each step of a start: there are 0 or 1 live runs of a process, and never two.

The start protocol names its steps at `spawn.reached`. A copy of the package is sabotaged there: the first keeper that
reaches the step kills the controller above it. (Keeper and link killed at each step: tests/hostside.)
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.lab import PATIENCE_S, ROOT, Lab
from tests.e2e.procs import everybody

STEPS = ("made", "claimed", "listening", "forked", "recorded", "released", "running")
HONEST = '''    """A crash point."""\n'''
SABOTAGE = """\
    if step == {step!r}:
        try:
            os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))  # once
        except FileExistsError:
            return
        link = procfs.read(os.getppid())
        if link is not None:
            os.kill(link.ppid, signal.SIGKILL)
"""


def sabotaged(place: Path, step: str) -> Path:
    """A copy of the package in which reaching `step` kills the controller."""
    shutil.copytree(ROOT / "supervisor", place / "supervisor", ignore=shutil.ignore_patterns("__pycache__"))
    spawn = place / "supervisor" / "hostside" / "spawn.py"
    text = spawn.read_text()
    assert text.count(HONEST) == 1
    spawn.write_text(text.replace(HONEST, SABOTAGE.format(step=step, flag=str(place / "reached"))))
    return place


def leaders(lab: Lab) -> Counter[str]:
    """How many living processes each run's command line has; those that wait to become one look like their keeper."""
    marks = {"etcd": f":{lab.etcd_port} ", "frontend": f"--http-port {lab.http_port} "}
    return Counter(
        name for seen in everybody() if seen.state not in "ZX" for name, mark in marks.items() if mark in f"{seen.title} "
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_controller_killed_in_the_middle_of_a_start_leaves_one_run_or_none(lab: Lab, tmp_path: Path, step: str) -> None:
    lab.deployment["models"][0]["replicas"] = 0
    lab.write()
    env = {**lab.env, "PYTHONPATH": str(sabotaged(tmp_path, step))}
    argv = [sys.executable, "-m", "supervisor", "serve", *lab.files]
    died = subprocess.run(argv, cwd=lab.place, env=env, capture_output=True, check=False, timeout=PATIENCE_S)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert (tmp_path / "reached").exists()
    assert max(leaders(lab).values(), default=0) <= 1
    lab.up()
    seen = lab.ready()
    assert leaders(lab) == {"etcd": 1, "frontend": 1}
    assert {p["name"]: p["restarts"] for p in seen["processes"]} == {"etcd-0": 0, "frontend-0": 0}
    lab.down()
