"""The same loop once on asyncio, which production runs on: cancellation differs in detail."""

from __future__ import annotations

import pytest

from tests.plan.files import alone, deployment, plan
from tests.runtime.stage import HEALTHY, Stage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_start_lose_adopt_and_end() -> None:
    stage = Stage(plan(deployment({"replicas": 1}), alone()))
    host = stage.hosts["gpu01"]
    host.http = dict(HEALTHY)
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        run = stage["etcd-0"].run
        host.cut()
        await stage.until(lambda: stage.state("etcd-0") == "unknown")
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        assert stage["etcd-0"].run == run
    assert len(host.ops("start")) == 3
