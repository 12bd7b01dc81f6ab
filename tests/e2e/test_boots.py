"""Hosts that are rebooted, shut down, and stay away, with a real deployment on them."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.core.snapshot import Status
from tests.e2e.lab import Lab
from tests.e2e.load import Load
from tests.e2e.procs import until
from tests.hosts.bed import Bed, missing

pytestmark = pytest.mark.root

ON = {"b": ("mock-0", "mock-2"), "c": ("mock-1", "mock-3")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """etcd and the frontend on `a`, two workers on `b` and two on `c`."""
    if why := missing():
        pytest.skip(why)
    lab = Lab(tmp_path_factory.mktemp("l"))
    with Bed(lab.place, ["a", "b", "c"], env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.deployment["etcd"]["host"] = lab.deployment["frontend"]["host"] = "a"
        lab.deployment["models"] = [lab.service(replicas=4, hosts=["b", "c"])]
        lab.over(bed)
        lab.up()
        yield lab
        if lab.living():
            lab.down()


def bed_of(lab: Lab) -> Bed:
    assert lab.bed is not None
    return lab.bed


def runs(seen: Status) -> dict[str, str | None]:
    return {p["name"]: p["run"] for p in seen["processes"]}


def records(lab: Lab, host: str, process: str, name: str) -> list[dict[str, Any]]:
    """Of every run of it, oldest first, as its host has them on disk."""
    bed = bed_of(lab)
    folder = bed[host].file(f"/var/lib/noray/{bed[host].machine_id}/runs/{lab.name}/{process}")
    return [json.loads((run / name).read_text()) for run in sorted(folder.iterdir()) if (run / name).exists()]


def registered(lab: Lab) -> set[str]:
    """The addresses that requests are routed to, as etcd has them."""
    prefix = f"v1/instances/{lab.name}"
    keys = {"key": b64encode(prefix.encode()).decode(), "range_end": b64encode(prefix[:-1].encode() + b"\xff").decode()}
    url = f"http://{bed_of(lab)['a'].address}:{lab.etcd_port}/v3/kv/range"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(keys).encode(), method="POST"), timeout=5) as answer:
        found = [json.loads(b64decode(kv["value"])) for kv in json.loads(answer.read()).get("kvs", [])]
    return {each["transport"]["tcp"].partition("/")[0] for each in found if each.get("endpoint") == "generate"}


def test_a_host_that_is_rebooted_has_its_workers_back_once_each(lab: Lab) -> None:
    before, bed = lab.ready(), bed_of(lab)
    bed["b"].reboot()
    seen = lab.wait(lambda s: s["ready"] and all(runs(s)[name] != runs(before)[name] for name in ON["b"]))
    lab.chat()
    assert [name for name, run in runs(seen).items() if run != runs(before)[name]] == [*ON["b"]], "nobody else"
    assert {h["name"]: h["boot_id"] for h in seen["hosts"]} == {host.name: host.boot_id for host in bed}
    for process in (p for p in seen["processes"] if p["name"] in ON["b"]):
        last = process["last_exit"]
        assert last is not None
        assert last["cause"].startswith("its host was rebooted, and is up again since 20")
        assert process["restarts"] == 1
        first, second = records(lab, "b", process["name"], "run.json")
        assert (first["boot"] != second["boot"], second["boot"]) == (True, bed["b"].boot_id)
        assert lab.noray("logs", process["name"], "--previous").stdout.strip()


def test_a_host_that_shuts_down_is_fenced_first_and_started_on_when_it_is_back(lab: Lab) -> None:
    """One of its workers cannot leave by itself: it is stopped when its host is shut down."""
    before, bed = lab.ready(), bed_of(lab)
    stopped = next(p for p in before["processes"] if p["name"] == "mock-1")
    address = f"{bed['c'].address}:{stopped['ports']['rpc']}"
    assert address in registered(lab)
    os.kill(lab.pid("mock-1"), signal.SIGSTOP)
    bed["c"].shut_down(grace_s=2.0)
    assert {at.partition(":")[0] for at in registered(lab)} == {bed["b"].address}
    lab.wait(lambda s: any(h["name"] == "c" and h["state"] != "up" for h in s["hosts"]))
    bed["c"].boot()
    seen = lab.wait(lambda s: s["ready"] and all(runs(s)[name] != runs(before)[name] for name in ON["c"]))
    assert [name for name, run in runs(seen).items() if run != runs(before)[name]] == [*ON["c"]]
    for name in ON["c"]:
        _, second = records(lab, "c", name, "run.json")
        assert second["boot"] == bed["c"].boot_id, "not before it was back"
        (process,) = [p for p in seen["processes"] if p["name"] == name]
        assert process["last_exit"] is not None
        assert "its host was" in process["last_exit"]["cause"]
    until(lambda: len(registered(lab)) == 4)


def test_a_host_that_stays_away_is_stood_in_for_until_its_own_workers_serve_again(lab: Lab) -> None:
    """Over a change of controllers, too; and nobody who asks notices that the surplus leaves."""
    before, bed = lab.ready(), bed_of(lab)
    lab.deployment["models"][0] |= {"on_lost": "replace", "lost_after": 1}
    lab.write()
    lab.up()
    assert runs(lab.ready()) == runs(before), "it is a rule for the controller, and no reason to restart"
    bed["c"].power_cut()
    stand_ins = {"mock-4": "mock-1", "mock-5": "mock-3"}
    seen = lab.wait(lambda s: s["ready"] and len(s["processes"]) == 8)
    assert {p["name"]: p["replaces"] for p in seen["processes"] if "replaces" in p} == stand_ins
    assert {p["host"] for p in seen["processes"] if "replaces" in p} == {"b"}
    assert {p["name"]: p["state"] for p in seen["processes"] if p["host"] == "c"} == {"mock-1": "unknown", "mock-3": "unknown"}
    assert "Others stand in: mock-4 for mock-1 and mock-5 for mock-3" in " ".join(lab.noray("why").stdout.split())
    lab.kill_controller()
    lab.up()
    again = lab.wait(lambda s: s["ready"] and len(s["processes"]) == 8)
    assert {name: runs(again)[name] for name in stand_ins} == {name: runs(seen)[name] for name in stand_ins}
    bed["c"].boot()
    lab.wait(lambda s: all(runs(s)[name] not in (None, runs(before)[name]) for name in ON["c"]))
    with Load(lab.chat, 2) as load:
        lab.wait(lambda s: s["ready"] and len(s["processes"]) == 6)
        load.more(4)
    assert load.failures == []
    assert {at.partition(":")[0] for at in registered(lab)} == {bed["b"].address, bed["c"].address}
    assert len(registered(lab)) == 4
