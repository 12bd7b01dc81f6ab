"""The mutant runner on a toy tree: it must not call a survivor caught, nor a broken run a catch."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "mutants" / "run.py"

CODE = "def double(n):\n    return n * 2\n\n\ndef half(n):\n    return n // 2\n"
TESTS = """
import subprocess, sys
import pytest
from supervisor.sums import double, half

@pytest.mark.parametrize("n", [0, 3])
def test_double(n):
    assert double(n) == n + n

def test_double_in_a_child_process():
    words = [sys.executable, "-c", "from supervisor.sums import double; print(double(3))"]
    assert subprocess.run(words, env={}, cwd="/", capture_output=True, text=True, check=True).stdout == "6\\n"

def test_half_of_nothing():
    assert half(0) == 0

@pytest.fixture
def four():
    value = double(3) - 2
    assert value == 4
    return value

def test_with_a_fixture(four):
    assert four

def test_that_leaks_when_sabotaged():
    if double(3) != 6:
        subprocess.Popen(["setsid", "--fork", "env", "-i", "/bin/sleep", LEAK_S])
        assert False
"""
SUM = ("n * 2", "n + 2")  # right for 2 only


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    leak_s = str(300 + os.getpid() / 1e8)  # a sleep that can be told from any other
    files = {
        "pyproject.toml": "[tool.pytest.ini_options]\n",
        "supervisor/__init__.py": "",
        "supervisor/sums.py": CODE,
        "tests/test_sums.py": f"LEAK_S = {leak_s!r}\n{TESTS}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "tests" / "mutants").mkdir()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def add(toy: Path, name: str, *caught_by: str, sabotage: tuple[str, str] = SUM, code: str = CODE) -> None:
    header = ["# guarantee: sums are right", *(f"# caught by: tests/test_sums.py::{test}" for test in caught_by)]
    lines = code.splitlines(keepends=True), code.replace(*sabotage).splitlines(keepends=True)
    diff = difflib.unified_diff(*lines, "a/supervisor/sums.py", "b/supervisor/sums.py")
    (toy / "tests" / "mutants" / f"{name}.patch").write_text("\n".join([*header, "".join(diff)]))


def run(toy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(RUNNER), "--root", str(toy), *words]
    return subprocess.run(argv, text=True, capture_output=True, check=False, timeout=120)


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    words = (line.split() for line in done.stdout.splitlines())
    return {line[3]: line[0] for line in words if len(line) > 3 and line[0] in ("caught", "survived", "broken")}


def test_caught_means_that_every_test_named_failed(toy: Path) -> None:
    add(toy, "one-case-of-a-parametrised-test", "test_double")
    add(toy, "in-a-child-without-environment", "test_double_in_a_child_process", "test_double")
    done = run(toy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(verdicts(done).values()) == {"caught"}
    assert done.stdout.splitlines()[-1] == "mutants: 2 of 2 caught"


def test_a_survivor_is_reported(toy: Path) -> None:
    add(toy, "caught", "test_double")
    add(toy, "untested", "test_half_of_nothing", sabotage=("n // 2", "n // 3"))
    add(toy, "half-caught", "test_double", "test_half_of_nothing")
    done = run(toy)
    assert done.returncode == 1
    assert verdicts(done) == {"caught": "caught", "untested": "survived", "half-caught": "survived"}
    assert "did not fail: tests/test_sums.py::test_half_of_nothing" in done.stdout


def test_a_broken_run_is_no_catch(toy: Path) -> None:
    add(toy, "stale", "test_double", code=CODE.replace("n * 2", "n * 3"), sabotage=("n * 3", "n + 2"))
    add(toy, "no-syntax", "test_double", sabotage=("n * 2", "n *"))
    add(toy, "only-a-fixture", "test_with_a_fixture")
    add(toy, "headless")
    done = run(toy)
    assert done.returncode == 1
    assert verdicts(done) == {
        "stale": "broken",
        "no-syntax": "broken",
        "only-a-fixture": "broken",
        "headless": "broken",
    }
    assert "the patch does not apply" in done.stdout
    assert "the header lacks" in done.stdout


def test_a_test_that_is_red_without_sabotage_judges_nothing(toy: Path) -> None:
    (toy / "supervisor" / "sums.py").write_text(CODE.replace("n * 2", "n * 3"))
    add(toy, "caught", "test_double")
    done = run(toy)
    assert done.returncode == 1
    assert "cannot judge" in done.stdout


def test_what_a_sabotaged_tree_leaks_is_killed(toy: Path) -> None:
    add(toy, "leaky", "test_that_leaks_when_sabotaged")
    leak_s = (toy / "tests" / "test_sums.py").read_text().splitlines()[0].split("'")[1]
    done = run(toy)
    assert done.returncode == 0, done.stdout + done.stderr
    time.sleep(0.1)
    commands = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                commands.append((process / "cmdline").read_bytes())
            except OSError:
                continue
    assert not [command for command in commands if leak_s.encode() in command]


def test_an_unknown_name_is_bad_usage(toy: Path) -> None:
    assert run(toy, "nobody").returncode == 2
