"""After many reconnections and restarts a controller holds no more than after a few. Memory: `python -m benchmarks drift`."""

from __future__ import annotations

import pytest
import trio

from supervisor.core.actions import Spawn
from tests.plan.files import alone, deployment, plan
from tests.runtime.stage import HEALTHY, Stage

pytestmark = pytest.mark.anyio

TIMES = 60


def tasks() -> int:
    """That there are in this run of trio."""
    todo, count = [trio.lowlevel.current_root_task()], 0
    while todo:
        task = todo.pop()
        count += 1
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks] if task else []
    return count


def held(stage: Stage) -> dict[str, int]:
    """The sizes of all that is kept of what comes and goes."""
    link, did = stage.links["gpu01"], stage.perform
    assert link._out is not None
    return {
        "tasks": tasks(),
        "replies": len(link._replies),
        "watches of the link": len(link._watches),
        "unsent": link._out.statistics().current_buffer_used,
        "timers": len(did._timers),
        "watches": len(did._watches),
        "bells": len(did._fronts._bells),
        "frontends": len(did._fronts._views),
        "facts not taken in": stage._inbox.statistics().current_buffer_used,
        "surplus": len(stage.fleet.surplus),
    }


async def test_a_controller_holds_no_more_after_many_reconnections_and_restarts() -> None:
    stage = Stage(plan(deployment({"replicas": 1, "restart": {"window": 60, "budget": 99}}), alone()))
    host = stage.hosts["gpu01"]
    host.http = dict(HEALTHY)

    async def round_() -> None:
        host.cut()
        await stage.until(lambda: not stage.up())
        await stage.until(lambda: stage.state("frontend-0") == "ready" and stage.state("qwen-0") == "starting")
        spawned = len([each for each in stage.did if isinstance(each, Spawn)])
        host.end("qwen-0")
        await stage.until(lambda: len([each for each in stage.did if isinstance(each, Spawn)]) > spawned, 120)
        await stage.until(lambda: stage["qwen-0"].seen is not None and stage.state("qwen-0") == "starting")
        await trio.sleep(10)  # whatever asks by itself has asked

    async with stage.running():
        await stage.until(lambda: stage.state("frontend-0") == "ready")
        for _ in range(6):
            await round_()
        before = held(stage)
        for _ in range(TIMES):
            await round_()
        assert stage["qwen-0"].restarts == TIMES + 6
        assert len(host.ops("hello")) == TIMES + 7
        assert held(stage) == before
        assert max(len(each.restarts_s) for each in stage.fleet.processes.values()) < 12  # those of a window
