"""Has *this* worker answered? Registered is not enough, and neither is an answer with its name on it.

The frontend writes into the answer whom it routed the request to first. If that worker dies half way the request
migrates, another one finishes it, and the answer still carries the first name (1.4.2; recorded as
`completion_migrated`). So the worker's own count of completed requests, read before and after, must have risen as well.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from supervisor.probes.rim import Verdict, excerpt, listed, mapping, obj, whole

NEVER_ASKED = "registered, not proven"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: whether it came, and which instances it was routed to (prefill and decode may differ)."""

    answered: bool
    named: frozenset[int]
    reason: str


@dataclass(frozen=True, slots=True)
class Work:
    """A worker's own counters of one endpoint. `instance_ids` is whose they are: a port may belong to another."""

    instance_ids: frozenset[int]
    asked: int
    completed: int
    failed: int
    inflight: int


def answer(status: int, body: bytes) -> Answer:
    """From the answer to `ask.completion`. Completed means: at least one choice, with a reason to finish."""
    found = obj(body)
    choices = [mapping(choice) for choice in listed(mapping(found).get("choices"))]
    if status != 200 or not choices or not all(choice.get("finish_reason") for choice in choices):
        return Answer(False, frozenset(), f"no completion: {excerpt(status, body)}")
    routed = mapping(mapping(mapping(found).get("nvext")).get("worker_id"))
    ids = (whole(routed.get(key)) for key in ("prefill_worker_id", "decode_worker_id"))
    named = frozenset(i for i in ids if i is not None)
    return Answer(True, named, "answered" if named else "answered, by nobody named")


def embedded(instance: int, status: int, body: bytes) -> Answer:
    """From the answer to `ask.embedding`, which names nobody: `instance` may have made it, and its own counters tell."""
    vectors = [mapping(item).get("embedding") for item in listed(mapping(obj(body)).get("data"))]
    if status != 200 or not vectors or not all(vectors):
        return Answer(False, frozenset(), f"no embedding: {excerpt(status, body)}")
    return Answer(True, frozenset({instance}), "answered")


def work(status: int, body: bytes, endpoint: str = "generate") -> Work | None:
    """From a worker's `/metrics`; None where they are not to be had."""
    if status != 200:
        return None
    whose: set[int] = set()
    sums: dict[str, int] = {}
    for name, labels, value in _samples(body.decode("utf-8", "replace")):
        if labels.get("dynamo_endpoint") != endpoint:
            continue
        sums[name] = sums.get(name, 0) + value
        owner = _hex(labels.get("worker_id", ""))
        if owner is not None:
            whose.add(owner)
    if "requests_total" not in sums:
        return None
    return Work(
        instance_ids=frozenset(whose),
        asked=sums["requests_total"],
        completed=sums.get("request_duration_seconds_count", 0),
        failed=sums.get("errors_total", 0) + sums.get("cancellation_total", 0),
        inflight=sums.get("inflight_requests", 0),
    )


def proven(instance_id: int, got: Answer, before: Work | None, after: Work | None) -> Verdict:
    """Did `instance_id` give this answer? `before` and `after` are its counters around it.

    A no is no evidence against the worker: in round-robin it may simply not have been its turn.
    """
    if not got.answered:
        return Verdict(False, f"{NEVER_ASKED}: {got.reason}")
    if instance_id not in got.named:
        return Verdict(False, f"{NEVER_ASKED}: the completion went to another worker")
    if before is None or after is None:
        return Verdict(False, f"{NEVER_ASKED}: its counters could not be read")
    if instance_id not in before.instance_ids or instance_id not in after.instance_ids:
        return Verdict(False, f"{NEVER_ASKED}: its system port belongs to another worker")
    if after.completed - after.failed <= before.completed - before.failed:
        return Verdict(False, f"{NEVER_ASKED}: routed there, but finished by another worker")
    return Verdict(True, "answered a request")


_SAMPLE = re.compile(r"^dynamo_component_(\w+)\{([^}]*)\}\s+(\S+)", re.ASCII | re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"', re.ASCII)
_WANTED = frozenset(
    {"requests_total", "request_duration_seconds_count", "errors_total", "cancellation_total", "inflight_requests"}
)


def _samples(page: str) -> list[tuple[str, dict[str, str], int]]:
    samples = []
    for name, labels, number in _SAMPLE.findall(page):
        if name not in _WANTED:
            continue
        try:
            value = float(number)
        except ValueError:
            continue
        if math.isfinite(value):
            samples.append((name, dict(_LABEL.findall(labels)), int(value)))
    return samples


def _hex(word: str) -> int | None:
    """Workers write their instance id in hexadecimal here, in decimal everywhere else."""
    try:
        return int(word, 16) if re.fullmatch(r"[0-9a-f]{1,16}", word) else None
    except ValueError:
        return None
