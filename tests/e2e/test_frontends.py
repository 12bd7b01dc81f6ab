"""Several frontends behind whatever the clients have in front of them: each says 503 itself as soon as it is to end."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.e2e.lab import MODEL, Lab, pids, question
from tests.e2e.load import Load

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


def balanced(lab: Lab, turn: Iterator[int]) -> None:
    """As a balancer does it: the next door that lists the model (a new one opens before it has found any), and another one
    where this one refuses before the first byte (RFC 9110, 15.6.4).
    """
    first, refused = next(turn), list[str]()
    for door in range(first, first + 2 * DOORS):
        connection = http.client.HTTPConnection("127.0.0.1", lab.http_port + door % DOORS, timeout=60)
        with closing(connection):
            try:
                connection.request("GET", "/v1/models")
                if MODEL not in connection.getresponse().read().decode():
                    continue
                body = json.dumps(question(30, stream=True))
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                said = answer.read().decode()
            except ConnectionError as error:
                refused.append(repr(error))
                continue
        if answer.status == 503:
            refused.append(said)
            continue
        assert answer.status == 200, (answer.status, said)
        assert said.rstrip().endswith("data: [DONE]"), said
        return
    raise AssertionError(f"no door is open: {refused}")


def counted() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number = (number + 1) % DOORS


def test_they_are_restarted_one_by_one_without_a_failed_request(lab: Lab) -> None:
    before = pids(lab.ready())
    turn = counted()
    with Load(lambda: balanced(lab, turn), 4) as clients:
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
