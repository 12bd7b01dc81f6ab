"""The real loop over scripted hosts, on virtual time."""

from __future__ import annotations

import bisect
import itertools
import json

import anyio
import pytest

from supervisor.core.actions import Spawn, Unwatch, WakeAt, Watch
from supervisor.core.facts import Due, Probed, StopAsked
from supervisor.errors import HostRefused, HostUnreachable
from supervisor.probes.ask import etcd_health
from supervisor.runtime.hostlink import FIRST_AGAIN_S, MAX_AGAIN_S, OPEN_S, PING_S, SILENT_S, HostLink
from tests.plan.files import alone, deployment, hosts, plan
from tests.runtime.stage import HEALTHY, ScriptedHost, Stage

pytestmark = pytest.mark.anyio


def one_host() -> tuple[Stage, ScriptedHost]:
    stage = Stage(plan(deployment({"replicas": 1, "ready": {"stall": 30}}), alone()))
    stage.hosts["gpu01"].http = dict(HEALTHY)
    return stage, stage.hosts["gpu01"]


def spawned(stage: Stage) -> list[str]:
    return [a.process for a in stage.did if isinstance(a, Spawn)]


async def test_from_nothing_to_ready_over_the_wire() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == stage.state("frontend-0") == "ready")
        assert sorted(spawned(stage)) == ["etcd-0", "frontend-0", "qwen-0"]
        starts = {m["spec"]["process"]: m for m in host.ops("start")}
        assert starts["qwen-0"]["spec"]["run"] == stage["qwen-0"].run
        assert starts["qwen-0"]["env"]["DYN_NAMESPACE"] == "lab_qwen"


async def test_everything_stops_in_order_over_the_wire() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("frontend-0") == "ready")
        await stage.tell(StopAsked())
        for count, name in enumerate(("frontend-0", "qwen-0", "etcd-0"), 1):
            await stage.until(lambda count=count: len(host.ops("stop")) == count)  # type: ignore[misc]
            assert stage.state(name) == "draining"
            host.end(name, 0)
        await stage.until(lambda: stage.fleet.stopped)
        order = [host.runs[m["run"]]["process"] for m in host.ops("stop")]
        assert order == ["frontend-0", "qwen-0", "etcd-0"]


async def test_an_exit_comes_with_its_last_words_and_is_followed_by_a_new_run() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        first = stage["etcd-0"].run
        host.end("etcd-0", 0, tail="last words \u00c3\u00a9\n")
        await stage.until(lambda: stage["etcd-0"].restarts == 1)
        assert stage["etcd-0"].tail == "last words é\n"
        await stage.until(lambda: stage.state("etcd-0") == "ready" and stage["etcd-0"].run != first)


async def test_a_frontend_that_comes_back_is_ready_when_it_lists_what_is_served() -> None:
    """Until then it answers a chat with 404, and READY would be a lie."""
    stage, host = one_host()
    name = stage.plan.processes["qwen-0"].served_as
    async with stage.running():
        await stage.until(lambda: stage.state("frontend-0") == "ready")
        stage.perform(Unwatch("qwen-0"))
        await stage.tell(Probed("qwen-0", stage["qwen-0"].run, "serving", ready=True, proven=True))
        first = stage["frontend-0"].run
        host.end("frontend-0", 1)
        await stage.until(lambda: stage["frontend-0"].run != first and stage["frontend-0"].stage.startswith("live, "))
        assert name in stage["frontend-0"].stage
        assert stage.state("frontend-0") == "starting"
        host.http["/v1/models"] = (200, json.dumps({"object": "list", "data": [{"id": name}]}))
        await stage.until(lambda: stage.state("frontend-0") == "ready")


async def test_a_stalled_start_is_stopped() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("qwen-0") == "stopping", within_s=40)
        await stage.until(lambda: host.ops("stop"))
        assert [m["run"] for m in host.ops("stop")] == [stage["qwen-0"].run]
        assert anyio.current_time() >= 30


# --- the line ------------------------------------------------------------------------------------------------------------


async def test_a_lost_line_is_never_an_exit() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        runs = {name: p.run for name, p in stage.fleet.processes.items()}
        host.unreachable = HostUnreachable("no route to gpu01")
        host.cut()
        await stage.until(lambda: set(map(stage.state, runs)) == {"unknown"})
        with anyio.move_on_after(3600):
            await anyio.sleep_forever()
        assert set(map(stage.state, runs)) == {"unknown"}
        assert len(spawned(stage)) == 3
        host.unreachable = None
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        assert {name: p.run for name, p in stage.fleet.processes.items()} == runs
        assert len(host.ops("start")) == 3
        assert not host.ops("stop")
        assert not any(p.restarts for p in stage.fleet.processes.values())


async def test_what_ended_while_the_line_was_broken_is_told_on_return() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        first = stage["etcd-0"].run
        host.cut()
        host.end("etcd-0", 0)
        await stage.until(lambda: stage.state("etcd-0") == "ready" and stage["etcd-0"].run != first)
        assert stage["etcd-0"].restarts == 1


async def test_a_start_that_was_lost_with_the_line_is_no_failure() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        host.mute = True  # from here on nothing arrives
        host.end("etcd-0", 1)
        await stage.until(lambda: stage.state("etcd-0") == "starting")
        lost = stage["etcd-0"].run
        host.cut()
        host.mute = False
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        assert lost not in host.runs
        assert stage["etcd-0"].restarts == 1


async def test_every_connection_greets_with_a_higher_epoch() -> None:
    stage, host = one_host()
    async with stage.running():
        for generation in range(3):
            await stage.until(stage.up)
            assert len(host.ops("hello")) == generation + 1
            host.cut()
            await stage.until(lambda: not stage.up())
        epochs = [m["epoch"] for m in host.ops("hello")]
        assert epochs == sorted(set(epochs))
        assert epochs[0] > 5000


@pytest.mark.parametrize("by", ["ssh", "link"])
async def test_a_host_that_refuses_is_not_asked_again(by: str) -> None:
    stage, host = one_host()
    if by == "ssh":
        host.refuses = HostRefused("gpu01 does not accept this key", hint="ssh-copy-id")
    else:
        host.mute = True
    async with stage.running():
        if by == "link":
            await stage.until(lambda: host.ops("hello"))
            host.channels[-1].say({"refused": "deployment lab has a newer controller"})
        await stage.until(lambda: "gpu01" in stage.fleet.hosts and stage.fleet.hosts["gpu01"].refused)
        await anyio.sleep(3600)
        assert len(stage.losses()) == 1
        assert len(host.channels) == (0 if by == "ssh" else 1)
        assert spawned(stage) == []


async def test_one_slow_host_delays_no_other() -> None:
    stage = Stage(plan(deployment({"replicas": 2}), hosts()))
    stage.hosts["gpu01"].http = dict(HEALTHY)
    stage.hosts["gpu02"].silent = True
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready", within_s=5)
        assert anyio.current_time() < OPEN_S
        await stage.until(lambda: stage.state("qwen-1") == "unknown", within_s=OPEN_S + 1)


async def test_pauses_between_tries_grow_start_small_again_and_stay_short() -> None:
    stage, host = one_host()
    host.unreachable = HostUnreachable("no route to gpu01")
    async with stage.running():
        await anyio.sleep(3600)
        pauses = [after - before for before, after in itertools.pairwise(host.knocks)]
        assert max(pauses[:2]) <= 2 * FIRST_AGAIN_S
        assert MAX_AGAIN_S / 2 <= min(pauses[4:]) <= max(pauses) <= MAX_AGAIN_S <= 2.0, "a host that comes back is met soon"
        host.unreachable = None
        await stage.until(stage.up)
        host.cut()
        await stage.until(lambda: not stage.up())
        await stage.until(stage.up, within_s=1)


async def test_fifty_that_were_lost_at_once_are_not_knocked_at_all_at_once() -> None:
    many = [ScriptedHost(f"h{n}") for n in range(50)]

    async def nobody(fact: object) -> None:
        pass

    async with anyio.create_task_group() as tasks:
        for host in many:
            tasks.start_soon(HostLink(host.name, host.transport, {"deployment": "lab", "epoch": 5}, nobody).run)
        await anyio.sleep(10)
        for host in many:
            host.unreachable = HostUnreachable("the switch is off")
            host.knocks.clear()
            host.cut()
        await anyio.sleep(30)
        tasks.cancel_scope.cancel()
    knocks = sorted(at_s for host in many for at_s in host.knocks)
    steady = [at_s for at_s in knocks if at_s > 20]
    assert len(steady) > 50 * 20 / MAX_AGAIN_S
    assert max(bisect.bisect(steady, at_s + 0.1) - n for n, at_s in enumerate(steady)) < 25


async def test_a_goodbye_that_takes_its_time_delays_neither_the_news_nor_the_next_try() -> None:
    stage, host = one_host()
    host.goodbye_s = 3600
    async with stage.running():
        await stage.until(stage.up)
        at_s = anyio.current_time()
        host.cut()
        await stage.until(lambda: not stage.up())
        assert anyio.current_time() == at_s
        await stage.until(stage.up, within_s=FIRST_AGAIN_S)


async def test_silence_is_a_loss_although_the_line_looks_open() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        silent_s = anyio.current_time()
        host.mute = True
        await stage.until(lambda: stage.state("etcd-0") == "unknown", within_s=SILENT_S + 2 * PING_S)
        assert anyio.current_time() - silent_s >= SILENT_S - PING_S
        host.mute = False
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        assert stage["etcd-0"].restarts == 0


async def test_what_a_host_says_unasked_does_not_make_a_line_that_is_dead_towards_it() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        answer, silent_s = host.answer, anyio.current_time()
        host.programs = {"link": lambda c, m: None if m and m["op"] == "ping" else answer(c, m)}

        async def talk() -> None:
            while True:
                await anyio.sleep(0.5)
                host.channels[-1].say({"gpus": {"gpus": []}})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            await stage.until(lambda: stage.state("etcd-0") == "unknown", within_s=SILENT_S + 2 * PING_S)
            tasks.cancel_scope.cancel()
        lost = stage.losses()[-1]
        assert lost.heard_s is not None
        assert silent_s - PING_S <= lost.heard_s <= silent_s + PING_S


async def test_pings_keep_a_quiet_line_alive() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        await anyio.sleep(600)
        assert len(host.ops("ping")) >= 250
        assert stage.losses() == []


# --- requests ------------------------------------------------------------------------------------------------------------


async def test_a_request_without_an_answer_ends_by_itself() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(stage.up)
        answer = host.answer
        host.programs = {"link": lambda c, m: None if m and m["op"] == "http" else answer(c, m)}
        begun = anyio.current_time()
        with pytest.raises(HostUnreachable, match="did not answer within 3 s"):
            await stage.links["gpu01"].http("127.0.0.1", 1, etcd_health(), timeout_s=2.0)
        assert anyio.current_time() - begun == pytest.approx(3.0)
        assert stage.up()


async def test_a_request_without_a_line_fails_at_once() -> None:
    stage, host = one_host()
    host.silent = True
    async with stage.running():
        begun = anyio.current_time()
        with pytest.raises(HostUnreachable, match="not connected"):
            await stage.links["gpu01"].request({"op": "tail"})
        assert anyio.current_time() == begun


async def test_an_answer_that_comes_too_late_finds_nobody() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(stage.up)
        host.channels[-1].say({"reply": 999_999, "error": None, "status": 200, "body": ""})
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        assert stage.losses() == []


# --- timers and watches --------------------------------------------------------------------------------------------------


def dues(stage: Stage, run: str) -> list[float]:
    return [1.0 for f in stage.facts if isinstance(f, Due) and f.run == run]


async def test_a_later_alarm_replaces_the_earlier() -> None:
    stage, _ = one_host()
    async with stage.running():
        now = anyio.current_time()
        stage.perform(WakeAt("p", "early", now + 5))
        stage.perform(WakeAt("q", "other", now + 5))
        stage.perform(WakeAt("p", "late", now + 10))
        await anyio.sleep(20)
        assert (len(dues(stage, "early")), len(dues(stage, "other")), len(dues(stage, "late"))) == (0, 1, 1)


async def test_nobody_looks_any_more_after_unwatch() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("etcd-0") == "ready")
        for name in stage.fleet.processes:
            stage.perform(Unwatch(name))
        await anyio.sleep(1)
        looked = len(host.ops("http"))
        await anyio.sleep(60)
        assert len(host.ops("http")) == looked
        stage.perform(Watch("etcd-0", stage["etcd-0"].run))
        await anyio.sleep(3)
        assert len(host.ops("http")) > looked


async def test_after_a_reconnection_each_run_is_looked_at_once_and_not_twice() -> None:
    stage, host = one_host()
    async with stage.running():
        await stage.until(lambda: stage.state("frontend-0") == "ready")
        for _ in range(3):
            host.cut()
            await stage.until(lambda: not stage.up())
            await stage.until(lambda: stage.state("frontend-0") == "ready")
        before = len(lives(host))
        await anyio.sleep(20)
        assert 9 <= len(lives(host)) - before <= 11  # every 2 s, by one watch


def lives(host: ScriptedHost) -> list[object]:
    return [m for m in host.looks if m.get("path") == "/live"]
