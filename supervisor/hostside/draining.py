"""Drain: nothing new reaches a worker, and what it has in flight ends, before it hears of its end.

Cordoned by its instance key, as `fence.cordon` does it: its process stays as it is, model and streams included (0 of 128
requests failed on 1.4.2). Then its own counter of requests in flight is read until it says none. Needs no controller.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Optional, Tuple

from . import fence, http, ladder
from .reactor import Reactor, Timer

LOOK_S = 0.1
ANSWER_S = 2.0
QUIET = 3  # looks in a row without a request: a frontend that has not heard of the cordon yet may have sent one more

_INFLIGHT = re.compile(rb'^dynamo_component_inflight_requests\{[^}]*dynamo_endpoint="generate"[^}]*\}\s+([0-9.e+]+)', re.M)


class Draining:
    def __init__(
        self,
        reactor: Reactor,
        target: Dict[str, Any],
        system: Tuple[str, int],
        moved: Callable[[], None],
        over: Callable[[str], None],
    ) -> None:
        """`target`: as for a fence. `system`: host and port of its /metrics. `moved`: another number is in flight.

        `over(event)`, called once, with what the ladder calls it: DRAINED; UNSERVED; DUE if it cannot be cordoned or seen
        into, and all that can be done is what is done when its time is over.
        """
        self._reactor, self._target, self._system = reactor, target, system
        self._moved, self._over = moved, over
        self._timer = Timer(lambda: None)
        self._quiet = 0
        self._registered = self._asked = self._ended = False
        self.inflight: Optional[int] = None  # None: not seen yet

    def begin(self) -> None:
        try:
            registered = fence.cordon(self._target)
        except (OSError, ValueError, LookupError, TypeError):
            self._end(ladder.DUE)
            return
        self._registered = registered > 0
        self._look()

    def stop(self) -> None:
        """Whatever is in flight: nobody waits any more."""
        self._ended = True
        self._timer.cancel()

    def _look(self) -> None:
        host, port = self._system
        asked = http.request("GET", "%s:%d" % (host, port), "/metrics", {}, b"")
        http.Exchange(self._reactor, host, port, asked, ANSWER_S, self._seen)

    def _seen(self, status: int, body: bytes, error: str) -> None:
        if self._ended:
            return
        if status != 200:
            self._end(ladder.DUE if self._registered else ladder.UNSERVED)
            return
        was, self.inflight = self.inflight, int(sum(float(number) for number in _INFLIGHT.findall(body)))
        self._asked = self._asked or self.inflight > 0
        self._quiet = 0 if self.inflight else self._quiet + 1
        if self._quiet >= QUIET:
            self._end(self._served)
            return
        if self.inflight != was:
            self._moved()
        self._timer = self._reactor.after(LOOK_S, self._look)

    @property
    def _served(self) -> str:
        """Idle, because it is drained, or because nobody could have asked it: a port opens long before what is behind it."""
        return ladder.DRAINED if self._registered or self._asked else ladder.UNSERVED

    def _end(self, event: str) -> None:
        self.stop()
        self._over(event)
