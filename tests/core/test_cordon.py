"""Out of the routing by hand: who is taken out and when, and that nobody but the operator puts them back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from supervisor.core.actions import Action, Route, Witness
from supervisor.core.cordon import meant, still_out, within
from supervisor.core.facts import CordonAsked, Phase, Routed, RunGpu, Sighting, Witnessed
from supervisor.core.hand import Held
from supervisor.core.process import State
from supervisor.core.status import status
from supervisor.errors import UsageError
from tests.core.world import World, by_name, run_state, up, wanted

FRONT = replace(wanted("frontend-0", host="gpu00"), kind="frontend")
WORKER, OTHER = wanted("qwen-0"), wanted("qwen-1")
PORT, OTHER_PORT, NEXT_PORT = 18001, 18002, 18003


def serving() -> World:
    """Two workers of one service on one host, each on a GPU of its own."""
    world = up(FRONT, WORKER, OTHER)
    for number, (name, port) in enumerate({"qwen-0": PORT, "qwen-1": OTHER_PORT}.items()):
        world.told(Phase.RUNNING, name, ports={"rpc": port}, gpus=(RunGpu(number, f"GPU-{number}"),))
        world.ready(name, instance=str(31 + number))
    return world


def says(world: World, *names: str, on: bool = True, by: str = "ann") -> list[Route]:
    return routes(world.tell(CordonAsked(frozenset(names), on, by, 7)))


def routes(did: tuple[Action, ...]) -> list[Route]:
    return [action for action in did if isinstance(action, Route)]


def shown(world: World, name: str = "qwen-0") -> Any:
    seen = status(world.fleet, deployment="d", endpoints=[], controller=None, now_s=world.now_s)
    return next(each for each in (*seen["processes"], *seen["services"], *seen["hosts"]) if each["name"] == name)


@pytest.mark.parametrize("name", ["qwen-0", "gpu01:0"])
def test_it_is_taken_out_once_and_put_back_once(name: str) -> None:
    world = serving()
    assert says(world, name) == [Route("gpu01", out=frozenset({PORT}))]
    assert says(world, name, by="eve") == []
    assert not shown(world)["cordoned"], "said when it is done, not when it is asked for"
    assert world.tell(Routed("gpu01", out=frozenset({PORT}))) == ()
    assert (shown(world)["cordoned"], shown(world)["cordon"]["by"], shown(world)["state"]) == (True, "ann", "ready")
    assert (shown(world, "qwen")["ready"], shown(world, "qwen")["serving"]) == (2, 1)
    assert says(world, name, on=False) == [Route("gpu01", back=frozenset({PORT}))]
    world.tell(Routed("gpu01", back=frozenset({PORT})))
    assert "cordon" not in shown(world)
    assert shown(world, "qwen")["serving"] == 2


@pytest.mark.parametrize("name", ["qwen", "gpu01"])
def test_a_service_and_a_host_are_all_that_belongs_to_them(name: str) -> None:
    world = serving()
    assert {port for route in says(world, name) for port in route.out} == {PORT, OTHER_PORT}
    assert ("cordon" in shown(world, "gpu01")) == (name == "gpu01")


def test_its_next_run_is_out_as_soon_as_it_is_registered() -> None:
    world = serving()
    says(world, "qwen-0")
    world.tell(Routed("gpu01", out=frozenset({PORT})))
    world.ends(ports={"rpc": PORT})
    assert PORT not in world.fleet.hosts["gpu01"].out, "a later run may have that number"
    world.due()
    world.told(Phase.RUNNING, ports={"rpc": NEXT_PORT})
    assert routes(world.ready()) == [], "not registered yet"
    assert routes(world.ready(instance="77")) == [Route("gpu01", out=frozenset({NEXT_PORT}))]
    assert routes(world.ready(instance="77")) == []


def test_whoever_reaches_it_only_the_operator_puts_it_back() -> None:
    """The second witness puts back whom a silence had taken out, not these."""
    world = serving()
    says(world, "qwen-0")
    world.tell(Routed("gpu01", out=frozenset({PORT})))
    world.lost(heard_s=world.now_s)
    ports = {"qwen-0": PORT, "qwen-1": OTHER_PORT}
    runs = [run_state(world[name].run, process=name, ports={"rpc": port}) for name, port in ports.items()]
    assert Witness("gpu01") in world.found(*runs)
    seen = (Sighting(PORT, answers=True, out=True), Sighting(OTHER_PORT, answers=True, out=True))
    did = world.tell(Witnessed("gpu01", seen))
    assert routes(did) == [Route("gpu01", back=frozenset({OTHER_PORT}))]
    world.tell(Routed("gpu01", back=frozenset({OTHER_PORT})))
    assert world.tell(Witnessed("gpu01", (seen[0],))) == (), "and nobody looks for it again"
    assert shown(world)["cordoned"]


def test_what_stores_for_others_is_no_worker_of_the_host() -> None:
    world = up(replace(wanted("etcd-gateway-0"), kind="gateway"), WORKER)
    world.told(Phase.RUNNING, ports={"rpc": PORT})
    world.ready(instance="31")
    assert says(world, "gpu01") == [Route("gpu01", out=frozenset({PORT}))]
    assert "cordon" not in shown(world, "etcd-gateway-0")
    with pytest.raises(UsageError, match="no worker"):
        meant(["etcd-gateway-0"], world.fleet.wanted, ["gpu01"])


def test_what_another_word_keeps_out_is_told() -> None:
    world = serving()
    says(world, "gpu01")
    says(world, "qwen-0")
    assert says(world, "qwen-0", on=False) == []
    assert still_out(world.fleet, {"qwen-0"}) == ["still cordoned: qwen-0, as gpu01 is"]
    assert shown(world)["cordon"] == {"by": "ann", "at": 0.007, "names": ["gpu01"]}
    says(world, "gpu01", on=False)
    assert still_out(world.fleet, {"qwen-0"}) == []


def test_a_drain_is_not_undone_by_an_uncordon() -> None:
    world = serving()
    says(world, "qwen-0")
    world.asked("qwen-0", up=False)
    assert world["qwen-0"].state is State.DRAINING
    assert says(world, "qwen-0", on=False) == []


def test_what_is_not_there_or_not_routed_to_is_refused_by_name() -> None:
    some = by_name(FRONT, WORKER)
    assert meant(["qwen", "qwen-0", "gpu01", "gpu01:3"], some, ["gpu00", "gpu01"])
    with pytest.raises(UsageError, match="qwne"):
        meant(["qwne"], some, ["gpu01"])
    with pytest.raises(UsageError, match="no worker"):
        meant(["frontend-0"], some, ["gpu01"])
    with pytest.raises(UsageError):
        meant(["gpu09:1"], some, ["gpu01"])


def test_it_is_forgotten_with_the_files_that_named_it_and_a_host_is_not() -> None:
    held = {name: Held("ann", 7) for name in ("qwen", "qwen-0", "gpu01", "gpu01:3")}
    assert within(held, by_name(WORKER), by_name(FRONT)).keys() == {"gpu01", "gpu01:3"}
    assert within(held, by_name(WORKER), by_name(replace(WORKER, host="gpu02"))) == held
