"""Who answered, against real completions; among them one that names a worker which was dead when it was finished."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from supervisor.probes import ask
from supervisor.probes.proof import Answer, Work, answer, proven, work
from supervisor.probes.rim import Verdict
from supervisor.probes.view import registry
from tests.probes.recorded import page, said

WORKER = 0x3508A1FD9A12C05
IDLE = Work(frozenset({WORKER}), asked=3, completed=3, failed=0, inflight=0)
WORKED = replace(IDLE, asked=4, completed=4)
ANSWERED = Answer(True, frozenset({WORKER}), "answered")


def registered(namespace: str, component: str = "backend") -> set[int]:
    held = registry(*said("etcd_range_instances")).within(namespace)
    return {i.instance_id for i in held if i.component == component}


@pytest.mark.parametrize("name", ["completion_round_robin", "completion_chat"])
def test_round_robin_names_the_worker(name: str) -> None:
    got = answer(*said(name))
    assert got.answered
    assert len(got.named) == 1
    assert got.named <= registered("lab_qwen")


def test_a_pinned_completion_is_proof() -> None:
    wanted = json.loads(page("completion_kv_pinned")["request"]["body"])["nvext"]["decode_worker_id"]
    before, after = work(*said("worker_metrics_before")), work(*said("worker_metrics_after"))
    got = answer(*said("completion_kv_pinned"))
    assert before is not None
    assert after is not None
    assert before.instance_ids == {wanted}
    assert (before.failed, before.inflight) == (0, 0)
    assert after.completed == before.completed + 1
    assert proven(wanted, got, before, after) == Verdict(True, "answered a request")


def test_a_disaggregated_model_names_both_roles() -> None:
    roles = registered("lab_big") | registered("lab_big", "prefill")
    assert len(roles) == 2
    assert answer(*said("completion_disaggregated")).named == roles


def test_a_migrated_completion_names_the_dead() -> None:
    """Why a name is not proof."""
    dead = page("completion_migrated")["killed"]
    got = answer(*said("completion_migrated"))
    assert got.answered
    assert got.named == {dead}
    assert not proven(dead, got, replace(IDLE, instance_ids=frozenset({dead})), None).ok


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("completion_unknown_model", "no completion: HTTP 404: Model not found"),
        ("completion_kv_pinned_nowhere", "no completion: HTTP 500: Failed to generate completions"),
        ("completion_not_ready", "no completion: HTTP 503: Model `big` is not ready to serve requests yet. "),
    ],
)
def test_no_completion(name: str, reason: str) -> None:
    got = answer(*said(name))
    assert (got.answered, got.named) == (False, frozenset())
    assert got.reason.startswith(reason)


def test_without_our_request_nobody_is_named() -> None:
    assert answer(*said("completion_plain")) == Answer(True, frozenset(), "answered, by nobody named")


@pytest.mark.parametrize(
    ("got", "before", "after", "reason"),
    [
        (Answer(False, frozenset(), "no completion: HTTP 500"), IDLE, WORKED, "no completion: HTTP 500"),
        (Answer(True, frozenset({1}), "answered"), IDLE, WORKED, "the completion went to another worker"),
        (ANSWERED, None, WORKED, "its counters could not be read"),
        (ANSWERED, IDLE, None, "its counters could not be read"),
        (ANSWERED, IDLE, IDLE, "routed there, but finished by another worker"),
        (ANSWERED, IDLE, replace(WORKED, failed=1), "routed there, but finished by another worker"),
        (ANSWERED, IDLE, replace(WORKED, instance_ids=frozenset({1})), "its system port belongs to another worker"),
    ],
)
def test_registered_not_proven(got: Answer, before: Work | None, after: Work | None, reason: str) -> None:
    assert proven(WORKER, got, before, after) == Verdict(False, f"registered, not proven: {reason}")


def test_counters_of_other_endpoints_do_not_count() -> None:
    lines = [
        'dynamo_component_requests_total{dynamo_endpoint="generate",worker_id="a"} 5',
        'dynamo_component_requests_total{dynamo_endpoint="kv_query",worker_id="a"} 70',
        'dynamo_component_errors_total{dynamo_endpoint="generate",error_type="generate",worker_id="a"} 1',
        'dynamo_component_errors_total{dynamo_endpoint="generate",error_type="publish",worker_id="a"} 1',
        'dynamo_component_inflight_requests{dynamo_endpoint="generate",worker_id="a"} NaN',
        'dynamo_component_request_duration_seconds_count{dynamo_endpoint="generate",worker_id="a"} 4',
    ]
    assert work(200, "\n".join(lines).encode()) == Work(frozenset({10}), asked=5, completed=4, failed=2, inflight=0)


def test_no_counters() -> None:
    assert work(503, said("worker_metrics_after")[1]) is None
    assert work(200, b"") is None


def test_what_is_asked() -> None:
    request = ask.completion("qwen", pin=WORKER, role="prefill")
    assert (request.method, request.path, request.headers) == (
        "POST",
        "/v1/completions",
        {"Content-Type": "application/json"},
    )
    assert json.loads(request.body) == {
        "model": "qwen",
        "prompt": "hi",
        "max_tokens": 1,
        "stream": False,
        "nvext": {"extra_fields": ["worker_id"], "prefill_worker_id": WORKER},
    }
    assert ask.etcd_range("v1/").body == b'{"key":"djEv","range_end":"djEw"}'
