"""An etcd that is not ours and cannot be used from a host: nothing is started there, and nothing that runs is touched."""

from __future__ import annotations

from supervisor.core.facts import EtcdTold, HostFound
from supervisor.core.status import status
from tests.core.world import World, exited, run_state, spawns, up, wanted

WHY = "http://10.0.0.5:2379: Connection refused"


def found(world: World, etcd: str | None) -> list[str]:
    return spawns(world.tell(HostFound("gpu01", (), "b1", etcd=etcd)))


def told(world: World, etcd: str | None) -> list[str]:
    return spawns(world.tell(EtcdTold("gpu01", etcd)))


def test_nothing_is_started_before_it_can_be_used() -> None:
    world = World()
    world.plan(wanted(), wanted("qwen-1"))
    assert found(world, None) == []
    assert (world.state, world["qwen-0"].reason) == ("pending", "etcd has not answered yet")
    assert told(world, WHY) == []
    assert world["qwen-1"].reason == f"etcd cannot be used: {WHY}"
    assert told(world, "") == ["qwen-0", "qwen-1"]
    assert told(world, "") == []


def test_what_runs_goes_on_and_who_ends_waits() -> None:
    world = up(wanted())
    run = world["qwen-0"].run
    assert told(world, WHY) == []
    assert world.state == "ready"
    world.lost()
    world.tell(HostFound("gpu01", (run_state(run),), "b1", etcd=None))
    assert (world.state, world.run) == ("starting", run)
    world.ready()
    world.ends(exited(1))
    assert spawns(world.due()) == []
    assert told(world, WHY) == []
    assert (world.state, world["qwen-0"].reason) == ("pending", f"etcd cannot be used: {WHY}")
    assert told(world, "") == ["qwen-0"]


def test_a_status_tells_of_it_and_is_not_ready() -> None:
    world = World()
    world.plan(wanted())
    found(world, None)
    assert "etcd" not in seen(world)["hosts"][0]
    assert seen(world)["verdict"].startswith("STARTING")
    told(world, WHY)
    assert seen(world)["hosts"][0]["etcd"] == WHY
    assert seen(world)["verdict"].startswith("DEGRADED")


def seen(world: World):  # type: ignore[no-untyped-def]
    me = {"pid": 1, "version": "1", "since": 0.0}
    return status(world.fleet, deployment="lab", endpoints=(), controller=me, now_s=world.now_s)  # type: ignore[arg-type]
