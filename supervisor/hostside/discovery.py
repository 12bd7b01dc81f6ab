"""An etcd that is not ours, as a link knows it: whether what is started here could use it, and what the controller asks of it.

Everything is done in a child (aside.py): a name that does not resolve, or a login, takes longer than a link may be deaf.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Optional

from . import aside, etcd
from .reactor import Reactor

MEMBER_S = 2.0  # for one member
ALL_S = 8.0  # for all of them
AGAIN_S = 2.0


class Discovery:
    def __init__(self, reactor: Reactor, news: Callable[[Optional[str]], None]) -> None:
        """`news` is called with why it cannot be used, when that has changed: "" = it can, None = it has not answered yet."""
        self._reactor, self._news = reactor, news
        self._target: Optional[Dict[str, Any]] = None
        self.why: Optional[str] = ""

    @property
    def auth(self) -> Optional[Dict[str, str]]:
        return (self._target or {}).get("auth")

    def use(self, target: Optional[Dict[str, Any]]) -> None:
        """From now on this one, tried until it works; None: it is one of ours, or a directory."""
        self._target = target
        self._is(None if target else "")
        self._try(target)

    def _try(self, target: Optional[Dict[str, Any]]) -> None:
        def done(answer: Optional[bytes]) -> None:
            if self._target is not target:
                return
            why = json.loads(answer) if answer else "etcd did not answer within %g s" % ALL_S
            if why:
                self._reactor.after(AGAIN_S, lambda: self._try(target))
            self._is(why)

        if target is not None and self._target is target:
            self._beside(lambda: etcd.probe(target, MEMBER_S), done)

    def _is(self, why: Optional[str]) -> None:
        was, self.why = self.why, why
        if why != was:
            self._news(why)

    def ask(self, message: Dict[str, Any], done: Callable[[Dict[str, Any]], None]) -> None:
        """{"path", "body", "timeout_s": of each member}; `done` is given status, body and error."""

        def answered(answer: Optional[bytes]) -> None:
            done(json.loads(answer) if answer else {"status": 0, "body": "", "error": "etcd did not answer"})

        target, body = self._target, message["body"].encode("latin-1")
        if target is None:
            return answered(None)
        return self._beside(lambda: etcd.ask(target, message["path"], body, float(message["timeout_s"])), answered)

    def _beside(self, work: Callable[[], bytes], done: Callable[[Optional[bytes]], None]) -> None:
        try:
            aside.begin(self._reactor, work, ALL_S, done)
        except OSError:  # the host has no process left for it
            done(None)
