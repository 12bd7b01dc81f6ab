"""tree.jsonl: who a run consisted of when its keeper last looked, for the heir, which never was anybody's parent.

One line a process ({"pid", "start", "sid"}) or a segment in shared memory ({"shm", "inode"}). The file is replaced whole, once
a second and only when it changed; it need not survive a power cut, for neither would they. What left the leader's session and
parents within the last second of a keeper that was killed, and has no cgroup, is the one thing an heir cannot see.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, List

from . import cgroup
from .reactor import Reactor
from .rundir import Run
from .shm import Segments
from .tree import Tree

FIRST_S = 0.2  # something may leave its parents at once
LOOK_S = 1.0
SHARE = 100  # a look that took a while is followed by a pause this many times as long: 1 % of a core at most
NAME = "tree.jsonl"


class Roster:
    def __init__(self, run: Run, tree: Tree, segments: Segments) -> None:
        self._run, self._tree, self._segments = run, tree, segments
        self._written = ""

    def begin(self, reactor: Reactor) -> None:
        """Look again and again, as long as the reactor runs."""

        def look() -> None:
            began = time.monotonic()
            self.look()
            reactor.after(max(LOOK_S, SHARE * (time.monotonic() - began)), look)

        reactor.after(FIRST_S, look)

    def look(self) -> None:
        members = self._tree.members()
        self._segments.look(members)
        lines = [{"pid": p.pid, "start": p.start, "sid": p.sid} for _, p in sorted(members.items())]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, *self._shared()])
        if text == self._written:
            return
        try:
            with open(self._run.file("." + NAME), "w") as file:
                file.write(text)
            os.rename(self._run.file("." + NAME), self._run.file(NAME))
            self._written = text
        except OSError:
            pass  # a full disk, or a purged directory: the next look tries again

    def _shared(self) -> List[Dict[str, Any]]:
        return [{"shm": name, "inode": inode} for name, inode in sorted(self._segments.ours.items())]


def follower(run: Run, record: Dict[str, Any]) -> Tree:
    """The tree of a run whose keeper is dead, from its records. They must be of this boot and pid namespace."""
    tree = Tree(record["pid"], record["start"], record["sid"], parent=False)
    tree.follow(seen(run), cgroup.recorded(record))
    return tree


def lines(run: Run) -> List[Dict[str, Any]]:
    """What the last look wrote; empty if there was none."""
    try:
        with open(run.file(NAME)) as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError):
        return []


def seen(run: Run) -> Dict[int, int]:
    """pid -> start time of whom the last look found. Of use in the same boot and pid namespace only."""
    return {line["pid"]: line["start"] for line in lines(run) if "pid" in line}


def segments(run: Run) -> Dict[str, int]:
    """name -> inode of the segments in shared memory that were its."""
    return {line["shm"]: line["inode"] for line in lines(run) if "shm" in line}
