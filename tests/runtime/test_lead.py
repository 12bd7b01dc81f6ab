"""Two controllers of one deployment, as one of them sees it: who gives way, when, and what is said once only."""

from __future__ import annotations

import anyio
import pytest

from supervisor.core.status import status
from supervisor.runtime.hostlink import YIELD_S
from tests.plan.files import alone, deployment, plan
from tests.runtime.stage import Stage

pytestmark = pytest.mark.anyio

OLDER = {"deployment": "lab", "controller": "box:1", "id": "1", "user": "adam", "since": "before", "asked": 4000}
YOUNGER = {**OLDER, "asked": 6000}  # the stage greets with 5001 and up


def stage() -> Stage:
    return Stage(plan(deployment({"replicas": 1}), alone()))


def gave_way(made: Stage) -> bool:
    return any(lost.refused for lost in made.losses())


async def test_the_older_one_leads() -> None:
    made = stage()
    host = made.hosts["gpu01"]
    host.mute = True
    async with made.running():
        await made.until(lambda: host.ops("hello"))
        host.channels[-1].say({"refused": "box:1 runs it", "holder": OLDER})
        await made.until(made.losses)
        (lost,) = made.losses()
        assert lost.refused
        assert lost.held_by == {"deployment": "lab", "controller": "box:1", "user": "adam", "since": "before"}
        assert "noray up --take-over" in lost.why
        await anyio.sleep(3600)
        assert len(host.channels) == 1
        seen = status(made.fleet, deployment="lab", endpoints=(), controller=None, now_s=anyio.current_time())
        assert seen["hosts"][0]["state"] == "refused"
        assert seen["hosts"][0]["held_by"]["user"] == "adam"


async def test_a_younger_one_has_time_to_give_way() -> None:
    made = stage()
    host = made.hosts["gpu01"]
    host.mute = True
    async with made.running():
        begun = anyio.current_time()
        tries = 0
        while not gave_way(made):
            await made.until(lambda tries=tries: gave_way(made) or len(host.ops("hello")) > tries)  # type: ignore[misc]
            tries = len(host.ops("hello"))
            host.channels[-1].say({"refused": "box:1 runs it", "holder": YOUNGER})
            await anyio.sleep(0.01)
        assert anyio.current_time() - begun >= YIELD_S
        assert made.losses()[-1].held_by


async def test_who_led_and_was_put_out_does_not_come_again() -> None:
    made = stage()
    host = made.hosts["gpu01"]
    async with made.running():
        await made.until(made.up)
        host.channels[-1].say({"refused": "box:1 runs it", "holder": YOUNGER})
        await made.until(made.losses)
        assert made.losses()[0].refused
        assert made.losses()[0].held_by


async def test_to_take_over_is_said_once_only() -> None:
    made = stage()
    host = made.hosts["gpu01"]
    async with made.running(take_over=True):
        await made.until(made.up)
        host.cut()
        await made.until(lambda: not made.up())
        await made.until(made.up)
        assert [m.get("take_over") for m in host.ops("hello")] == [True, None]


async def test_it_shows_a_sign_of_life_when_asked() -> None:
    made = stage()
    host = made.hosts["gpu01"]
    async with made.running():
        await made.until(made.up)
        at_s = anyio.current_time()
        host.channels[-1].say({"ask": "ping"})
        await made.until(lambda: any(m["n"] == 0 for m in host.ops("ping")))
        assert anyio.current_time() == at_s
