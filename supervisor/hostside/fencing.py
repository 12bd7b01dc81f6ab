"""When a keeper fences its run, and how often it tries. How it is done stands in fence.py."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

from . import etcd, fence
from .reactor import Reactor, Timer
from .runstate import wall_ms

AGAIN_S = 1.0
TRIES = 60  # the lease is gone by itself after its TTL of 60 s


class Fencing:
    def __init__(
        self,
        reactor: Reactor,
        target: Optional[Dict[str, Any]],
        result: Optional[Dict[str, Any]],
        tried: Callable[[], None],
        event: Callable[[str, str], None],
    ) -> None:
        """`result`: of an earlier keeper. `tried` is called after each later try, which may have been the last."""
        self._reactor, self._target, self._tried, self._event = reactor, target, tried, event
        self.result = result  # {"at", "did"} or {"at", "error"}; None = not tried
        self._tries = 0  # left
        self._timer = Timer(lambda: None)
        etcd.prepare(target or {})

    @property
    def auth(self) -> Optional[Dict[str, str]]:
        return (self._target or {}).get("auth")

    @property
    def leases(self) -> bool:
        """Whether what it registers hangs on a lease."""
        return self._target is not None and self._target["kind"] == "etcd"

    @property
    def leased(self) -> bool:
        """Whether a controller has told us which."""
        return bool(self._target and self._target.get("lease"))

    @property
    def failed(self) -> bool:
        return self.result is not None and "error" in self.result

    @property
    def trying(self) -> bool:
        return self._tries > 0

    def told(self, message: Dict[str, Any]) -> None:
        """The controller identified the worker (lease id), or wants it out of the routing now."""
        if self._target is not None and message.get("lease"):
            self._target["lease"] = str(message["lease"])
        if self._target is not None and message.get("auth"):
            self._target["auth"] = message["auth"]
        if message.get("now"):
            self.do()
            self._tried()

    def do(self) -> None:
        """Fence now, and again until it worked. Each time anew: it may have registered since it was last fenced."""
        self._tries = TRIES
        self._try()

    def _try(self) -> None:
        self._timer.cancel()
        self._tries -= 1
        if self._target is None:
            self._tries = 0
            return
        try:
            did = fence.fence(self._target)
            self.result, self._tries = {"at": wall_ms(), "did": did}, 0
            self._event("fenced", str(did))
        except (OSError, ValueError, LookupError, TypeError) as error:  # the last two: something answered that is no etcd
            if not self.failed:  # once, not at every try
                self._event("not fenced", str(error))
            self.result = {"at": wall_ms(), "error": str(error)[:500]}
            if self._tries:
                self._timer = self._reactor.after(AGAIN_S, self._again)

    def _again(self) -> None:
        self._try()
        self._tried()
