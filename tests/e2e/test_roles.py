"""A model in two roles: served through both, and what is said, and what clients hear, while one of them is missing."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.core.snapshot import ProcessStatus, Status
from tests.e2e.lab import MODEL, Lab, states
from tests.e2e.procs import until

PREFILL, DECODE = "big-prefill-0", "big-decode-0"


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("l")) as lab:
        big = lab.service(name="big", prefill={}, decode={"args": {"max_num_seqs": 64}})
        del big["replicas"]
        lab.deployment["models"] = [big]
        lab.write()
        lab.up()
        yield lab
        lab.down()


def asked(lab: Lab) -> tuple[int, str]:
    """What a client hears: the status, and the message of an error."""
    connection = http.client.HTTPConnection(lab.http_host, lab.http_port, timeout=30)
    try:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()  # nothing, where a frontend has never had a model
        return answer.status, json.loads(text).get("message", "") if text else ""
    finally:
        connection.close()


def completed(process: ProcessStatus) -> int:
    """Requests that it has answered, by its own count."""
    with urllib.request.urlopen(f"http://127.0.0.1:{process['ports']['system']}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    return sum(map(int, re.findall(r'_component_requests_total\{[^}]*dynamo_endpoint="generate"[^}]*\} (\d+)', page)))


def of(seen: Status, name: str) -> ProcessStatus:
    return next(p for p in seen["processes"] if p["name"] == name)


def said(text: str) -> str:
    return " ".join(text.split())


def test_both_roles_answer_together_heal_apart_and_scale_apart(lab: Lab) -> None:
    seen = lab.ready()
    assert seen["verdict"].startswith("READY  big prefill 1/1, decode 1/1 serving")
    assert {s["name"] for s in seen["services"]} == {"etcd", "frontend", "big-prefill", "big-decode"}
    workers = [of(seen, name) for name in (PREFILL, DECODE)]
    assert [p["stage"] for p in workers] == ["serving"] * 2
    assert ["bootstrap" in p["ports"] for p in workers] == [True, False]
    before = [completed(p) for p in workers]
    for _ in range(3):
        lab.chat()
    assert [completed(p) - was for p, was in zip(workers, before, strict=True)] == [3, 3]

    lab.kill_tree(PREFILL)
    healed = lab.wait(lambda s: s["ready"] and of(s, PREFILL)["restarts"] == 1)
    assert of(healed, DECODE)["pid"] == of(seen, DECODE)["pid"]
    assert of(healed, DECODE)["restarts"] == 0
    until(lambda: asked(lab)[0] == 200)  # a frontend shows the new prefill a moment before it routes to it
    lab.chat()

    lab.noray("stop", "big-prefill", "--yes")
    alone = lab.wait(lambda s: of(s, DECODE).get("stage", "").endswith("no prefill"))
    assert of(alone, DECODE)["stage"] == f"registered, {MODEL} not listed yet: no prefill"
    assert alone["verdict"].startswith("DEGRADED  big NOT SERVING: prefill 0/0")
    assert asked(lab)[0] == 503
    assert "Clients of big get 503" in said(lab.noray("why", code=None).stdout)
    lab.noray("start", "big-prefill")
    assert of(lab.ready(), DECODE)["pid"] == of(seen, DECODE)["pid"]
    lab.chat()

    lab.noray("scale", "big-decode=2", "--yes")
    more = lab.ready()
    assert more["verdict"].startswith("READY  big prefill 1/1, decode 2/2 serving")
    assert of(more, DECODE)["pid"] == of(seen, DECODE)["pid"]
    lab.chat()


def test_a_decode_role_that_crash_loops_is_named_with_what_clients_hear_and_since_when(lab: Lab) -> None:
    prefill = of(lab.ready(), PREFILL)
    assert asked(lab)[0] == 200
    broken: dict[str, Any] = {"args": {"num_gpu_blocks_override": 0}, "restart": {"budget": 2, "window": 600}}
    lab.deployment["models"][0]["decode"] = broken
    lab.write()
    lab.noray("up", *lab.files, "--detach", "--yes", code=None)
    seen = lab.wait(lambda s: states(s)[DECODE] == "failed")
    crash = of(seen, DECODE)
    assert re.match(r"DEGRADED  big NOT SERVING: decode 0/1 \(.*, see: noray why big\)", seen["verdict"]), seen["verdict"]
    assert (of(seen, PREFILL)["pid"], states(seen)[PREFILL]) == (prefill["pid"], "ready")
    assert crash["last_exit"] is not None
    assert crash["served_until"] <= crash["last_exit"]["at"]

    code, message = asked(lab)
    assert code == 503
    assert "not ready to serve requests yet" in message
    assert lab.noray("status", code=None).stdout.startswith("DEGRADED  big NOT SERVING: decode 0/1 (")
    for names in ((), ("big",), ("big-decode",), (DECODE,)):
        why = said(lab.noray("why", *names, code=None).stdout)
        assert "Clients of big get 503 (not ready to serve requests yet) since " in why
        assert ": no decode worker is there. big-decode-0 on here has failed" in why
        assert "exited 1" in why
        assert "next: noray logs big-decode-0 --first-failure" in why
    assert "Clients of big" not in lab.noray("why", PREFILL, code=None).stdout

    lab.kill_tree("frontend-0")  # the next one is not asked to list what nobody can serve
    lab.wait(lambda s: states(s)["frontend-0"] == "ready" and of(s, "frontend-0")["restarts"] == 1)
    assert asked(lab)[0] == 404
    assert "Clients of big get 404 (from a frontend begun without it) since " in said(lab.noray("why", "big", code=None).stdout)

    since = crash["served_until"]
    lab.kill_controller()
    lab.noray("up", *lab.files, "--detach", "--yes", code=1)  # tries it again, in vain
    again = lab.wait(lambda s: states(s)[DECODE] == "failed" and states(s)[PREFILL] == "ready")
    assert abs(of(again, DECODE)["served_until"] - since) < 1.0

    lab.deployment["models"][0]["decode"] = {}
    lab.write()
    lab.up()
    lab.ready()
    lab.chat()
    assert "served_until" not in lab.process(DECODE)
