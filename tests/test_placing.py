"""Seats over time: on record before anything is started, learned from what runs, kept when files change."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import anyio
import pytest

from supervisor.core.exit import Exit
from supervisor.core.facts import (
    CordonAsked,
    Fact,
    GpuSeen,
    GpusSeen,
    HostFound,
    Phase,
    Placed,
    Planned,
    RunGpu,
    RunState,
    Told,
)
from supervisor.core.fleet import step_fleet
from supervisor.core.known import Fleet
from supervisor.core.process import State
from supervisor.effects.statedir import Files, StateDir
from supervisor.errors import NorayError
from supervisor.placing import Placing
from supervisor.plan.build import Plan
from supervisor.plan.place import Seat
from tests.plan.files import alone, deployment, hosts, text


class Desk:
    """A controller that only places. Its host tells what `gpus` says."""

    def __init__(self, state: StateDir, replicas: int = 1, gpus: int = 2, on_lost: str = "wait") -> None:
        self.files, self.fleet, self.gpus = files(replicas, on_lost), Fleet(epoch_ms=10**12), gpus
        self.placing = Placing(self, state, {})
        self.plan = self.placing.known(self.files)
        self.tell(Planned(self.plan.wanted))

    def tell(self, fact: Fact) -> None:
        if isinstance(fact, HostFound) and self.placing.learn(self.plan, fact):
            self.place_again()
        now_s = anyio.current_time() if isinstance(fact, GpusSeen) else 0.0
        self.fleet, _ = step_fleet(self.fleet, fact, now_s)

    def place_again(self) -> None:
        self.plan = self.placing.known(self.files)
        self.tell(Placed(self.plan.wanted))

    async def choose(self) -> None:
        """As `run` does it, once."""
        self.tell(HostFound("gpu01", ()))
        self.tell(GpusSeen("gpu01", tuple(GpuSeen(n, f"GPU-{n}") for n in range(self.gpus))))
        plan, found = await self.placing.chosen(self.files)
        self.placing.keep(plan, found)
        self.plan = plan
        self.tell(Placed(plan.wanted))

    async def change(self) -> None:
        raise AssertionError("nobody waits here")

    async def adopt_places(self, plan: Plan) -> None:
        raise AssertionError("nobody adopts here")


def files(replicas: int, on_lost: str = "wait") -> Files:
    """Of one host; of two, of which only the first is ever heard, where one may stand in for another."""
    model = {"engine": "vllm", "replicas": replicas, "on_lost": on_lost}
    inventory = alone() if on_lost == "wait" else hosts()
    return Files(text(deployment(model)), Path("/nowhere/d.yaml"), text(inventory), Path("/nowhere/hosts.yaml"))


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "lab")


def test_a_seat_is_on_record_before_anything_starts_there(state: StateDir) -> None:
    desk = Desk(state)
    anyio.run(desk.choose)
    assert state.load_seats() == {"qwen-0": Seat("gpu01", (0,))}
    assert Desk(state).plan.wanted["qwen-0"].gpus == (0,), "the next controller has it from there"


@pytest.mark.parametrize(("cordoned", "seats"), [("gpu01:0", {"qwen-0": Seat("gpu01", (1,))}), ("gpu01", {})])
def test_nobody_is_placed_on_what_is_cordoned(state: StateDir, cordoned: str, seats: dict[str, Seat]) -> None:
    desk = Desk(state)
    desk.tell(CordonAsked(frozenset({cordoned}), on=True))
    anyio.run(desk.choose)
    assert state.load_seats() == seats
    assert seats or f"noray uncordon {cordoned}" in desk.plan.wanted["qwen-0"].unplaced


def test_seats_of_what_is_wanted_no_more_are_forgotten(state: StateDir) -> None:
    desk = Desk(state, replicas=2)
    anyio.run(desk.choose)
    fewer = Desk(state, replicas=1)
    anyio.run(fewer.choose)
    assert list(state.load_seats()) == ["qwen-0"]


def test_what_runs_without_a_seat_on_record_is_adopted_where_it_runs(state: StateDir) -> None:
    """The state directory was lost: taken for unwanted, it would be ended."""
    desk = Desk(state)
    run = RunState("r1", "qwen-0", Phase.RUNNING, pid=7, gpus=(RunGpu(1, "GPU-1"),))
    desk.tell(HostFound("gpu01", (run,)))
    process = desk.fleet.processes["qwen-0"]
    assert (process.run, process.up, process.wanted.gpus) == ("r1", True, (1,))
    assert process.state is State.STARTING
    assert not desk.fleet.surplus


@pytest.mark.parametrize("cause", ["gpu", "held"])
def test_whom_a_gpu_turns_away_is_placed_on_another(state: StateDir, cause: str) -> None:
    """Somebody took it between the look and the start, or while the process was down."""

    async def happen() -> None:
        desk = Desk(state)
        await desk.choose()
        process = desk.fleet.processes["qwen-0"]
        assert process.wanted.gpus == (0,)
        refused = Exit(None, None, 0, False, cause, "gpu-GPU-0 is held by x-0 of deployment other")
        desk.tell(Told("gpu01", RunState(process.run, "qwen-0", Phase.GONE, exit=refused)))
        assert desk.placing.turned_away(desk.plan, desk.fleet.processes.values())
        desk.place_again()
        assert desk.fleet.processes["qwen-0"].wanted.host == ""
        await desk.choose()
        assert desk.fleet.processes["qwen-0"].wanted.gpus == (1,)
        assert state.load_seats()["qwen-0"].gpus == (1,)

    anyio.run(happen)


@pytest.mark.parametrize(
    ("exit_", "pid"),
    [
        (Exit(1, None, 0, False), 7),
        (Exit(None, None, 0, False, "gpu", "it sat on GPU 1, which is not its own"), 7),
        (Exit(None, None, 0, False, "held", "port-18000 is held by x-0 of deployment other"), None),
    ],
)
def test_whatever_else_fails_keeps_its_place(state: StateDir, exit_: Exit, pid: int | None) -> None:
    async def happen() -> None:
        desk = Desk(state)
        await desk.choose()
        run = desk.fleet.processes["qwen-0"].run
        desk.tell(Told("gpu01", RunState(run, "qwen-0", Phase.GONE, pid=pid, exit=exit_)))
        assert not desk.placing.turned_away(desk.plan, desk.fleet.processes.values())

    anyio.run(happen)


def test_who_finds_no_room_says_why(state: StateDir) -> None:
    desk = Desk(state, replicas=2, gpus=1)
    anyio.run(desk.choose)
    assert desk.plan.wanted["qwen-1"].unplaced.startswith("needs 1 free GPU of one host; nearest is gpu01 with 0 of 1 free")


def lone_stand_in(state: StateDir) -> Desk:
    """qwen-2 has been seated for qwen-1, whose host is never heard."""
    state.save_seats({"qwen-1": Seat("gpu02", (0,))})
    desk = Desk(state, replicas=2, gpus=3, on_lost="replace")
    anyio.run(desk.choose)
    desk.placing.stand_in({"qwen-2": "qwen-1"})
    return desk


def test_who_stands_in_is_on_record_before_it_has_a_place_and_after(state: StateDir) -> None:
    desk = lone_stand_in(state)
    assert state.load_seats()["qwen-2"] == Seat("", (), stands_in="qwen-1")
    assert Desk(state, 2, on_lost="replace").plan.wanted["qwen-2"].replaces == "qwen-1", "the next controller has it from there"
    others = {name: seat for name, seat in state.load_seats().items() if name != "qwen-2"}
    desk.place_again()
    anyio.run(desk.choose)
    assert state.load_seats() == {**others, "qwen-2": Seat("gpu01", (1,), stands_in="qwen-1")}
    desk.placing.stand_in({})
    assert state.load_seats() == others


def test_one_that_a_gpu_turned_away_still_stands_in(state: StateDir) -> None:
    desk = lone_stand_in(state)
    desk.place_again()

    async def happen() -> None:
        await desk.choose()
        refused = Exit(None, None, 0, False, "gpu", "GPU 1 is held by a stranger")
        run = desk.fleet.processes["qwen-2"].run
        desk.tell(Told("gpu01", RunState(run, "qwen-2", Phase.GONE, exit=refused)))
        assert desk.placing.turned_away(desk.plan, desk.fleet.processes.values())
        desk.place_again()
        assert (desk.plan.wanted["qwen-2"].replaces, desk.plan.wanted["qwen-2"].host) == ("qwen-1", "")

    anyio.run(happen)


def test_what_cannot_be_written_down_replaces_nobody(state: StateDir) -> None:
    desk = Desk(state, replicas=2, on_lost="replace")
    anyio.run(desk.choose)
    with sqlite3.connect(state.path / "noray.db") as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON intents BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(NorayError, match="cannot write down"):
        desk.placing.stand_in({"qwen-2": "qwen-1"})
    assert "qwen-2" not in desk.placing.known(desk.files).wanted


def test_a_host_that_is_shutting_down_is_given_nobody(state: StateDir) -> None:
    desk = Desk(state)

    async def happen() -> None:
        desk.tell(HostFound("gpu01", (), leaving="it shows"))
        desk.tell(GpusSeen("gpu01", (GpuSeen(0, "GPU-0"),)))
        plan, _ = await desk.placing.chosen(desk.files)
        assert plan.wanted["qwen-0"].unplaced.endswith("not known: gpu01: it is shutting down")

    anyio.run(happen)


def test_a_record_that_cannot_be_read_is_named(state: StateDir) -> None:
    state.create()
    with state.writing() as store:
        store.intend("seats", {"seats": []})
    with pytest.raises(NorayError, match=r"noray\.db: seats: cannot be read"):
        state.load_seats()
