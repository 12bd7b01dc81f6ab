"""Lines of several processes, in the order in which they were written. Pure: its caller says what time it is.

What was written before we looked (the backlog) is merged strictly: no line goes out while any process might still have an
earlier one to tell. What is written while we look goes out in the order it arrives, but `window_s` late: within that,
an earlier line that came over a slower way still finds its place. A process's own lines are never put in another order.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from supervisor.cli.render.lines import Line

FULL = 4096  # lines of one process that wait; then its host waits
FULL_BYTES = 1 << 20


class Interleave:
    def __init__(self, names: Iterable[str], *, last: int | None = None, window_s: float = 0.0) -> None:
        """`last`: of the backlog only so many lines, counted over all processes."""
        self._backlog = set(names)
        self._queues: dict[str, deque[tuple[Line, float]]] = {name: deque() for name in self._backlog}
        self._bytes = dict.fromkeys(self._backlog, 0)
        self._heads: list[tuple[int, int, str]] = []  # (key, arrival, process) of the first in each queue
        self._silent = set(self._backlog)  # backlog is not over, and nothing waits: an earlier line may come
        self._arrivals = 0
        self._window_s = window_s
        self._last = last
        self._held: deque[Line] | None = None if last is None else deque()
        self._held_lines = 0

    def add(self, name: str, lines: Iterable[Line], now_s: float) -> None:
        queue = self._queues[name]
        for line in lines:
            if not queue:
                self._push(name, line)
            queue.append((line, now_s))
            self._bytes[name] += len(line.data)
        if queue:
            self._silent.discard(name)

    def is_live(self, name: str) -> None:
        """Its backlog is told, or will not come: what it says from now on is news. Idempotent."""
        self._backlog.discard(name)
        self._silent.discard(name)

    def full(self, name: str) -> bool:
        return len(self._queues[name]) >= FULL or self._bytes[name] >= FULL_BYTES

    @property
    def waits(self) -> bool:
        """Whether lines wait that time alone will let go."""
        return bool(self._heads)

    def take(self, now_s: float) -> list[Line]:
        """What may be shown now, in order."""
        out: list[Line] = []
        while self._heads and not self._silent:
            name = self._heads[0][2]
            line, arrived_s = self._queues[name][0]
            if self._window_s and not self._backlog and now_s < arrived_s + self._window_s:
                break
            self._pop(name)
            out.append(line)
        if self._held is None:
            return out
        self._hold(out)
        if self._backlog:
            return []
        held, self._held = list(self._held), None
        return held

    def _hold(self, lines: list[Line]) -> None:
        assert self._held is not None
        assert self._last is not None
        for line in lines:
            self._held.append(line)
            self._held_lines += not line.note
            while self._held_lines > self._last:
                self._held_lines -= not self._held.popleft().note

    def _push(self, name: str, line: Line) -> None:
        self._arrivals += 1
        heapq.heappush(self._heads, (line.key_ms, self._arrivals, name))

    def _pop(self, name: str) -> None:
        queue = self._queues[name]
        heapq.heappop(self._heads)
        line, _ = queue.popleft()
        self._bytes[name] -= len(line.data)
        if queue:
            self._push(name, queue[0][0])
        elif name in self._backlog:
            self._silent.add(name)
