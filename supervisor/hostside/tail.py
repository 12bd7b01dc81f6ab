"""Stream one process's log over a channel of its own, so that no log line ever stands before a crash notice.

Asked by one line: {"deployment", "process", "run": id or null, "which", "lines": n or null, "ago_ms": n or null, "follow"},
where which is "last", "previous" or "first_failure". `lines`: begin where the last n lines begin; `ago_ms`: begin with what
was written so long ago, by this host's clock; both: the later of the two. With neither a log begins at its oldest byte.
`ago_ms` and "last" goes through every run on record that lived then; otherwise one run is shown. Following crosses
restarts: when a newer run of the process appears, its log goes on where the old one ended.

Answers, in order:
    {"now": ms}                                this host's clock, at once, so that the reader can tell how far it is off
    {"begin": run, "started": ms, "timed": bool}
    {"run", "offset", "data", "times": [[offset, ms], …]}     data: latin-1, byte for byte; times: as times.Reader.within
    {"gap": n}                                 so many bytes were rotated away before the next piece
    {"ended": run, "exit": its record}         all that it wrote has been told
    {"live": true}                             following: from here on it is news (first of all, if it never ran here)
    {"end": why}                               why: empty, or what was asked for cannot be had
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any, Dict, List, Optional

from . import times
from .pump import Log
from .rundir import Run, first_failure, subdirectories

PIECE = 1 << 16
LOOK_S = 0.1


def main(base: str) -> int:
    asked = _read_line()
    _say({"now": int(time.time() * 1000)})
    if _Tail(base, asked).stream():
        # The line is theirs to close: ending first would look like a lost link.
        while os.read(0, PIECE):
            pass
    return 0


class _Tail:
    def __init__(self, base: str, asked: Dict[str, Any]) -> None:
        self._base, self._deployment, self._process = base, asked["deployment"], asked["process"]
        self._follow = bool(asked.get("follow"))
        self._lines: Optional[int] = asked.get("lines")
        self._asked = asked
        ago_ms = asked.get("ago_ms")
        self._since_ms = None if ago_ms is None else int(time.time() * 1000) - int(ago_ms)

    def stream(self) -> bool:
        """False if the reader left."""
        known, live = self._known(), False
        while not known and self._follow:
            if not live:
                live = True
                _say({"live": True})
            if _reader_left():
                return False
            known = self._known()[:1]
        chosen = self._choose(known)
        if not chosen:
            _say({"end": self._nothing(known)})
            return True
        *past, newest = chosen
        for run in past:
            self._finish(run, self._begin(run))
        offset = self._begin(newest)
        while True:
            # Looked at before reading: what was written until then will be read. Without its directory it was pruned.
            ended = newest.finished or not os.path.isdir(newest.path)
            offset = _pieces(newest, offset)
            if not self._follow:
                break
            later = [run for run in self._known() if run.run > newest.run] if ended else []
            if later:
                self._finish(newest, offset)
                newest, self._lines, self._since_ms = later[0], None, None
                offset = self._begin(newest)
                continue
            if not live:
                live = True
                _say({"live": True})
            if _reader_left():
                return False
        if ended:
            _say({"ended": newest.run, "exit": newest.record("exit.json")})
        _say({"end": ""})
        return True

    # --- which runs -----------------------------------------------------------------------------------------------------

    def _known(self) -> List[Run]:
        names = subdirectories(os.path.join(self._base, "runs", self._deployment, self._process))
        return [Run(self._base, self._deployment, self._process, name) for name in names]

    def _choose(self, known: List[Run]) -> List[Run]:
        """In the order to show them; only the last one can be followed."""
        wanted, which = self._asked.get("run"), self._asked.get("which", "last")
        if wanted is not None:
            return [run for run in known if run.run.startswith(wanted)][:1]
        if which == "first_failure":
            first = first_failure(known)
            return [] if first is None else [first]
        if which == "previous":
            return known[-2:-1]
        if self._since_ms is None:
            return known[-1:]
        return [run for run in known[:-1] if self._lived(run)] + known[-1:]

    def _lived(self, run: Run) -> bool:
        ended = run.record("exit.json")
        assert self._since_ms is not None
        return ended is None or ended["at"] >= self._since_ms

    def _nothing(self, known: List[Run]) -> str:
        if self._asked.get("run") is not None:
            return "there is no run %s on this host; there are: %s" % (
                self._asked["run"],
                ", ".join(run.run for run in known) or "none",
            )
        if self._asked.get("which") == "first_failure":
            return "no run on record has failed"
        return "there is one run on record, none before it" if known else "it has not run on this host"

    # --- where in a run, and what ---------------------------------------------------------------------------------------

    def _begin(self, run: Run) -> int:
        """Announce it; returns the offset to begin at. What was rotated away since is a gap only if it was asked for."""
        log, index = Log(run.file("log")), times.Reader(Log(run.file("log")).times_folder)
        born = run.record("run.json") or {}
        _say({"begin": run.run, "started": born.get("at"), "timed": index.known or not log.end()})
        offset = 0
        if self._lines is not None:
            offset = _last_lines(log, self._lines)
        if self._since_ms is not None:
            found = index.since(self._since_ms)
            if found is not None:
                offset = max(offset, log.end() if found == times.END else _line_start(log, found))
        return offset

    def _finish(self, run: Run, offset: int) -> None:
        _pieces(run, offset)
        _say({"ended": run.run, "exit": run.record("exit.json")})


def _pieces(run: Run, offset: int) -> int:
    """Say all there is from `offset`; returns where it ends."""
    log = Log(run.file("log"))
    index = times.Reader(log.times_folder)
    while True:
        found, data = log.read(offset, PIECE)
        if not data:
            return offset
        if found > offset:
            _say({"gap": found - offset})
        offset = found + len(data)
        _say({"run": run.run, "offset": found, "data": data.decode("latin-1"), "times": index.within(found, offset)})


def _last_lines(log: Log, count: int) -> int:
    """Where the last `count` lines begin, or the oldest byte kept; a last line without newline is one."""
    end = offset = log.end()
    if count <= 0:
        return end
    firsts = log.segments()
    missing = count + 1  # the newline before them
    while firsts and offset > firsts[0]:
        start = max(firsts[0], offset - PIECE, max(f for f in firsts if f < offset))
        found, data = log.read(start, offset - start)
        if found != start:
            return found  # rotated away meanwhile
        if offset == end and not data.endswith(b"\n"):
            missing -= 1
        at = len(data)
        while missing and (at := data.rfind(b"\n", 0, at)) >= 0:
            missing -= 1
        if not missing:
            return start + at + 1
        offset = start
    return offset


def _line_start(log: Log, offset: int) -> int:
    """Where the line begins that this byte is in, if that is near; a piece of a line has lost its head."""
    start = max(0, offset - PIECE)
    while start < offset:
        found, data = log.read(start, offset - start)
        if found >= offset or not data:
            break
        if found + len(data) == offset:
            return found + data.rfind(b"\n") + 1 if b"\n" in data else offset
        start = found + len(data)
    return offset


def _reader_left() -> bool:
    return bool(select.select([0], [], [], LOOK_S)[0]) and not os.read(0, PIECE)


def _read_line() -> Dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            raise SystemExit(0)
        line += part
    asked = json.loads(line)
    assert isinstance(asked, dict)
    return asked


def _say(message: Dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]
