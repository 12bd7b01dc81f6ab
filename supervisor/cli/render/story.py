"""One process as its host tells it: runs that begin and end, pieces, gaps. To lines, and words of ours among them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supervisor.cli.render.lines import Cutter, Line
from supervisor.cli.render.times import clock
from supervisor.core.words import plain
from supervisor.runtime.parse import ended


class Story:
    """Of what `hostside/tail.py` says: all but `now`, `live` and `end`, which are about the conversation."""

    def __init__(self, name: str, chosen: bool) -> None:
        """`chosen`: one run was asked for, so which one it is is said first."""
        self.cutter = Cutter(name)
        self._chosen, self._ended = chosen, ""

    def heard(self, said: Mapping[str, Any], now_s: float) -> list[Line]:
        """`now_s`: seconds since the epoch, for how a time is written."""
        if "begin" in said:
            return self._begin(str(said["begin"]), said["started"], now_s)
        if "data" in said:
            return self.cutter.take(said["offset"], said["data"].encode("latin-1"), said["times"])
        if "gap" in said:
            return self.cutter.note(f"{said['gap']} bytes were rotated away here")
        if "ended" in said:
            how = str(ended(said["exit"])) if said["exit"] else "its records were removed before all of it was read"
            self._ended = f"run {plain(said['ended'])}: {plain(how)}"
        return []

    def end(self) -> list[Line]:
        """There is no more of it."""
        return self.cutter.note(self._ended) if self._ended else self.cutter.flush()

    def _begin(self, run: str, started_ms: int | None, now_s: float) -> list[Line]:
        before, self._ended = self._ended, ""
        rest = self.cutter.begin(run, started_ms)
        if before:
            return [*rest, *self.cutter.note(f"{before}; now run {plain(run)}")]
        if self._chosen:
            at = "" if started_ms is None else f", began {clock(started_ms / 1000, now_s)}"
            return [*rest, *self.cutter.note(f"run {plain(run)}{at}")]
        return rest
