"""How a run's tree is brought to its end: the ladder's steps carried out, and the sweep that proves nobody is left."""

from __future__ import annotations

import signal
import time
from typing import Any, Callable, Dict, Optional

from . import ladder, procfs
from .reactor import Reactor, Timer
from .runstate import wall_ms
from .tree import Tree

SWEEP_S = 0.02  # how often an ending tree is looked at


class Ending:
    def __init__(
        self, reactor: Reactor, tree: Tree, began: ladder.Ladder, look: Callable[[], None], entered: Callable[[str], None]
    ) -> None:
        """`look` reaps and then calls `check`; it is called every SWEEP_S of an ending. `entered(step)`: tell on."""
        self._reactor, self._tree, self._ladder = reactor, tree, began
        self._look, self._entered = look, entered
        self._timer = Timer(lambda: None)
        self._sweeping = False
        self.empty = False  # the tree; proven

    @property
    def step(self) -> str:
        return self._ladder.step

    def told(self, owed: str, inflight: Optional[int]) -> Optional[Dict[str, Any]]:
        """The step under way, when the next one comes, and what is in its way; None if nothing ends.

        `owed`: what the GPUs have not got back. `inflight`: requests; None = not seen.
        """
        if self.step in (ladder.IDLE, ladder.DONE):
            return None
        left = None if self._ladder.deadline is None else self._ladder.deadline - time.monotonic()
        until = None if left is None else wall_ms() + int(left * 1000)
        left_over = [procfs.plight(p) for p in self._tree.members().values()] if self.step == ladder.STUCK else []
        if owed and self.step in (ladder.GPU_RETURN, ladder.GPU_HELD):
            left_over.append(owed)
        if inflight and self.step == ladder.DRAIN:
            left_over.append("1 request in flight" if inflight == 1 else "%d requests in flight" % inflight)
        return {"step": self.step, "until": until, "left": left_over}

    def ask(self, term_s: Optional[float], drain_s: float = 0.0) -> None:
        """Begin, or hasten, an orderly stop. `term_s`: from now to SIGKILL; `drain_s` of it are for what is in flight."""
        self._ladder = self._ladder._replace(drain_s=drain_s)
        if term_s is not None:
            self._ladder = self._ladder._replace(term_s=term_s)
        self.climb(ladder.ASK)

    def climb(self, event: str) -> None:
        self._ladder, step = ladder.on(self._ladder, event, time.monotonic())
        self._timer.cancel()
        if self._ladder.deadline is not None:
            left = max(0.0, self._ladder.deadline - time.monotonic())
            self._timer = self._reactor.after(left, lambda: self.climb(ladder.DUE))
        if step == ladder.TERM_LEADER:
            self._tree.signal_leader(signal.SIGTERM)
        elif step == ladder.TERM_REST:
            self._tree.signal_all(signal.SIGTERM)
        elif step == ladder.KILL:
            self._tree.kill()
        if step is not None:
            self._entered(step)
            self._sweep()

    def check(self, hold: bool) -> None:
        """The leader has ended; perhaps the rest has, too. `hold`: something else has to happen before it is over."""
        self.empty = self.empty or self._tree.empty()
        if self.empty and not hold:
            self.climb(ladder.EMPTY)
        elif self.empty:
            self._timer.cancel()  # nobody is left to escalate against

    def _sweep(self) -> None:
        if self._sweeping or self.empty or self.step in (ladder.IDLE, ladder.DRAIN, ladder.DONE):
            return
        self._sweeping = True

        def again() -> None:
            self._sweeping = False
            if self.step == ladder.KILL:
                self._tree.kill()
            self._look()
            self._sweep()

        self._reactor.after(SWEEP_S, again)
