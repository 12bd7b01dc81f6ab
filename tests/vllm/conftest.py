"""Real vLLM on the CPU, where somebody asked for it."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import real_parts  # noqa: F401  # the same etcd
from tests.vllm.lab import PYTHON


@pytest.fixture(scope="session", autouse=True)
def asked_for() -> None:
    if not PYTHON:
        pytest.skip("real vLLM on the CPU has an environment of its own: make vllm")
