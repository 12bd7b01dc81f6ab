"""What a controller writes down as it lives, and what it reads when it begins: the shorthand between a fleet and its store.

The loop only puts rows aside; they are written in batches, in a thread, a moment later. What a `kill -9` catches there is made
up for: hosts tell their events again, and an end whose row was lost is counted by the next controller, since its row says
that the run lives.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import anyio
import anyio.to_thread

from supervisor.core.exit import Exit
from supervisor.core.facts import Asked, CordonAsked, Fact, HostFound, Phase, RunState, StopAsked, Told
from supervisor.core.memory import Remembered, remembered
from supervisor.core.process import Process
from supervisor.effects.statedir import StateDir
from supervisor.effects.store import Document, Row, Store
from supervisor.errors import NorayError
from supervisor.log import log

GATHER_S = 0.05  # of news go into one transaction
AGAIN_S = 5.0  # after one that failed
WAITING = 20_000  # events that wait for a disk with room; the oldest are given up
PRUNE_EVERY = 1_000  # events


class Recorder:
    """One controller's pen. Before `begin` and after `close` everything is let pass."""

    def __init__(self, state: StateDir, only: Iterable[str] = ()) -> None:
        """`only`: what it ends, where it does not end everything."""
        self._state, self._end = state, f"stop {' '.join(only)}" if only else "down"
        self._store: Store | None = None
        self._epoch_ms, self._epoch_s = 0, 0.0
        self._rows: dict[str, Remembered | None] = {}
        self._events: list[Row] = []
        self._kept: dict[str, Remembered] = {}  # as last put aside
        self._told: dict[str, int] = {}  # run -> the highest number heard
        self._written = 0
        self._failing = False
        self._lock = threading.Lock()  # of what is beside the loop: one writes at a time, and nobody in what is closed
        self._news = anyio.Event()

    def begin(self, epoch_ms: int, epoch_s: float) -> dict[str, Remembered]:
        """What the last controller knew, on the loop's clock, on which `epoch_s` is the wall clock's `epoch_ms`.

        Raises NorayError: then nothing is recorded.
        """
        self._epoch_ms, self._epoch_s = epoch_ms, epoch_s
        self._store = self._state.writing(durable=False)
        self._store.prune(epoch_ms)
        self._kept = {str(row["process"]): self._of_row(row) for row in self._store.processes()}
        return dict(self._kept)

    # --- from within the loop ---------------------------------------------------------------------------------------------

    def heard(self, fact: Fact, ahead_ms: int = 0) -> None:
        """A fact on its way in. `ahead_ms`: how far the clock of its host is ahead of ours."""
        match fact:
            case Told(host, state):
                self._events_of(host, state, ahead_ms)
            case HostFound(host, runs):
                for state in runs:
                    self._events_of(host, state, ahead_ms)
            case Asked(names, up, by, _, runs):
                word = "restart" if runs else "start" if up else "stop"
                self.note("ordered", f"{word} {' '.join(sorted(names))}, by {by or 'nobody knows whom'}")
            case CordonAsked(names, on, by):
                word = "cordon" if on else "uncordon"
                self.note("ordered", f"{word} {' '.join(sorted(names))}, by {by or 'nobody knows whom'}")
            case StopAsked(skip_drain):
                self.note("ordered", self._end + (", at once" if skip_drain else ""))

    def note(self, what: str, text: str, *, host: str = "", process: str = "", run: str = "") -> None:
        """An event of the controller's own."""
        self._put(Row(int(time.time() * 1000), what, text, host, process, run))

    def moved(self, before: Mapping[str, Process], after: Mapping[str, Process], names: Iterable[str]) -> None:
        """`names`: of the processes that are not as they were."""
        if self._store is None:
            return
        for name in names:
            row = remembered(after[name])
            if self._kept.get(name) != row:
                self._kept[name] = self._rows[name] = row
                self._ring()
        if before.keys() - after.keys():
            for name in before.keys() - after.keys():
                self._kept.pop(name, None)
                self._rows[name] = None
            self._ring()

    def _events_of(self, host: str, state: RunState, ahead_ms: int) -> None:
        last = self._told.pop(state.run, 0)
        if state.events and state.phase is not Phase.GONE:  # of what is over nothing more will come
            self._told[state.run] = state.events[-1].n
        if state.events and state.events[-1].n > last:
            for e in state.events:
                if e.n > last:
                    self._put(Row(e.at_ms - ahead_ms, e.what, e.text, host, state.process, state.run, e.n))

    def _put(self, row: Row) -> None:
        if self._store is not None:
            self._events.append(row)
            self._ring()

    def _ring(self) -> None:
        self._news.set()

    # --- beside it ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; `close` writes what is left."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await anyio.sleep(AGAIN_S if self._failing else GATHER_S)
            await anyio.to_thread.run_sync(self._write, *self._taken())
            if self._failing:
                self._ring()

    def close(self) -> None:
        """Write what is left, and forget how to write."""
        if self._store is not None:
            self._write(*self._taken())
            with self._lock:
                self._store.close()
                self._store = None

    def _taken(self) -> tuple[dict[str, Remembered | None], list[Row]]:
        taken = self._rows, self._events
        self._rows, self._events = {}, []
        return taken

    def _write(self, rows: dict[str, Remembered | None], events: list[Row]) -> None:
        with self._lock:
            if self._store is not None:
                self._write_to(self._store, rows, events)

    def _write_to(self, store: Store, rows: dict[str, Remembered | None], events: list[Row]) -> None:
        try:
            now_ms = int(time.time() * 1000)
            store.write({name: None if row is None else self._row(row) for name, row in rows.items()}, events)
            self._written += len(events)
            if self._written >= PRUNE_EVERY:
                store.prune(now_ms)
                self._written = 0
            self._failing = False
        except NorayError as error:
            if not self._failing:
                log.error("not written down", why=str(error))
            self._failing = True
            self._rows = {**rows, **self._rows}
            self._events[:0] = events[-WAITING:]

    # --- between the two clocks ---------------------------------------------------------------------------------------------

    def _row(self, was: Remembered) -> Document:
        row = asdict(was)
        at_s, next_s, served_s = row.pop("restarts_s"), row.pop("next_attempt_s"), row.pop("served_s")
        row |= {"restarts_ms": [self._wall_ms(t) for t in at_s], "at_ms": int(time.time() * 1000)}
        row["next_attempt_ms"] = None if next_s is None else self._wall_ms(next_s)
        row["served_ms"] = None if served_s is None else self._wall_ms(served_s)
        return row

    def _of_row(self, row: Document) -> Remembered:
        known = {key: row[key] for key in Remembered.__dataclass_fields__ if key in row}
        next_ms, served_ms, last = row.get("next_attempt_ms"), row.get("served_ms"), row.get("last_exit")
        known["restarts_s"] = tuple(self._loop_s(ms) for ms in row["restarts_ms"])
        known["next_attempt_s"] = None if next_ms is None else self._loop_s(next_ms)
        known["served_s"] = None if served_ms is None else self._loop_s(served_ms)
        known["last_exit"] = None if last is None else Exit(**(last | {"signs": tuple(map(tuple, last.get("signs", ())))}))
        return Remembered(**known)

    def _wall_ms(self, at_s: float) -> int:
        return math.floor(self._epoch_ms + (at_s - self._epoch_s) * 1000)

    def _loop_s(self, at_ms: int) -> float:
        return self._epoch_s + (at_ms - self._epoch_ms) / 1000
