"""Whatever arrives, a probe answers and never raises."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.probes import judge, proof, view
from supervisor.probes.rim import excerpt
from tests.probes.recorded import NAMES, page

PROBES: list[Callable[[int, bytes], object]] = [
    judge.etcd_healthy,
    judge.frontend_live,
    judge.worker_ready,
    view.instances,
    view.models,
    view.registry,
    proof.answer,
    proof.work,
    excerpt,
]
# fmt: off
KEYS = [
    "health", "reason", "status", "endpoints", "generate", "instances",
    "data", "id", "header", "kvs", "value", "choices",
    "finish_reason", "nvext", "worker_id", "decode_worker_id", "namespace", "component",
    "endpoint", "instance_id", "transport", "tcp", "message",
]
# fmt: on
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["10.0.0.1:1/2/x", "ready"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=5),
)
STATUS = st.sampled_from([0, 200, 404, 500, 503])
BODIES = [page(name)["body"].encode() for name in NAMES if "body" in page(name)]
METRICS = st.lists(
    st.builds(
        "dynamo_component_{}{{{}}} {}".format,
        st.sampled_from(["requests_total", "errors_total", "inflight_requests"]),
        st.sampled_from(['dynamo_endpoint="generate"', 'dynamo_endpoint="generate",worker_id="zz"', "", '"']),
        st.floats().map(str) | st.text(max_size=5),
    )
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@given(STATUS, st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | METRICS)
def test_garbage_never_raises(status: int, body: bytes) -> None:
    for probe in PROBES:
        probe(status, body)
    view.stored({"x": body})


@given(st.sampled_from(BODIES), st.integers(0, 2000), st.binary(max_size=3))
def test_a_damaged_answer_never_raises(body: bytes, where: int, what: bytes) -> None:
    for damaged in (body[:where], body[:where] + what + body[where + len(what) :]):
        for probe in PROBES:
            probe(200, damaged)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'{"a":' * 100_000, b"9" * 10_000, b'{"health":' + b"9" * 10_000 + b"}", b"\xff\xfe\x00", b"NaN"],
    ids=["brackets", "braces", "digits", "digits inside", "utf-16", "nan"],
)
def test_hostile_bodies(probe: Callable[[int, bytes], object], body: bytes) -> None:
    probe(200, body)


@given(st.binary())
def test_a_reason_fits_on_a_line(body: bytes) -> None:
    assert excerpt(500, body).isprintable()
    assert len(excerpt(500, body)) < 200
