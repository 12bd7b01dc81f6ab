"""A host is silent: who looks at it, what is done to its workers meanwhile, and what is undone when it is back."""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.core.absence import LOOK_AGAIN_S, SUSPECT_AFTER_S
from supervisor.core.actions import Action, Route, WakeHostAt, Witness
from supervisor.core.facts import HostDue, Phase, Routed, Sighting, Witnessed
from supervisor.core.status import status
from tests.core.world import World, asks, exited, run_state, up, wanted

FRONT = wanted("frontend-0", host="gpu00")
WORKER, OTHER = wanted("qwen-0"), wanted("qwen-1")
PORT, OTHER_PORT = 18001, 18002
WORKERS = {"qwen-0": PORT, "qwen-1": OTHER_PORT}


def away() -> World:
    """Two workers on a host that was last heard at 100 s and whose line broke at 104 s."""
    world = up(FRONT, WORKER, OTHER, now_s=99.0)
    world.told(Phase.RUNNING, "qwen-0", ports={"rpc": PORT})
    world.told(Phase.RUNNING, "qwen-1", ports={"rpc": OTHER_PORT})
    world.now_s = 104.0
    assert WakeHostAt("gpu01", 100.0 + SUSPECT_AFTER_S) in world.lost(heard_s=100.0)
    world.now_s = 105.0
    assert world.tell(HostDue("gpu01")) == (Witness("gpu01"),)
    return world


def sees(world: World, *seen: Sighting, blind: str = "") -> list[Route]:
    did = world.tell(Witnessed("gpu01", seen, blind))
    assert WakeHostAt("gpu01", world.now_s + LOOK_AGAIN_S) in did
    return routes(did)


def routes(did: Iterable[Action]) -> list[Route]:
    return [action for action in did if isinstance(action, Route)]


def cordoned(world: World) -> dict[str, bool]:
    seen = status(world.fleet, deployment="d", endpoints=[], controller=None, now_s=world.now_s)
    return {process["name"]: process["cordoned"] for process in seen["processes"]}


def test_nobody_looks_before_it_has_been_silent_for_long_enough() -> None:
    world = up(WORKER)
    world.lost(heard_s=0.0)
    world.now_s = SUSPECT_AFTER_S - 0.1
    assert world.tell(HostDue("gpu01")) == (WakeHostAt("gpu01", SUSPECT_AFTER_S),)


def test_a_line_that_comes_back_in_time_is_no_absence() -> None:
    world = up(WORKER)
    world.lost(heard_s=0.0)
    world.found(run_state(world.run))
    world.now_s = SUSPECT_AFTER_S
    assert world.tell(HostDue("gpu01")) == ()


def test_attempts_to_reach_it_do_not_begin_the_silence_anew() -> None:
    world = up(WORKER)
    world.lost(heard_s=0.0)
    world.now_s = 4.0
    assert not any(isinstance(action, WakeHostAt) for action in world.lost())
    world.now_s = SUSPECT_AFTER_S
    assert world.tell(HostDue("gpu01")) == (Witness("gpu01"),)


def test_who_answers_others_is_left_alone() -> None:
    world = away()
    assert sees(world, Sighting(PORT, answers=True), Sighting(OTHER_PORT, answers=True)) == []
    assert not asks(world.did)


def test_who_answers_nobody_is_taken_out_and_only_he() -> None:
    world = away()
    assert sees(world, Sighting(PORT, answers=False), Sighting(OTHER_PORT, answers=True)) == [
        Route("gpu01", out=frozenset({PORT}))
    ]
    assert not any(cordoned(world).values()), "said when it is done, not when it is asked for"
    world.tell(Routed("gpu01", out=frozenset({PORT})))
    assert cordoned(world) == {"frontend-0": False, "qwen-0": True, "qwen-1": False}


def test_what_nobody_could_look_at_is_left_alone() -> None:
    assert sees(away(), blind="no frontend's host is reachable") == []


def test_it_is_looked_at_again_and_who_answers_by_then_is_put_back() -> None:
    world = away()
    sees(world, Sighting(PORT, answers=False))
    world.now_s += LOOK_AGAIN_S
    assert world.tell(HostDue("gpu01")) == (Witness("gpu01"),)
    assert sees(world, Sighting(PORT, answers=True, out=True)) == [Route("gpu01", back=frozenset({PORT}))]
    world.tell(Routed("gpu01", back=frozenset({PORT})))
    assert not any(cordoned(world).values())


def test_who_is_out_already_is_not_taken_out_again() -> None:
    assert sees(away(), Sighting(PORT, answers=False, out=True)) == []


def returns(world: World) -> tuple[Action, ...]:
    """The host is back, with both workers as they were."""
    runs = [run_state(world[name].run, process=name, ports={"rpc": port}) for name, port in WORKERS.items()]
    return world.found(*runs)


def test_when_it_is_back_its_living_are_put_back_with_the_same_runs() -> None:
    world = away()
    world.tell(Routed("gpu01", out=frozenset(WORKERS.values())))
    did = returns(world)
    assert Witness("gpu01") in did
    assert not asks(did)
    seen = [Sighting(port, answers=True, out=True) for port in WORKERS.values()]
    assert world.tell(Witnessed("gpu01", tuple(seen))) == (Route("gpu01", back=frozenset(WORKERS.values())),)
    world.tell(Routed("gpu01", back=frozenset(WORKERS.values())))
    assert not any(cordoned(world).values())
    world.now_s += LOOK_AGAIN_S
    assert world.tell(HostDue("gpu01")) == ()


def test_whoever_could_only_be_reached_late_waits_outside() -> None:
    world = away()
    world.tell(Routed("gpu01", out=frozenset({PORT})))
    returns(world)
    assert sees(world, Sighting(PORT, answers=True, out=True, stalled=True)) == []
    world.now_s += LOOK_AGAIN_S
    assert world.tell(HostDue("gpu01")) == (Witness("gpu01"),)
    assert cordoned(world)["qwen-0"]


def test_a_controller_that_knows_of_no_cordon_puts_back_what_another_one_took_out() -> None:
    world = World()
    world.plan(FRONT, WORKER)
    assert Witness("gpu01") in world.found(run_state("01", ports={"rpc": PORT}))
    assert sees(world, blind="no frontend's host answers us yet") == []
    assert world.tell(HostDue("gpu01")) == (Witness("gpu01"),)
    seen = Sighting(PORT, answers=True, out=True)
    assert world.tell(Witnessed("gpu01", (seen,))) == (Route("gpu01", back=frozenset({PORT})),)


def test_where_nobody_will_ever_be_able_to_look_nobody_tries_again() -> None:
    world = World()
    world.plan(WORKER)
    world.found(run_state("01", ports={"rpc": PORT}))
    assert world.tell(Witnessed("gpu01", blind="file discovery has one host", ever=False)) == ()


def test_nobody_of_a_host_that_is_up_is_taken_out() -> None:
    world = away()
    returns(world)
    assert world.tell(Witnessed("gpu01", (Sighting(PORT, answers=False),))) == ()


def test_who_died_while_nobody_could_fence_it_is_fenced_when_its_host_is_back() -> None:
    world = away()
    dead = run_state(world["qwen-0"].run, Phase.GONE, ports={"rpc": PORT}, exit=exited(None))
    live = run_state(world["qwen-1"].run, process="qwen-1", ports={"rpc": OTHER_PORT})
    assert Route("gpu01", dead=frozenset({PORT})) in world.found(dead, live)


def test_over_nats_a_worker_is_told_by_its_system_port() -> None:
    world = up(FRONT, WORKER, OTHER)
    world.told(Phase.RUNNING, "qwen-0", ports={"system": PORT})
    world.told(Phase.RUNNING, "qwen-1", ports={"system": OTHER_PORT})
    world.lost()
    dead = run_state(world["qwen-0"].run, Phase.GONE, ports={"system": PORT}, exit=exited(None))
    live = run_state(world["qwen-1"].run, process="qwen-1", ports={"system": OTHER_PORT})
    assert Route("gpu01", dead=frozenset({PORT})) in world.found(dead, live)


def test_a_port_that_a_living_run_has_by_now_is_nobody_dead() -> None:
    world = away()
    dead = run_state(world["qwen-0"].run, Phase.GONE, ports={"rpc": PORT}, exit=exited(None))
    heir_of_the_port = run_state(world["qwen-1"].run, process="qwen-1", ports={"rpc": PORT})
    assert routes(world.found(dead, heir_of_the_port)) == []


def test_whom_its_keeper_fenced_is_not_fenced_again() -> None:
    world = away()
    dead = run_state(world["qwen-0"].run, Phase.GONE, ports={"rpc": PORT}, exit=exited(None), fenced_ms=5)
    assert routes(world.found(dead)) == []


def test_taken_out_too_late_it_is_looked_at_again_to_be_put_back() -> None:
    world = away()
    sees(world, Sighting(PORT, answers=False))
    returns(world)
    assert world.tell(Routed("gpu01", out=frozenset({PORT}))) == (Witness("gpu01"),)
    seen = Sighting(PORT, answers=True, out=True)
    assert world.tell(Witnessed("gpu01", (seen,))) == (Route("gpu01", back=frozenset({PORT})),)


def test_nobody_is_taken_out_while_all_is_brought_down() -> None:
    world = away()
    world.stop()
    assert world.tell(HostDue("gpu01")) == ()


def test_a_host_that_refuses_is_no_silent_one() -> None:
    world = up(WORKER)
    assert not any(isinstance(action, WakeHostAt) for action in world.lost(refused=True))
