"""What a worker with a canary is called, from the first look at its port to the last; on virtual time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import anyio
import pytest
from anyio.abc import TaskGroup

from supervisor.core.cordon import Aside
from supervisor.core.facts import Fact, Probed
from supervisor.probes import proof
from supervisor.probes.ask import HttpRequest
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.views import Fronts
from supervisor.runtime.watch import Subject, watch
from tests.runtime.looking import watches

pytestmark = pytest.mark.anyio

SYSTEM, RPC, HTTP = 18000, 18001, 8000
MINE, OTHER = 31, 32


class World:
    """What the processes would answer; it stands for the link that asks them."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.name, self.tasks, self._ids = "gpu01", tasks, itertools.count()
        self.looks = self.news = 0  # of the host by itself, and what of it it told
        self.asked: list[int] = []  # ports, by the controller
        self.posted = 0  # completions
        self.health: str | None = None  # of the endpoint; None: the port is closed
        self.answers = MINE  # who takes the next completion; 0: nobody can
        self.completed = 0
        self.log_end = 0
        self.moved: dict[str, int] = {}
        self.front = True
        self.registered = True
        self.aside = Aside.NO
        self.nobody = False  # shown by the frontend, as while etcd is away
        self.listed = True
        self.role, self.task = "", "completion"
        self.prefill = False  # another worker, of that role
        self.fronts = Fronts(list)
        self.told: list[Probed] = []
        self._news = anyio.Event()

    async def http(self, address: str, port: int, ask: HttpRequest, timeout_s: float = 5.0) -> tuple[int, bytes]:
        self.asked.append(port)
        return self.answer(port, ask.path)

    def answer(self, port: int, path: str) -> tuple[int, bytes]:
        if port == SYSTEM and self.health is None:
            return 0, b"connection refused"
        match port, path:
            case 18000, "/health":
                endpoints = {"generate": self.health} if self.health else {}
                uptime = {"secs": self.looks, "nanos": self.looks}  # always another
                body = json.dumps({"uptime": uptime, "endpoints": endpoints}, separators=(",", ":"))
                return 503 if self.health != "ready" else 200, body.encode()
            case 2379, "/health":
                return (200, b'{"health":"true"}') if self.health else (503, b'{"health":"false","reason":"RAFT NO LEADER"}')
            case 18000, "/metrics":
                labels = f'{{dynamo_endpoint="generate",worker_id="{MINE:x}"}}'
                names = ("requests_total", "request_duration_seconds_count")
                return 200, "\n".join(f"dynamo_component_{name}{labels} {self.completed}" for name in names).encode()
            case 8000, "/health":
                where = {"transport": {"tcp": f"127.0.0.1:{RPC}/1f/generate"}, "instance_id": MINE}
                component = "prefill" if self.role == "prefill" else "backend"
                instance = {"namespace": "lab_q", "component": component, "endpoint": "generate", **where}
                other = {**instance, "transport": {"tcp": "127.0.0.1:9/20/generate"}, "instance_id": OTHER}
                there = [] if self.nobody else [instance] if self.registered else [other]
                there += [{**other, "component": "prefill"}] if self.prefill else []
                return 200, json.dumps({"instances": there}).encode()
            case 8000, "/v1/models":
                return 200, json.dumps({"data": [{"id": "q"}] if self.listed else []}).encode()
            case _, "/v1/embeddings" if self.task == "embedding":
                return self._answered({"data": [{"embedding": [0.5]}]})
            case _, "/v1/completions" if self.task == "completion":
                where = {"nvext": {"worker_id": {"decode_worker_id": self.answers}}}
                return self._answered({"choices": [{"finish_reason": "length"}], **where})
            case _:
                return 404, b'{"message": "Model not found"}'

    def _answered(self, body: dict[str, Any]) -> tuple[int, bytes]:
        self.posted += 1
        if not self.answers:
            return 500, b'{"message": "the engine is gone"}'
        self.completed += self.answers == MINE
        return 200, json.dumps(body).encode()

    @contextmanager
    def watching(
        self, what: Mapping[str, Any], news: Callable[[Mapping[str, Any]], None]
    ) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        def heard(said: Mapping[str, Any]) -> None:
            self.news += 1
            news(said)

        def look(done: Callable[[dict[str, Any]], None]) -> None:
            if "run" in what:
                self.log_end += 1  # it always has something to say
                return done({"end": self.log_end, **self.moved})
            self.looks += 1
            status, body = self.answer(what["port"], what["path"])
            return done({"status": status, "body": body.decode(), "error": "" if status else body.decode()})

        host, number = watches(self.tasks, heard), next(self._ids)
        host.begin({**what, "id": number}, look)
        yield lambda what: host.begin({**what, "id": number}, look)
        host.end({"id": number})

    asking, answered = staticmethod(HostLink.asking), staticmethod(HostLink.answered)

    async def tell(self, fact: Fact) -> None:
        assert isinstance(fact, Probed)
        self.told.append(fact)
        self._news.set()
        self._news = anyio.Event()

    async def until(self, true: Callable[[Probed], bool]) -> Probed:
        """The next thing told for which it is true."""
        with anyio.fail_after(60):
            while True:
                await self._news.wait()
                if true(self.told[-1]):
                    return self.told[-1]

    async def after(self, virtual_s: float) -> Probed:
        """What it is called then."""
        await anyio.sleep(virtual_s)
        return self.told[-1]


async def watching(
    play: Callable[[World], Awaitable[None]],
    was_ready: bool = False,
    kind: str = "vllm",
    role: str = "",
    task: str = "completion",
) -> None:
    async with anyio.create_task_group() as tasks:
        world = World(tasks)
        world.role, world.task = role, task
        link = cast(HostLink, world)
        fronts = world.fronts = Fronts(lambda: [(link, "127.0.0.1", HTTP)] if world.front else [])
        subject = Subject(
            process="q-0", run="r1", kind=kind, link=link, address="127.0.0.1",
            ports={"system": SYSTEM, "rpc": RPC, "client": 2379}, role=role,
            task=task, served_as="q", stall_s=300.0, fronts=fronts, was_ready=was_ready, served=lambda: frozenset("q"),
            aside=lambda: world.aside,
        )  # fmt: skip
        tasks.start_soon(fronts.run)
        tasks.start_soon(watch, subject, world.tell)
        await play(world)
        tasks.cancel_scope.cancel()


async def test_a_completion_is_proof_enough_before_the_canary_has_asked() -> None:
    async def play(world: World) -> None:
        assert (await world.until(lambda p: True)).stage == "loading"
        world.health = "notready"
        told = await world.until(lambda p: p.stage != "loading")
        assert (told.ready, told.proven, told.well, told.instance) == (True, True, True, str(MINE))
        assert (await world.after(60)).ready, "and it stays so"

    await watching(play)


async def test_an_answer_by_another_is_not_while_its_own_health_says_no() -> None:
    """An engine that hangs, met by a new controller, beside one that answers."""

    async def play(world: World) -> None:
        world.health, world.answers = "notready", OTHER
        told = await world.after(30)
        assert (told.ready, told.well, told.stage) == (False, False, proof.NEVER_ASKED)
        world.health = "ready"
        told = await world.after(2)
        assert (told.ready, told.well, told.proven) == (True, True, False)

    await watching(play)


async def test_once_its_health_has_said_yes_a_no_is_a_no() -> None:
    async def play(world: World) -> None:
        world.health = "ready"
        await world.until(lambda p: p.proven)
        world.health = "notready"
        told = await world.until(lambda p: not p.ready)
        assert (told.well, told.stage) == (False, "endpoint generate is notready")
        world.health = None
        told = await world.after(2)
        assert (told.ready, told.well) == (False, False)
        assert "does not answer" in told.stage, "it is not loading, it is ill"

    await watching(play)


async def test_a_no_is_a_no_where_an_earlier_controller_had_heard_the_yes() -> None:
    async def play(world: World) -> None:
        world.health, world.answers = "notready", OTHER
        told = await world.until(lambda p: True)
        assert (told.ready, told.well) == (False, False)
        assert told.stage != proof.NEVER_ASKED

    await watching(play, was_ready=True)


async def test_without_a_frontend_it_is_not_ready_and_not_ill() -> None:
    async def play(world: World) -> None:
        world.health = "ready"
        await world.until(lambda p: p.proven)
        world.front = False
        told = await world.until(lambda p: not p.ready)
        assert (told.well, told.stage) == (True, "loaded; waiting for a frontend")

    await watching(play)


async def test_a_prefill_worker_is_ready_when_it_is_well_and_registered_and_is_asked_nothing() -> None:
    async def play(world: World) -> None:
        world.listed = world.registered = False
        world.health = "notready"
        assert not (await world.until(lambda p: "notready" in p.stage)).ready
        world.health = "ready"
        assert not (await world.until(lambda p: p.stage == "loaded, not registered yet")).ready
        world.registered = True
        told = await world.until(lambda p: p.ready)
        assert (told.proven, told.well, told.stage, told.instance) == (True, True, "serving", str(MINE))
        assert (await world.after(60)).ready, "that nobody decodes is not its fault"
        assert not world.posted
        world.health = "notready"
        assert not (await world.until(lambda p: not p.ready)).well

    await watching(play, role="prefill")


async def test_an_embedding_worker_is_asked_for_an_embedding_and_its_own_counters_say_who_answered() -> None:
    async def play(world: World) -> None:
        world.health, world.answers = "notready", OTHER
        told = await world.after(30)
        assert (told.ready, told.well, told.stage) == (False, False, proof.NEVER_ASKED)
        world.answers = MINE
        assert (await world.until(lambda p: p.ready)).proven

    await watching(play, task="embedding")


async def test_a_classifier_is_ready_when_it_is_well_registered_and_listed_and_is_asked_nothing() -> None:
    async def play(world: World) -> None:
        world.health, world.listed = "notready", False
        assert not (await world.until(lambda p: "notready" in p.stage)).ready
        world.health = "ready"
        assert not (await world.until(lambda p: "not listed yet" in p.stage)).ready
        world.listed = True
        assert (await world.until(lambda p: p.ready)).proven
        assert not world.posted

    await watching(play, task="classification")


async def test_a_decode_worker_says_that_it_lacks_a_prefill() -> None:
    async def play(world: World) -> None:
        world.health, world.listed = "ready", False
        told = await world.until(lambda p: p.stage == "registered, q not listed yet: no prefill")
        assert (told.ready, told.well) == (False, True)
        world.prefill = True
        await world.until(lambda p: p.stage == "registered, q not listed yet")
        world.listed = True
        assert (await world.until(lambda p: p.ready)).proven
        assert world.posted

    await watching(play, role="decode")


async def test_a_frontend_that_has_lost_etcd_says_nothing_about_who_serves() -> None:
    async def play(world: World) -> None:
        world.health = "ready"
        await world.until(lambda p: p.proven)
        world.nobody = True
        assert (await world.after(60)).ready, "it serves the model still: traffic flows"
        world.listed = False
        assert (await world.until(lambda p: not p.ready)).well

    await watching(play)


async def test_cordoned_it_stays_ready_and_is_not_asked_to_prove_anything() -> None:
    async def play(world: World) -> None:
        world.health = "ready"
        await world.until(lambda p: p.proven)
        world.aside, world.registered = Aside.OUT, False
        told = await world.until(lambda p: p.stage == "cordoned")
        assert (told.ready, told.well, told.instance) == (True, True, str(MINE))
        assert all(each.ready for each in world.told[world.told.index(told) :])
        world.health = "notready"
        assert not (await world.until(lambda p: not p.ready)).well, "its own health still counts"
        world.health, world.aside, world.registered = "ready", Aside.NO, True
        await world.until(lambda p: p.stage == "serving")

    await watching(play)


async def test_a_new_run_of_it_is_registered_before_it_can_be_taken_out() -> None:
    async def play(world: World) -> None:
        world.health, world.aside, world.registered = "ready", Aside.SOON, False
        told = await world.after(10)
        assert (told.ready, told.instance, told.stage) == (False, "", "loaded, not registered yet")
        world.registered = True
        told = await world.until(lambda p: p.ready)
        assert (told.instance, told.stage, world.completed) == (str(MINE), "cordoned", 0)

    await watching(play)


async def test_a_completion_that_fails_is_its_own_fault_until_it_has_served() -> None:
    """Later it may be another's, whom it was routed to."""

    async def play(world: World) -> None:
        world.health, world.answers = "ready", 0
        told = await world.after(2)
        assert (told.ready, told.well) == (False, False)
        assert "the engine is gone" in told.stage
        world.answers = OTHER
        assert (await world.after(2)).ready
        world.answers = 0
        told = await world.until(lambda p: not p.ready)
        assert (told.well, "the engine is gone" in told.stage) == (True, True)

    await watching(play)


async def test_what_it_writes_is_progress_only_until_it_has_loaded() -> None:
    async def play(world: World) -> None:
        await world.until(lambda p: p.progress >= 3)
        world.health, world.answers = "notready", OTHER
        at = (await world.until(lambda p: p.stage != "loading")).progress
        assert (await world.after(60)).progress == at

    await watching(play)


async def test_what_moves_while_it_loads_is_progress_and_cpu_time_another() -> None:
    async def play(world: World) -> None:
        first = await world.until(lambda p: p.progress > 0)
        assert (first.stage, first.busy, first.moves) == ("loading", 0, "")
        world.moved = {"read": 12_340_000_000, "cpu_s": 7, "gpu_mib": 39_100}
        loads = await world.until(lambda p: p.busy > 0)
        assert loads.moves == "12.3 GB read, 41.0 GB on its GPUs, 7 s of CPU"
        assert loads.progress - first.progress > 12_340_000_000 + (39_100 << 20) - 1
        world.moved |= {"cpu_s": 9}
        at = loads.progress - world.log_end
        assert (await world.until(lambda p: p.busy == 9)).progress - world.log_end == at, "computing is no progress"
        world.health, world.answers = "notready", OTHER
        assert (await world.until(lambda p: p.stage != "loading")).moves == ""

    await watching(play)


async def test_while_nothing_happens_to_it_nothing_is_asked_and_nothing_told() -> None:
    async def play(world: World) -> None:
        world.health = "ready"
        await world.until(lambda p: p.proven)
        await world.after(2)  # the last look of one that starts
        world.asked.clear()
        told, news, looks = len(world.told), world.news, world.looks
        await world.after(60)
        assert (len(world.told), world.news) == (told, news)
        assert 29 <= world.looks - looks <= 31, "by its own host, every 2 s"
        assert set(world.asked) == {HTTP}
        assert len(world.asked) <= 2 * 31, "the frontend, for everybody"

    await watching(play)


@pytest.mark.parametrize("change", [("health", "notready"), ("front", False)])
async def test_a_change_is_seen_within_2_s_once_ready_and_at_once_while_starting(change: tuple[str, Any]) -> None:
    async def play(world: World) -> None:
        await world.after(1)
        for at, key, value, within_s in ((1.0, "health", "ready", 0.11), (30.0, *change, 2.01), (31.0, *undone(change), 0.11)):
            await anyio.sleep_until(began_s + at)
            was, at_s = world.told[-1].ready, anyio.current_time()
            setattr(world, key, value)
            await world.until(lambda p, was=was: p.ready != was)  # type: ignore[misc]
            assert anyio.current_time() - at_s < within_s

    def undone(change: tuple[str, Any]) -> tuple[str, Any]:
        return change[0], "ready" if change[0] == "health" else True

    began_s = anyio.current_time()
    await watching(play)


async def test_who_only_waits_for_others_says_so_again_and_again() -> None:
    """Or the time without progress would run out on it."""

    async def play(world: World) -> None:
        world.health, world.front = "ready", False
        await world.until(lambda p: p.well)
        told = len(world.told)
        await world.after(60)
        assert len(world.told) - told >= 50

    await watching(play)


async def test_a_completion_that_another_asked_for_is_proof_for_whom_it_was_routed_to() -> None:
    """Round-robin hands each worker's completion to the next: of hundreds none would ever get its own."""

    async def play(world: World) -> None:
        world.health, world.answers = "ready", OTHER
        assert not (await world.after(5)).proven
        (front,) = world.fronts.views()
        world.completed += 1
        front.routed[MINE] = proof.Answer(True, frozenset({MINE}), "answered")
        assert (await world.after(2)).proven

    await watching(play)


async def test_what_was_answered_by_the_dead_is_forgotten() -> None:
    """Each restart is another instance: of thousands a controller would keep the last word for ever."""

    async def play(world: World) -> None:
        world.health = "ready"
        await world.until(lambda p: p.proven)
        (front,) = world.fronts.views()
        front.routed = {number: proof.Answer(True, frozenset({number}), "answered") for number in (MINE, OTHER)}
        front._bodies = ()  # it shows something new
        await world.after(5)
        assert front.routed.keys() == {MINE}

    await watching(play)


async def test_no_completion_is_proof_that_its_own_counters_do_not_confirm() -> None:
    async def play(world: World) -> None:
        world.health, world.answers = "ready", OTHER
        await world.after(5)
        (front,) = world.fronts.views()
        front.routed[MINE] = proof.Answer(True, frozenset({MINE}), "answered")
        assert not (await world.after(30)).proven

    await watching(play)


async def test_a_member_of_etcd_that_waits_for_others_is_not_ill() -> None:
    """Else it were ended for it: one of three, when the hosts of the other two are away."""

    async def play(world: World) -> None:
        told = await world.until(lambda p: True)
        assert (told.ready, told.well) == (False, True)
        world.health = "ready"
        assert (await world.until(lambda p: p.ready)).well

    await watching(play, kind="etcd")
