"""Events, requests or both over NATS: a nats-server of ours that everybody uses, that may die, and that is gone in the end."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab import Lab, free_ports
from tests.e2e.load import Load, Request
from tests.e2e.procs import until

CLIENTS, TOKENS = 6, 50


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    planes, nats = getattr(request, "param", {"event": "nats"}), {"port": free_ports(1)[0]}
    with Lab(tmp_path_factory.mktemp("l"), planes=planes, nats=nats) as lab:
        lab.deployment["frontend"] |= {"args": {"router_mode": "kv"}}
        lab.deployment["models"][0]["replicas"] = 2
        lab.write()
        yield lab


def clients(lab: Lab) -> int:
    """As nats-server itself counts them."""
    port = lab.process("nats-0")["ports"]["monitor"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/connz", timeout=10) as answer:
        return int(json.loads(answer.read())["num_connections"])


@pytest.mark.parametrize("lab", [{"event": "nats"}, {"request": "nats"}], indirect=True, ids=["events", "requests"])
def test_it_may_die_and_nobody_is_hurt(lab: Lab) -> None:
    lab.up()
    before = {p["name"]: p["run"] for p in lab.ready()["processes"]}
    assert set(before) == {"etcd-0", "nats-0", "frontend-0", "mock-0", "mock-1"}
    assert clients(lab) >= 3  # the frontend and both workers
    with Load(lambda: lab.stream(TOKENS), CLIENTS) as load:
        load.more(2 * CLIENTS)
        lab.kill_tree("nats-0")
        after = lab.wait(lambda s: s["ready"] and run(s, "nats-0") != before["nats-0"])
        load.more(4 * CLIENTS)
    assert load.failures == []
    assert {p["name"] for p in after["processes"] if p["run"] != before[p["name"]]} == {"nats-0"}
    until(lambda: clients(lab) >= 3)
    lab.chat()
    lab.down()


@pytest.mark.parametrize("lab", [{"request": "nats", "event": "nats"}], indirect=True, ids=["both"])
def test_a_worker_is_fenced_and_drained_though_it_registers_no_address(lab: Lab) -> None:
    lab.deployment["frontend"] |= {"args": {"router_mode": "round-robin"}}
    lab.deployment["models"][0]["args"] = {"speedup_ratio": 1.0}
    lab.write()
    lab.up()
    before = {p["name"]: p for p in lab.ready()["processes"]}
    assert all("rpc" not in p["ports"] for p in before.values())
    lab.kill_tree("mock-0")
    after = lab.wait(lambda s: s["ready"] and run(s, "mock-0") != before["mock-0"]["run"])
    last = next(p for p in after["processes"] if p["name"] == "mock-0")["last_exit"]
    assert last is not None
    assert last["fenced_at"] - last["at"] < 20.0
    assert len(lab.instances()) == 2
    ports = [p["ports"]["system"] for p in after["processes"] if p["kind"] == "mocker"]
    requests = [Request(lambda: lab.stream(1000)) for _ in range(6)]
    until(lambda: all(lab.busy(port) for port in ports))
    lab.noray("stop", "mock-1")
    for each in requests:
        each.wait()
        assert each.error is None
    assert len(lab.instances()) == 1
    lab.chat()
    lab.down()


def test_where_there_is_no_nats_server_is_said(lab: Lab) -> None:
    """Its interpreter has an etcd, and none of that."""
    bare = lab.place / "bin" / "python"
    bare.parent.mkdir()
    bare.symlink_to(sys.executable)
    bare.with_name("etcd").symlink_to(Path(sys.executable).with_name("etcd"))
    lab.hosts["hosts"]["here"] |= {"python": str(bare)}
    lab.hosts["hosts"]["here"]["env"] |= {"PATH": f"{bare.parent}:/nowhere"}
    lab.write()
    said = lab.noray("up", *lab.files, "--detach", "--yes", code=1)
    assert f"cannot find nats-server; looked in {bare.parent}:/nowhere" in said.stdout + said.stderr


def run(status, name: str) -> str | None:  # type: ignore[no-untyped-def]
    return next((p["run"] for p in status["processes"] if p["name"] == name), None)
