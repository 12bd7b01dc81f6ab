"""Is this process well? One question each, from the status and body of one answer."""

from __future__ import annotations

from supervisor.probes.rim import Verdict, excerpt, mapping, obj, text


def etcd_healthy(status: int, body: bytes) -> Verdict:
    """Healthy means: has a leader and can write. The word is a string there, `{"health":"true"}`."""
    found = obj(body)
    if found is None or "health" not in found:
        return Verdict(False, f"etcd does not answer: {excerpt(status, body)}")
    if status == 200 and found["health"] in ("true", True):
        return Verdict(True, "etcd is healthy")
    return Verdict(False, f"etcd is not healthy: {text(found.get('reason')) or excerpt(status, body)}")


def etcd_leaderless(status: int, body: bytes) -> bool:
    """It lives, and waits for other members: with no majority of them there is no leader."""
    return "NO LEADER" in text(mapping(obj(body)).get("reason"))


def nats_healthy(status: int, body: bytes) -> Verdict:
    """It takes clients, and what it stores is there."""
    found = obj(body)
    if found is None or "status" not in found:
        return Verdict(False, f"nats-server does not answer: {excerpt(status, body)}")
    if status == 200 and found["status"] == "ok":
        return Verdict(True, "nats-server is healthy")
    return Verdict(False, f"nats-server is not healthy: {text(found.get('error')) or excerpt(status, body)}")


def frontend_live(status: int, body: bytes) -> Verdict:
    """Live from its HTTP server's first moment until SIGTERM. Says nothing about models or workers."""
    found = mapping(obj(body))
    said = text(found.get("status"))
    if status == 200 and said == "live":
        return Verdict(True, "frontend is live")
    if said == "shutting_down":
        return Verdict(False, "frontend is shutting down")
    return Verdict(False, f"frontend is not live: {excerpt(status, body)}")


def worker_loaded(status: int, body: bytes, endpoint: str = "generate") -> bool:
    """Its endpoint is there: whatever it says of itself, it has done loading."""
    return status != 0 and endpoint in mapping(mapping(obj(body)).get("endpoints"))


def worker_ready(status: int, body: bytes, endpoint: str = "generate") -> Verdict:
    """Ready by the endpoint's own word.

    The HTTP status is no argument: a mocker says 503 for ever unless told otherwise, and what a vLLM worker says
    depends on its canary. A worker that shuts down closes this port at once, long before its last stream ends.
    """
    found = obj(body)
    if found is None or not isinstance(found.get("endpoints"), dict):
        return Verdict(False, f"system port does not answer: {excerpt(status, body)}")
    endpoints = mapping(found["endpoints"])
    said = text(endpoints.get(endpoint))
    if said == "ready":
        return Verdict(True, f"endpoint {endpoint} is ready")
    if said:
        return Verdict(False, f"endpoint {endpoint} is {said[:40]}")
    return Verdict(False, f"endpoint {endpoint} is not there yet")
