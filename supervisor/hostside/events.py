"""events: what befell a run, one line of JSON each, numbered 1, 2, … by whoever owns the run, in the file and nowhere else.

    {"n": 3, "at": 1700000000123, "what": "exit", "text": "SIGKILL"}

    born, exit, gone: a record was written (run.json, exit.json, gone.json)       note: what keeper and pump say of themselves
    fenced, not fenced: it was taken out of the routing, or could not be          stop: a step of the ladder was entered

An event is told once it stands in the file, so an heir that goes on counting from there never gives a number twice. It need
not survive a power cut: after one an heir leaves a gap that is wider than what can have been lost. On a full disk events wait
for room; the run's state tells what matters meanwhile. Whoever hears of a run hears of its newest events, whole.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, List

NAME = "events"
TOLD = 40  # of a run, the newest
MOST_BYTES = 64 << 10  # of the file; then only what is told is kept
GAP = 1000
TEXT = 400

Event = Dict[str, Any]


def read(path: str) -> List[Event]:
    """The newest that stand in the file, oldest first. What a full disk or a power cut made of a line is left out."""
    found: List[Event] = []
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return found
    for line in lines[-TOLD:]:
        try:
            event = json.loads(line)
            if event["n"] > (found[-1]["n"] if found else 0):
                found.append(event)
        except (ValueError, TypeError, KeyError):
            continue
    return found


class Events:
    """For the owner of the run."""

    def __init__(self, path: str, rebooted: bool) -> None:
        """`rebooted`: since others wrote there."""
        self.newest = read(path)
        self._path = path
        self._n = self.newest[-1]["n"] if self.newest else 0
        if rebooted:
            self._n = (self._n // GAP + 1) * GAP
        self._waiting: List[Event] = []

    def add(self, what: str, text: str = "") -> None:
        self._waiting = [*self._waiting[1 - TOLD :], {"at": int(time.time() * 1000), "what": what, "text": text[:TEXT]}]
        events = [dict(n=self._n + k, **event) for k, event in enumerate(self._waiting, 1)]
        if self._append(b"".join(_line(event) for event in events)):
            self.newest = [*self.newest, *events][-TOLD:]
            self._n += len(events)
            self._waiting = []

    def add_once(self, what: str, text: str = "") -> None:
        if not any(event["what"] == what for event in (*self.newest, *self._waiting)):
            self.add(what, text)

    @property
    def last(self) -> Event:
        return [{"what": "", "text": ""}, *self.newest, *self._waiting][-1]

    def _append(self, data: bytes) -> bool:
        """All of it, or nothing."""
        try:
            fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            size = os.fstat(fd).st_size
            if size + len(data) > MOST_BYTES:
                return self._anew(data)
            try:
                whole = os.write(fd, data) == len(data)
            except OSError:
                whole = False
            if not whole:
                os.ftruncate(fd, size)
            return whole
        finally:
            os.close(fd)

    def _anew(self, data: bytes) -> bool:
        draft = self._path + ".new"
        try:
            with open(draft, "wb") as file:
                file.write(b"".join(map(_line, self.newest)) + data)
            os.rename(draft, self._path)
        except OSError:
            return False
        return True


def _line(event: Event) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"
