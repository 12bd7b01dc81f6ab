"""The yes-or-no questions, against what the real programs said."""

from __future__ import annotations

import pytest

from supervisor.probes.judge import etcd_healthy, etcd_leaderless, frontend_live, nats_healthy, worker_ready
from supervisor.probes.rim import Verdict
from tests.probes.recorded import said

REFUSED = (0, b"[Errno 111] Connection refused")


@pytest.mark.parametrize(
    ("verdict", "ok", "reason"),
    [
        (etcd_healthy(*said("etcd_health")), True, "etcd is healthy"),
        (etcd_healthy(*said("etcd_health_alarm")), False, "etcd is not healthy: ALARM NOSPACE"),
        (etcd_healthy(200, b'{"health":false,"reason":"no leader"}'), False, "etcd is not healthy: no leader"),
        (etcd_healthy(*REFUSED), False, "etcd does not answer: no answer: [Errno 111] Connection refused"),
        (frontend_live(*said("frontend_live")), True, "frontend is live"),
        (frontend_live(*said("frontend_live_stopping")), False, "frontend is shutting down"),
        (frontend_live(*REFUSED), False, "frontend is not live: no answer: [Errno 111] Connection refused"),
        (frontend_live(404, b""), False, "frontend is not live: HTTP 404"),
        (worker_ready(*said("worker_health")), True, "endpoint generate is ready"),
        (worker_ready(*said("worker_health_not_ready")), False, "endpoint generate is notready"),
        (worker_ready(200, b'{"endpoints":{}}'), False, "endpoint generate is not there yet"),
        (worker_ready(*REFUSED), False, "system port does not answer: no answer: [Errno 111] Connection refused"),
    ],
)
def test_verdicts(verdict: Verdict, ok: bool, reason: str) -> None:
    assert verdict == Verdict(ok, reason)


def test_a_workers_http_status_is_no_argument() -> None:
    """A mocker without our environment says 503 for ever while its endpoint is ready."""
    assert worker_ready(503, said("worker_health")[1]).ok


def test_a_member_without_a_leader_waits_for_others() -> None:
    """Recorded from one of three, alone."""
    assert etcd_leaderless(503, b'{"health":"false","reason":"RAFT NO LEADER"}')
    assert not etcd_healthy(503, b'{"health":"false","reason":"RAFT NO LEADER"}').ok
    assert not etcd_leaderless(200, b'{"health":"true","reason":""}')
    assert not etcd_leaderless(*said("etcd_health_alarm"))
    assert not etcd_leaderless(*REFUSED)


def test_nats_is_healthy_by_its_own_word() -> None:
    assert nats_healthy(200, b'{"status":"ok"}').ok
    unwell = nats_healthy(503, b'{"status":"unavailable","error":"JetStream is not enabled"}')
    assert (unwell.ok, unwell.reason) == (False, "nats-server is not healthy: JetStream is not enabled")
    assert not nats_healthy(*REFUSED).ok


@pytest.mark.parametrize("judge", [etcd_healthy, frontend_live, nats_healthy, worker_ready])
def test_somebody_elses_web_server_is_not_ours(judge: type) -> None:
    assert not judge(200, b"<html>welcome to nginx</html>").ok
    assert not judge(200, b"{}").ok
