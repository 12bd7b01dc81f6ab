"""Follow a run's readiness and say what was found. The host looks by itself and tells what is new (`hostside/watches.py`); only
what depends on others, frontends above all, is asked again from here. Judging is done in `probes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import anyio

from supervisor.core.cordon import Aside
from supervisor.core.facts import Fact, Probed
from supervisor.errors import HostUnreachable
from supervisor.probes import ask, judge, proof, view
from supervisor.probes.ask import HttpRequest
from supervisor.probes.rim import Verdict
from supervisor.probes.view import Instance
from supervisor.runtime.hostlink import HostLink
from supervisor.runtime.parse import Moved, moved
from supervisor.runtime.views import FRESH_S, READY_S, FrontendView, Fronts

STARTING_S = 0.1  # between two looks at what is not ready, at first
PATIENCE = 0.05  # later this part of what it has taken so far: hundreds that load for minutes are not asked ten times a second
STARTING_MAX_S = 1.0
PROGRESS_S, PROGRESS_MAX_S = 1.0, 10.0  # between two looks at how it loads: a tenth of the time that a start may stand still
AGAIN_S = 1.0  # what only waits for others says so again: while it does, no time without progress goes by
COMPLETION_S = 30.0
UPTIME = r'"uptime": *\{[^}]*\}'  # moves in every answer of a worker


@dataclass(frozen=True, slots=True)
class Subject:
    """One run to be looked at. `served` is asked each time: workers come and go."""

    process: str
    run: str
    kind: str
    link: HostLink
    address: str
    ports: Mapping[str, int]
    served_as: str
    role: str
    task: str
    stall_s: float
    fronts: Fronts
    was_ready: bool  # already under an earlier look, perhaps of an earlier controller: what ails it now is no start
    served: Callable[[], frozenset[str]]  # models of which a worker is ready
    aside: Callable[[], Aside]  # whether it is cordoned

    @property
    def question(self) -> tuple[int, HttpRequest]:
        """What its own word is, and at which port."""
        match self.kind:
            case "etcd" | "gateway":
                return self.ports["client"], ask.etcd_health()
            case "nats":
                return self.ports["monitor"], ask.nats_health()
            case "frontend":
                return self.ports["http"], ask.frontend_live()
            case _:
                return self.ports["system"], ask.worker_health()


@dataclass(frozen=True, slots=True)
class Found:
    stage: str
    ready: bool = False
    well: bool = False  # as in `Probed`
    proven: bool = False
    instance: str = ""
    loaded: bool = False  # it has its endpoint: what its log says from now on is no progress
    confirmed: bool = False  # its own health has once said that it is well: from then on a no is a no
    served: bool = False  # it was ready once
    alone: bool = False  # only its own word can change this
    before: proof.Work | None = None  # what it had done when it was first asked to prove itself

    @property
    def settled(self) -> bool:
        return self.ready and self.proven


async def watch(subject: Subject, tell: Callable[[Fact], Awaitable[None]]) -> None:
    """Until cancelled. A lost line ends nothing here: the link itself says that its host is lost."""
    await _Watch(subject, tell).run()


class _Watch:
    """What is known of one run, and the bell that rings when more is."""

    def __init__(self, subject: Subject, tell: Callable[[Fact], Awaitable[None]]) -> None:
        self._subject, self._tell = subject, tell
        self._last = Found("started", confirmed=subject.was_ready, served=subject.was_ready)
        self._word: tuple[int, bytes] | None = None  # its own, the newest
        self._moved = Moved()
        self._told: Probed | None = None
        self._told_s = 0.0
        self._rung = anyio.Event()
        self._missed = False  # the last look came to nothing: a host was away

    async def run(self) -> None:
        link, calm, loading, began_s = self._subject.link, False, False, 0.0
        with (
            self._subject.fronts.heard(self._ring),
            link.watching(self._own(calm), self._heard) as again,
            ExitStack() as log,
        ):
            while True:
                if loading != self._loading:
                    loading, began_s = self._loading, anyio.current_time()
                    if loading:
                        log.enter_context(link.watching(self._load(), self._grown))
                    else:
                        log.close()
                if calm != (self._last.well or self._last.ready):
                    calm, began_s = not calm, anyio.current_time()
                    again(self._own(calm))
                with anyio.move_on_after(self._again_s(began_s)):
                    await self._rung.wait()
                self._rung = anyio.Event()
                if self._last.settled:
                    began_s = anyio.current_time()
                await self._look()

    async def _look(self) -> None:
        if self._word is None:
            return
        try:
            self._last = await _look(self._subject, self._word, self._last)
            self._missed = False
            await self._say()
        except HostUnreachable:
            self._missed = True

    @property
    def _loading(self) -> bool:
        """What it writes is progress."""
        return not self._last.loaded and not self._last.served

    def _again_s(self, began_s: float) -> float | None:
        """Until it is looked at again though nobody rang; None: never."""
        if self._word is None or ((self._last.settled or self._last.alone) and not self._missed):
            return None
        most_s = READY_S if self._last.ready else STARTING_MAX_S
        return min(max(PATIENCE * (anyio.current_time() - began_s), STARTING_S), most_s)

    async def _say(self) -> None:
        last, now_s = self._last, anyio.current_time()
        found = Probed(self._subject.process, self._subject.run, last.stage, last.ready, well=last.well, proven=last.proven,
                       instance=last.instance, progress=self._moved.progress, busy=self._moved.cpu_s,
                       moves=str(self._moved) if self._loading else "")  # fmt: skip
        if found != self._told or (last.well and not last.ready and now_s - self._told_s >= AGAIN_S):
            self._told, self._told_s = found, now_s
            await self._tell(found)

    # --- what the host looks at by itself -------------------------------------------------------------------------------

    def _own(self, calm: bool) -> Mapping[str, object]:
        port, request = self._subject.question
        pace = {"every_s": READY_S} if calm else {"every_s": STARTING_S, "patience": PATIENCE, "at_most_s": STARTING_MAX_S}
        return {**self._subject.link.asking(self._subject.address, port, request, 2.0), **pace, "steady": UPTIME}

    def _load(self) -> Mapping[str, object]:
        return {"run": self._subject.run, "every_s": min(max(self._subject.stall_s / 10, PROGRESS_S), PROGRESS_MAX_S)}

    def _heard(self, said: Mapping[str, Any]) -> None:
        self._word = self._subject.link.answered(said)
        self._ring()

    def _grown(self, said: Mapping[str, Any]) -> None:
        self._moved = moved(said)
        self._ring()

    def _ring(self) -> None:
        self._rung.set()


async def _look(subject: Subject, word: tuple[int, bytes], last: Found) -> Found:
    if subject.kind in ("etcd", "gateway"):
        found = _alone("healthy", judge.etcd_healthy(*word))
        return replace(found, well=found.well or judge.etcd_leaderless(*word))
    if subject.kind == "nats":
        return _alone("healthy", judge.nats_healthy(*word))
    if subject.kind == "frontend":
        verdict = judge.frontend_live(*word)
        if not verdict.ok or last.ready:
            return _alone("live", verdict)
        return await _look_at_new_frontend(subject)
    return await _look_at_worker(subject, word, last)


def _alone(stage: str, verdict: Verdict) -> Found:
    """Of what serves nobody but by answering."""
    return Found(stage if verdict.ok else verdict.reason, verdict.ok, well=verdict.ok, proven=verdict.ok, alone=True)


async def _look_at_new_frontend(subject: Subject) -> Found:
    """It answers, but with 404 until it has found the models that others had listed before it was killed."""
    listed = view.models(*await subject.link.http(subject.address, subject.ports["http"], ask.frontend_models()))
    missing = subject.served() - listed.names
    stage = f"live, {min(missing)} not listed yet" if missing else "live"
    return Found(stage, ready=not missing, well=True, proven=not missing)


async def _look_at_worker(subject: Subject, word: tuple[int, bytes], last: Found) -> Found:
    """Its endpoint there, its own instance registered, the model listed by every frontend, one request answered by it.

    Its own health counts once it has said yes: before that a canary may not have asked yet, and a completion says more.
    A prefill worker answers no completion, and is there before the model is: it must say yes and be registered. A classifier
    must be listed, too; what to ask it depends on its model. Dynamo's canary asks both of them.
    """
    prefills = subject.role == "prefill"
    asked = not prefills and subject.task != "classification"
    status, body = word
    healthy = judge.worker_ready(status, body)
    loaded = judge.worker_loaded(status, body)
    confirmed, served = last.confirmed or healthy.ok, last.served or last.ready
    found = Found("", loaded=loaded, confirmed=confirmed, served=served, well=healthy.ok)
    if not loaded or ((found.confirmed or not asked) and not healthy.ok):
        stage = "loading" if status == 0 and not last.confirmed else healthy.reason
        return replace(found, stage=stage, alone=True)
    fronts = subject.fronts.views()
    if (aside := subject.aside()) is not Aside.NO:
        found = replace(found, served=served or aside is Aside.OUT)
        return await _look_at_cordoned(subject, fronts, found, last)
    if not fronts:
        return replace(found, stage="loaded; waiting for a frontend")
    for front in fronts:
        await front.refresh(READY_S if last.settled else FRESH_S)
        if last.settled and front.blind(subject.served_as):
            found = replace(found, instance=found.instance or last.instance)
            continue
        mine = await _mine(subject, front)
        if not mine:
            return replace(found, stage="loaded, not registered yet")
        found = replace(found, instance=str(max(i.instance_id for i in mine)))
        if not prefills and subject.served_as not in front.models.names:
            return replace(found, stage=f"registered, {subject.served_as} not listed yet{_lack(subject, front, mine)}")
    if not asked:
        return replace(found, stage="serving", ready=True, well=True, proven=True)
    if last.instance == found.instance:
        if last.proven:
            return replace(found, stage="serving", ready=True, well=True, proven=True)
        found = replace(found, before=last.before)
    return await _prove(subject, fronts[0], found)


async def _mine(subject: Subject, front: FrontendView) -> frozenset[Instance]:
    """Its instances, as this frontend has them: by its address; over NATS, where it has none, by what it says of itself."""
    if "rpc" in subject.ports:
        return front.instances.at(subject.address, subject.ports["rpc"])
    work = await _work(subject)
    return front.instances.named(work.instance_ids if work else ())


def _lack(subject: Subject, front: FrontendView, mine: Collection[Instance]) -> str:
    """What the model is not listed for, as far as that can be seen."""
    near = {i.namespace for i in mine}
    there = any(i.component == "prefill" and i.namespace in near for i in front.instances.instances)
    return ": no prefill" if subject.role == "decode" and not there else ""


async def _look_at_cordoned(subject: Subject, fronts: list[FrontendView], found: Found, last: Found) -> Found:
    """Nobody routes to it, so nobody can say more of it than itself; a new run must be registered before it is taken out."""
    for front in fronts:
        await front.refresh(READY_S if last.settled else FRESH_S)
        for mine in await _mine(subject, front):
            found = replace(found, instance=str(mine.instance_id))
    if not found.instance and not found.served:
        return replace(found, stage="loaded, not registered yet")
    return replace(found, stage="cordoned", ready=True, well=True, proven=last.proven, instance=found.instance or last.instance)


async def _prove(subject: Subject, front: FrontendView, found: Found) -> Found:
    """One token, asked for by it or, as round-robin hands it to anybody, by another of those that want to prove themselves.

    Where nobody's was routed to it we are served but not proven, and ask again.
    """
    instance = int(found.instance)
    if found.before is None:
        front.routed.pop(instance, None)  # may be older than what is counted from now on
        found = replace(found, before=await _work(subject))
    answer = front.routed.pop(instance, None)
    if answer is None:
        answer = await _answer(subject, front, instance)
        front.routed.update(dict.fromkeys(answer.named - {instance}, answer))
    verdict = proof.proven(instance, answer, found.before, await _work(subject))
    if verdict.ok:
        return replace(found, stage="serving", ready=True, well=True, proven=True)
    if not answer.answered:
        # Of what has served before, another may have been asked, and be the one that is ill.
        return replace(found, stage=verdict.reason, well=found.well and found.served)
    return replace(found, stage=proof.NEVER_ASKED, ready=found.confirmed)


async def _answer(subject: Subject, front: FrontendView, instance: int) -> proof.Answer:
    if subject.task == "embedding":
        request = ask.embedding(subject.served_as)
        return proof.embedded(instance, *await front.link.http(front.address, front.port, request, COMPLETION_S))
    request = ask.completion(subject.served_as, pin=instance)
    return proof.answer(*await front.link.http(front.address, front.port, request, COMPLETION_S))


async def _work(subject: Subject) -> proof.Work | None:
    return proof.work(*await subject.link.http(subject.address, subject.ports["system"], ask.worker_metrics()))
