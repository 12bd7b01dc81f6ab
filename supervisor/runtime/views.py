"""What the frontends show, asked once for everybody who wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from supervisor.core.process import Process, State
from supervisor.errors import HostUnreachable
from supervisor.probes import ask, view
from supervisor.probes.proof import Answer
from supervisor.probes.view import Models, View
from supervisor.runtime.hostlink import HostLink

FRESH_S = 0.1  # younger than this, an answer serves the next asker too
READY_S = 2.0  # those that are ready are content with one so old

Address = tuple[HostLink, str, int]


@dataclass(slots=True)
class FrontendView:
    """One frontend at one address, through the link of its host."""

    link: HostLink
    address: str
    port: int
    instances: View = field(default_factory=lambda: View(False, frozenset(), "not asked yet"))
    models: Models = field(default_factory=lambda: Models(False, frozenset(), "not asked yet"))
    routed: dict[int, Answer] = field(default_factory=dict)  # by instance: a completion that another had asked for
    changes: int = 0
    _bodies: tuple[object, ...] = ()
    _asked_s: float = float("-inf")
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    def blind(self, model: str) -> bool:
        """It serves the model and can name nobody who does: it has lost etcd, not its workers (1.4.2: traffic flows on)."""
        return model in self.models.names and not self.instances.instances

    async def refresh(self, fresh_s: float) -> None:
        """Ask again what is older than this. Raises HostUnreachable."""
        async with self._lock:
            if anyio.current_time() - self._asked_s < fresh_s:
                return
            instances = await self.link.http(self.address, self.port, ask.frontend_view())
            models = await self.link.http(self.address, self.port, ask.frontend_models())
            if self._bodies != (instances, models):  # of 400 instances reading it takes longer than all the rest
                self._bodies, self.changes = (instances, models), self.changes + 1
                self.instances, self.models = view.instances(*instances), view.models(*models)
                if self.instances.known:  # the dead prove nothing any more
                    there = {each.instance_id for each in self.instances.instances}
                    self.routed = {number: answer for number, answer in self.routed.items() if number in there}
            self._asked_s = anyio.current_time()


def counting(frontends: Iterable[str], processes: Mapping[str, Process]) -> list[str]:
    """Whose word about workers counts: of frontends that serve; else of those with a live run, which may be about to.

    One of several that is restarted shows nobody for a while, and that is nobody's fault but its own.
    """
    seen = {name: p.seen for name in frontends if (p := processes.get(name)) is not None}
    there = [name for name, run in seen.items() if run is not None and run.ports.get("http")]
    return [name for name in there if processes[name].state is State.READY] or there


class Fronts:
    """The frontends that have a live run. `run` beside those who wait for news of them."""

    def __init__(self, live: Callable[[], Iterable[Address]]) -> None:
        self._live = live
        self._views: dict[tuple[str, str, int], FrontendView] = {}
        self._changes = 0  # of who they are
        self._bells: list[Callable[[], None]] = []

    def views(self) -> list[FrontendView]:
        known, self._views = self._views, {}
        for link, address, port in self._live():
            key = (link.name, address, port)
            self._views[key] = known.get(key) or FrontendView(link, address, port)
        self._changes += self._views.keys() != known.keys()
        return list(self._views.values())

    @contextmanager
    def heard(self, ring: Callable[[], None]) -> Iterator[None]:
        """`ring` is called when they show something else than before, looked at every READY_S: who is ready need not ask."""
        self._bells.append(ring)
        try:
            yield
        finally:
            self._bells.remove(ring)

    async def run(self) -> None:
        """Until cancelled."""
        rung: tuple[int, ...] = ()
        while True:
            await anyio.sleep(READY_S)
            if not self._bells:
                continue
            fronts = self.views()
            for front in fronts:
                try:
                    await front.refresh(READY_S / 2)
                except HostUnreachable:
                    pass
            # Counted, not compared: who looked between two of our looks may have seen what neither shows.
            changes = (self._changes, *(front.changes for front in fronts))
            if changes != rung:
                rung = changes
                for ring in list(self._bells):
                    ring()
