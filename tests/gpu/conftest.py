"""Real GPUs where there are any, else a fake NVML and a stand-in for vLLM. Each pytest-xdist worker has a GPU of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.e2e import room
from tests.e2e.conftest import real_parts  # noqa: F401  # the same etcd, frontend and mocker
from tests.fakes.nvml import FakeGpus
from tests.gpu.lab import GpuLab

FAKE_GPUS = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def real_gpus() -> int:
    """How many there are, with a vLLM that could use them. In a room their holders would have other pids: none there."""
    if room.MARK in os.environ:
        return 0
    code = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetCount())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return 0
    return int(done.stdout) if done.returncode == 0 else 0


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeGpus | None:
    """None: the GPUs are real."""
    return None if real_gpus() else FakeGpus(tmp_path_factory.mktemp("g"), count=FAKE_GPUS)


@pytest.fixture(scope="session")
def count(fake: FakeGpus | None) -> int:
    return FAKE_GPUS if fake else real_gpus()


@pytest.fixture(scope="session")
def gpu(count: int) -> int:
    """The one that tests of this pytest-xdist worker have for themselves."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % count


@pytest.fixture(scope="session", autouse=True)
def witness(fake: FakeGpus | None) -> Iterator[None]:
    """The sampler, if somebody wants to see what the GPUs went through."""
    file = os.environ.get("NORAY_GPU_SAMPLES")
    if not file or fake is not None or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        yield
        return
    with subprocess.Popen([sys.executable, "-m", "tests.gpu.sampler", file]) as sampler:
        yield
        sampler.kill()


@pytest.fixture
def lab(gpu: int, fake: FakeGpus | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuLab]:
    """A lab with one engine on one GPU, nothing started yet; afterwards nothing is left on it."""
    with GpuLab(tmp_path_factory.mktemp("l"), [gpu], fake) as lab:
        yield lab
        if lab.state.exists():
            lab.down()
        lab.assert_gpus_free()


@pytest.fixture
def pair(count: int, fake: FakeGpus | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuLab]:
    """A lab with two GPUs."""
    if count < 2:
        pytest.skip("needs two GPUs")
    with GpuLab(tmp_path_factory.mktemp("l"), [0, 1], fake) as lab:
        yield lab
        if lab.state.exists():
            lab.down()
        lab.assert_gpus_free()
