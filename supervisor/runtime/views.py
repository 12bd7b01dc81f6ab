"""What the frontends show, asked once for everybody who wants to know at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio

from supervisor.probes import ask, view
from supervisor.probes.view import Models, View
from supervisor.runtime.hostlink import HostLink

FRESH_S = 0.1  # younger than this, an answer serves the next asker too


@dataclass(slots=True)
class FrontendView:
    """One frontend at one address, through the link of its host."""

    link: HostLink
    address: str
    port: int
    instances: View = field(default_factory=lambda: View(False, frozenset(), "not asked yet"))
    models: Models = field(default_factory=lambda: Models(False, frozenset(), "not asked yet"))
    _asked_s: float = -1.0
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def refresh(self) -> None:
        """Ask again unless just asked. Raises HostUnreachable."""
        async with self._lock:
            if anyio.current_time() - self._asked_s < FRESH_S:
                return
            self.instances = view.instances(*await self.link.http(self.address, self.port, ask.frontend_view()))
            self.models = view.models(*await self.link.http(self.address, self.port, ask.frontend_models()))
            self._asked_s = anyio.current_time()
