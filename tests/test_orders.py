"""Orders to a running controller: what is promised is on disk first, and no answer comes before it is true."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from supervisor.core.facts import Asked, Fact, Phase
from supervisor.core.hand import Held
from supervisor.core.known import Fleet
from supervisor.core.snapshot import Status
from supervisor.core.status import status
from supervisor.effects.statedir import Files, StateDir
from supervisor.errors import NorayError, UsageError
from supervisor.orders import Orders
from tests.core.world import World, exited, spawns, stops, up, wanted

FILES = Files("name: lab\nmodels:\n  - {name: qwen, model: some/model, engine: mocker}\n", Path("deployment.yaml"))


class Desk:
    """The loop of a controller without its hosts: the test speaks for them."""

    def __init__(self, world: World, state: StateDir) -> None:
        self.world, self.state = world, state
        self.plan = FILES.plan()
        self.facts: list[Fact] = []
        self._news = anyio.Event()

    @property
    def fleet(self) -> Fleet:
        return self.world.fleet

    async def tell(self, fact: Fact) -> None:
        self.facts.append(fact)
        self.world.tell(fact)
        self.moved()

    def moved(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def taken_in(self) -> None:
        pass

    async def change(self) -> None:
        await self._news.wait()

    async def changes(self) -> AsyncIterator[Status]:
        while True:
            news = self._news
            yield status(self.fleet, deployment="lab", endpoints=(), controller=None, now_s=0.0)
            await news.wait()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(up(wanted("qwen-0")), StateDir(tmp_path / "lab"))


async def drain(snapshots: AsyncIterator[Status]) -> None:
    with anyio.fail_after(5):
        async for _ in snapshots:
            pass


@pytest.mark.anyio
async def test_a_stop_is_written_down_before_anything_is_stopped(desk: Desk) -> None:
    desk.state.create()
    (desk.state.path / "noray.db").mkdir()  # as a full disk
    with pytest.raises(NorayError, match="cannot write down"):
        await drain(Orders(desk).stop_by_hand(frozenset({"qwen"}), "ann"))
    assert desk.facts == []


@pytest.mark.anyio
async def test_a_stop_is_answered_when_the_tree_is_gone_and_not_when_its_leader_is(desk: Desk) -> None:
    answered = anyio.Event()

    async def stop() -> None:
        await drain(Orders(desk).stop_by_hand(frozenset({"qwen"}), "ann"))
        answered.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        await anyio.wait_all_tasks_blocked()
        assert desk.state.load_held()["qwen"].by == "ann"
        desk.world.told(Phase.ENDED, exit=exited(0, asked=True), asked=True)
        desk.moved()
        await anyio.wait_all_tasks_blocked()
        assert not answered.is_set()
        desk.world.told(Phase.GONE, exit=exited(0, asked=True), asked=True)
        desk.moved()
    assert answered.is_set()


@pytest.mark.anyio
async def test_a_restart_is_answered_by_the_new_run(desk: Desk) -> None:
    old = desk.world.run
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain, Orders(desk).start_by_hand(frozenset({"qwen"}), "ann", anew=True))
        await anyio.wait_all_tasks_blocked()
        assert stops(desk.world.did) == [(old, 90.0)]
        desk.world.ends()
        desk.world.runs()
        desk.moved()
        await anyio.wait_all_tasks_blocked()
        assert spawns(desk.world.did) == ["qwen-0"]
        desk.world.ready()
        desk.moved()
    assert desk.world.run != old


@pytest.mark.anyio
async def test_nothing_is_started_while_all_comes_down(desk: Desk) -> None:
    desk.world.stop()
    with pytest.raises(UsageError, match="being brought down"):
        await drain(Orders(desk).start_by_hand(frozenset({"qwen"}), "ann", anew=False))
    assert not any(isinstance(fact, Asked) for fact in desk.facts)


@pytest.mark.anyio
async def test_a_start_lifts_a_hold_that_was_written_down_beside_us(desk: Desk) -> None:
    """By a stop that had found no controller, while we were starting."""
    desk.state.hold(["qwen"], "ann")
    assert not desk.fleet.held
    desk.world.ready()
    await drain(Orders(desk).start_by_hand(frozenset({"qwen-0"}), "ann", anew=False))
    assert desk.state.load_held() == {}


def test_a_hold_that_is_lifted_is_lifted_on_disk(desk: Desk) -> None:
    desk.state.save_held({"qwen": Held("ann", 1)})
    desk.state.save_cordons({"gpu01": Held("ann", 1), "gpu02:3": Held("ann", 1)})
    Orders(desk).remember({"etcd": Held("ben", 2)}, {"gpu01": Held("ann", 1)})
    assert desk.state.load_held() == {"etcd": Held("ben", 2)}
    assert desk.state.load_cordons() == {"gpu01": Held("ann", 1)}
