"""A skip nobody allowed turns a green run red, and says which; a second try hides no failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = """
import pytest

def test_green():
    pass

@pytest.mark.skip(reason="needs a moon, and it is day")
def test_marked():
    pass

def test_inside():
    pytest.skip("needs a sun")

@pytest.mark.xfail
def test_known_to_fail():
    assert False
"""
MODULE = "import pytest\npytest.skip('needs a star', allow_module_level=True)\n"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_module.py").write_text(MODULE)
    return tmp_path


def run(suite: Path, allowed: str, *words: str) -> subprocess.CompletedProcess[str]:
    (suite / "allowed_skips.txt").write_text(allowed)
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(argv, cwd=suite, env=environment, text=True, capture_output=True, check=False, timeout=60)


def test_skips_are_free_unless_asked(suite: Path) -> None:
    assert run(suite, "").returncode == 0


def test_a_skip_that_is_not_listed_fails_the_run_and_is_named(suite: Path) -> None:
    done = run(suite, "# a comment\nneeds a moon*\n", "--strict-skips")
    assert done.returncode == 1
    assert "test_skips.py::test_inside: needs a sun" in done.stdout
    assert "test_module.py: needs a star" in done.stdout
    assert "test_marked" not in done.stdout
    assert "1 passed, 3 skipped, 1 xfailed" in done.stdout.splitlines()[-1]


def test_listed_skips_pass(suite: Path) -> None:
    assert run(suite, "needs a *\n", "--strict-skips").returncode == 0


def test_a_run_of_nothing_but_a_skipped_module_fails(suite: Path) -> None:
    assert run(suite, "", "--strict-skips", "test_module.py").returncode == 1


FLAKY = """
import pathlib

def test_once_red():
    seen = pathlib.Path(__file__).with_name("seen")
    first = not seen.exists()
    seen.touch()
    assert not first, "the first time"

def test_always_red():
    assert False, "as ever"
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_who_passes_at_the_second_try_says_how_it_failed(suite: Path, workers: str) -> None:
    (suite / "test_flaky.py").write_text(FLAKY)
    (suite / "tests").mkdir()
    for name in ("turns.py", "conftest.py"):
        shutil.copy(Path(__file__).with_name(name), suite / "tests")
    done = run(suite, "", "--reruns=1", f"--numprocesses={workers}", "test_flaky.py")
    assert done.returncode == 1
    assert "AssertionError: the first time" in done.stdout
    assert "1 failed, 1 passed, 2 rerun" in done.stdout.splitlines()[-1]
