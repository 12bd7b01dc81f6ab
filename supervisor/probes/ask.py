"""What to ask: the request of each probe. Sent by somebody else; judged in `judge`, `view` and `proof`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, without the address it goes to."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def etcd_health() -> HttpRequest:
    """To a member's client port; for `judge.etcd_healthy`."""
    return HttpRequest("GET", "/health")


def nats_health() -> HttpRequest:
    """To its monitor port; for `judge.nats_healthy`."""
    return HttpRequest("GET", "/healthz")


def etcd_range(prefix: str, *, keys_only: bool = False) -> HttpRequest:
    """Every key that begins with `prefix`, to a member's client port; for `view.registry`."""
    first = prefix.encode()
    after = first[:-1] + bytes((first[-1] + 1,))  # a prefix ends in "/" or a letter: never in 0xff
    asked: dict[str, object] = {"key": _b64(first), "range_end": _b64(after)}
    return post("/v3/kv/range", {**asked, "keys_only": True} if keys_only else asked)


def frontend_live() -> HttpRequest:
    """For `judge.frontend_live`."""
    return HttpRequest("GET", "/live")


def frontend_view() -> HttpRequest:
    """For `view.instances`."""
    return HttpRequest("GET", "/health")


def frontend_models() -> HttpRequest:
    """For `view.models`."""
    return HttpRequest("GET", "/v1/models")


def worker_health() -> HttpRequest:
    """To a worker's system port; for `judge.worker_ready`."""
    return HttpRequest("GET", "/health")


def worker_metrics() -> HttpRequest:
    """To a worker's system port; for `proof.work`."""
    return HttpRequest("GET", "/metrics")


def completion(model: str, *, pin: int | None = None, role: str = "decode") -> HttpRequest:
    """One token from `model`, to a frontend; for `proof.answer`.

    `/v1/completions`, not chat: a base model has no chat template. The answer names the instances it was routed to, in
    every router mode. `pin` asks for one of them (`role`: "decode", also right for an aggregated worker, or
    "prefill"). KV and direct routers obey; round-robin and its relatives ignore it, so ask again until the wanted name
    comes up. `nvext.backend_instance_id` is not used: a disaggregated model answers it with 500 (1.4.2).
    """
    nvext: dict[str, object] = {"extra_fields": ["worker_id"]}
    if pin is not None:
        nvext[f"{role}_worker_id"] = pin
    body = {"model": model, "prompt": "hi", "max_tokens": 1, "stream": False, "nvext": nvext}
    return post("/v1/completions", body)


def embedding(model: str) -> HttpRequest:
    """One vector from `model`, to a frontend; for `proof.embedded`. No answer names who made it, and nobody can be pinned."""
    return post("/v1/embeddings", {"model": model, "input": "hi"})


def post(path: str, body: Mapping[str, object]) -> HttpRequest:
    """A JSON document."""
    text = json.dumps(body, separators=(",", ":"))
    return HttpRequest("POST", path, {"Content-Type": "application/json"}, text.encode())


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
