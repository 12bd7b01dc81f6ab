"""Look at a run's readiness, through the link of its own host, and say what was found. Judging is done in `probes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio

from supervisor.core.facts import Fact, Probed
from supervisor.errors import HostUnreachable
from supervisor.probes import ask, judge, proof, view
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.views import FrontendView

STARTING_S = 0.1  # between two looks at what is not ready, at first
PATIENCE = 0.05  # later this part of what it has taken so far: hundreds that load for minutes are not asked ten times a second
STARTING_MAX_S = 1.0
READY_S = 2.0
PROGRESS_S = 1.0
COMPLETION_S = 30.0


@dataclass(frozen=True, slots=True)
class Subject:
    """One run to be looked at. `fronts` and `served` are asked each time: frontends and workers come and go."""

    process: str
    run: str
    kind: str
    link: HostLink
    address: str
    ports: Mapping[str, int]
    served_as: str
    fronts: Callable[[], list[FrontendView]]
    served: Callable[[], frozenset[str]]  # models of which a worker is ready


@dataclass(frozen=True, slots=True)
class Found:
    stage: str
    ready: bool = False
    proven: bool = False
    instance: str = ""


async def watch(subject: Subject, tell: Callable[[Fact], Awaitable[None]]) -> None:
    """Until cancelled. A lost line ends nothing here: the link itself says that its host is lost."""
    last = Found("started")
    progress, looked_s, began_s = 0, -PROGRESS_S, anyio.current_time()
    while True:
        try:
            last = await _look(subject, last)
            if not last.ready and anyio.current_time() - looked_s >= PROGRESS_S:
                progress = (await subject.link.request({"op": "tail", "run": subject.run, "bytes": 0})).get("end", 0)
                looked_s = anyio.current_time()
            await tell(Probed(subject.process, subject.run, last.stage, last.ready, last.proven, last.instance, progress))
        except HostUnreachable:
            pass
        began_s = anyio.current_time() if last.ready else began_s
        waiting_s = PATIENCE * (anyio.current_time() - began_s)
        await anyio.sleep(READY_S if last.ready and last.proven else min(max(waiting_s, STARTING_S), STARTING_MAX_S))


async def _look(subject: Subject, last: Found) -> Found:
    if subject.kind == "etcd":
        verdict = judge.etcd_healthy(*await subject.link.http(subject.address, subject.ports["client"], ask.etcd_health(), 2.0))
        return Found("healthy" if verdict.ok else verdict.reason, verdict.ok, verdict.ok)
    if subject.kind == "frontend":
        verdict = judge.frontend_live(
            *await subject.link.http(subject.address, subject.ports["http"], ask.frontend_live(), 2.0)
        )
        if not verdict.ok or last.ready:
            return Found("live" if verdict.ok else verdict.reason, verdict.ok, verdict.ok)
        return await _look_at_new_frontend(subject)
    return await _look_at_worker(subject, last)


async def _look_at_new_frontend(subject: Subject) -> Found:
    """It answers, but with 404 until it has found the models that others had listed before it was killed."""
    listed = view.models(*await subject.link.http(subject.address, subject.ports["http"], ask.frontend_models()))
    missing = subject.served() - listed.names
    return Found(f"live, {min(missing)} not listed yet") if missing else Found("live", True, True)


async def _look_at_worker(subject: Subject, last: Found) -> Found:
    """Endpoint ready, its own instance registered, the model listed by every frontend, and one completion answered by it."""
    status, body = await subject.link.http(subject.address, subject.ports["system"], ask.worker_health(), 2.0)
    healthy = judge.worker_ready(status, body)
    if not healthy.ok:
        return Found("loading" if status == 0 else healthy.reason)
    fronts = subject.fronts()
    if not fronts:
        return Found("loaded; waiting for a frontend")
    instance = ""
    for front in fronts:
        await front.refresh()
        mine = front.instances.at(subject.address, subject.ports["rpc"])
        if not mine:
            return Found("loaded, not registered yet")
        instance = str(max(i.instance_id for i in mine))
        if subject.served_as not in front.models.names:
            return Found(f"registered, {subject.served_as} not listed yet", instance=instance)
    if last.proven and last.instance == instance:
        return last
    return await _prove(subject, fronts[0], instance)


async def _prove(subject: Subject, front: FrontendView, instance: str) -> Found:
    """Ask for one token; round-robin may hand it to another worker, then we are served but not proven, and ask again."""
    before = proof.work(*await subject.link.http(subject.address, subject.ports["system"], ask.worker_metrics()))
    request = ask.completion(subject.served_as, pin=int(instance))
    answer = proof.answer(*await front.link.http(front.address, front.port, request, COMPLETION_S))
    after = proof.work(*await subject.link.http(subject.address, subject.ports["system"], ask.worker_metrics()))
    verdict = proof.proven(int(instance), answer, before, after)
    if verdict.ok:
        return Found("serving", ready=True, proven=True, instance=instance)
    return Found(verdict.reason if not answer.answered else proof.NEVER_ASKED, ready=answer.answered, instance=instance)
