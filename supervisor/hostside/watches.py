"""Look at one thing again and again, and tell only what is new: a process that nothing happens to costs its controller nothing.

In:  {"op": "watch", "id", "every_s", "patience", "at_most_s", and either what `http` takes and "steady", or "run"}
     {"op": "unwatch", "id"}
Out: {"news": id, "status", "body", "error"}, or of a run {"news": id, …} as in loading.py: the first, then each that
     differs

Between two looks `every_s` goes by; later `patience`, a part of how long it has been watched, up to `at_most_s`: what loads for
minutes is not asked ten times a second. `steady` is a regular expression; what it matches in a body makes no difference
(Dynamo's /health tells an uptime). Another of its id is the same at another pace. It ends with its unwatch, and with the link.
"""

from __future__ import annotations

import re
import time
from typing import Any, Callable, Dict, Optional

from .reactor import Timer

Said = Dict[str, Any]
Look = Callable[[Callable[[Said], None]], None]
After = Callable[[float, Callable[[], None]], Timer]


class Watches:
    """All of one link. `after` is its reactor's, `send` its line's."""

    def __init__(self, after: After, send: Callable[[Said], None], now: Callable[[], float] = time.monotonic) -> None:
        self._after, self._send, self._now = after, send, now
        self._by_id: Dict[int, _Watch] = {}

    def begin(self, message: Said, look: Look) -> None:
        """`look` calls what it is given once, now or later. One of the same id goes on from what was told."""
        before = self.end(message)
        watch = self._by_id[message["id"]] = _Watch(message, look, self._after, self._send, self._now)
        watch.told = before.told if before else None
        watch.look()

    def end(self, message: Said) -> Optional[_Watch]:
        watch = self._by_id.pop(message["id"], None)
        if watch is not None:
            watch.ended = True
        return watch


class _Watch:
    def __init__(self, message: Said, look: Look, after: After, send: Callable[[Said], None], now: Callable[[], float]) -> None:
        self._id, self._look, self._after, self._send, self._now = message["id"], look, after, send, now
        self._every_s = float(message["every_s"])
        self._patience, self._at_most_s = float(message.get("patience", 0.0)), float(message.get("at_most_s", 0.0))
        self._steady = re.compile(message["steady"]) if message.get("steady") else None
        self._began = now()
        self.told: Optional[Said] = None
        self.ended = False

    def look(self) -> None:
        if not self.ended:
            self._look(self._seen)

    def _seen(self, said: Said) -> None:
        if self.ended:
            return
        essence = dict(said, body=self._steady.sub("", said["body"])) if self._steady and "body" in said else said
        if essence != self.told:
            self.told = essence
            self._send({"news": self._id, **said})
        self._after(max(self._every_s, min(self._patience * (self._now() - self._began), self._at_most_s)), self.look)
