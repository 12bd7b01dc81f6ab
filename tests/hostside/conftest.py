"""Hosts for the tests: with the running interpreter, or with each one that the host side is promised to run on."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.nvml import FakeGpus
from tests.hostside.driver import Host, Link

VERSIONS = ("3.9", "3.12")


@functools.cache
def interpreter(version: str) -> str | None:
    """A working Python of that version: NORAY_PYTHON_3_9 and the like, PATH, pyenv."""
    names = [os.environ.get("NORAY_PYTHON_" + version.replace(".", "_")), shutil.which(f"python{version}")]
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for name in [*filter(None, names), *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python{version}"))]:
        # A shim of pyenv may exist and run nothing; what it runs is what we want, so that pids are the interpreter's.
        ask = [name, "-I", "-S", "-c", "import sys; print(sys.version_info[:2] + (sys.executable,))"]
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
        if done.returncode == 0 and eval(done.stdout)[:2] == tuple(map(int, version.split("."))):
            return str(eval(done.stdout)[2])
    return None


@pytest.fixture(params=["running", *VERSIONS])
def python(request: pytest.FixtureRequest) -> str:
    if request.param == "running":
        return sys.executable
    found = interpreter(request.param)
    if found is None:
        pytest.skip(f"no Python {request.param} on this machine")
    return found


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """Three of them, for every host that is made after this."""
    fake = FakeGpus(tmp_path / "gpus", count=3)
    for key, value in fake.env.items():
        monkeypatch.setenv(key, value)  # what the box, and so every link, is started with
    return fake


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def link(host: Host) -> Link:
    return host.link()


@pytest.fixture
def any_host(python: str) -> Iterator[Host]:
    made = Host(python)
    yield made
    made.close()


@pytest.fixture
def any_link(any_host: Host) -> Link:
    """A link of each Python that the host side may meet."""
    return any_host.link()
