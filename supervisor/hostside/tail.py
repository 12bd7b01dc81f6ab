"""Stream one process's log over a channel of its own, so that no log line ever stands before a crash notice.

Asked by one line: {"deployment", "process", "run": id or null, "which", "bytes", "follow"}, where which is "last",
"previous" or "first_failure".
Answers {"run", "offset", "data"} pieces (data: latin-1, byte for byte), {"gap": n} where bytes were rotated away, {"end": why}.
Following crosses restarts: when a newer run of the process appears, its log goes on where the old one ended.
"""

from __future__ import annotations

import json
import os
import select
from typing import Any, Dict, List, Optional

from .pump import Log
from .rundir import Run, subdirectories

PIECE = 1 << 16
LOOK_S = 0.1


def main(base: str) -> int:
    asked = _read_line()
    names = subdirectories(os.path.join(base, "runs", asked["deployment"], asked["process"]))
    if asked.get("which") == "first_failure":
        names = [n for n in names if _failed(Run(base, asked["deployment"], asked["process"], n))][:1]
    name = _choose(names, asked.get("run"), asked.get("which", "last"))
    if name is None:
        _say({"end": "there is no such run of %s on this host" % asked["process"]})
        return 0
    run = Run(base, asked["deployment"], asked["process"], name)
    offset = max(0, Log(run.file("log")).end() - int(asked.get("bytes", PIECE)))
    while True:
        ended = run.finished  # looked at before reading: what was written until then will be read
        offset = _stream(run, offset)
        if not asked.get("follow"):
            break
        if ended:
            newer = [n for n in subdirectories(os.path.dirname(run.path)) if n > run.run]
            if newer:
                run, offset = Run(base, asked["deployment"], asked["process"], newer[0]), 0
                continue
        if select.select([0], [], [], LOOK_S)[0] and not os.read(0, PIECE):
            return 0  # the reader left
    _say({"end": ""})
    # The line is theirs to close: ending first would look like a lost link.
    while os.read(0, PIECE):
        pass
    return 0


def _failed(run: Run) -> bool:
    ended = run.record("exit.json")
    return ended is not None and not ended["asked"]


def _choose(names: List[str], run: Optional[str], which: str) -> Optional[str]:
    if run is not None:
        return next((name for name in names if name.startswith(run)), None)
    index = 2 if which == "previous" else 1
    return names[-index] if len(names) >= index else None


def _stream(run: Run, offset: int) -> int:
    log = Log(run.file("log"))
    while True:
        found, data = log.read(offset, PIECE)
        if found > offset and data:
            _say({"gap": found - offset})
        if not data:
            return offset
        _say({"run": run.run, "offset": found, "data": data.decode("latin-1")})
        offset = found + len(data)


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
