"""Several frontends behind whatever the clients have in front of them: each says 503 itself as soon as it is to end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.lab import Lab, pids
from tests.e2e.load import Balanced, Load

WORKERS, DOORS = 2, 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        lab.deployment["frontend"] |= {"replicas": DOORS, "args": {"router_mode": "kv"}}
        lab.deployment["models"][0]["replicas"] = WORKERS
        lab.write()
        lab.up()
        yield lab
        lab.down()


def test_they_are_restarted_one_by_one_without_a_failed_request(lab: Lab) -> None:
    before = pids(lab.ready())
    with Load(Balanced(lab, DOORS, tokens=30), 4) as clients:
        clients.more(8)
        lab.noray("restart", "frontend", "--yes")
        clients.more(8)
    after = pids(lab.ready())
    assert clients.failures == []
    assert {name for name in after if after[name] != before[name]} == {"frontend-0", "frontend-1"}
    told = [json.loads(line) for line in lab.noray("events", "mock", "--json", "-n", "1000").stdout.splitlines()]
    states = [event["text"] for event in told if event["what"] == "state" and event["process"] == "mock-0"]
    assert [text for text in states if "was ready" in text] == [], "their workers are as ready as before"


def test_one_that_is_killed_is_back_and_its_workers_were_ready_all_the_while(lab: Lab) -> None:
    before = lab.ready()
    lab.kill_tree("frontend-1")
    lab.wait(lambda s: any(p["name"] == "frontend-1" and p["restarts"] == 1 for p in s["processes"]))
    after = lab.ready()
    assert {p["name"]: p["since"] for p in after["processes"] if p["kind"] == "mocker"} == {
        p["name"]: p["since"] for p in before["processes"] if p["kind"] == "mocker"
    }
    for door in range(DOORS):
        lab.chat(door=door)
