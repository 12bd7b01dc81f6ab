"""How real programs end: what each wrote last and how its parent saw it go. `record.py` writes most of them anew.

A file is named after what was done; its header says which row of `supervisor.core.diagnosis` must explain it, the command that
reproduces it, and the exit as a keeper records it. Below the empty line are the last 16 kB that it wrote, as a controller gets
them, with the paths of the machine that wrote them shortened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recorded:
    name: str
    row: str
    command: str
    exit: dict[str, Any]
    tail: str


def recorded(path: Path) -> Recorded:
    header, _, tail = path.read_text().partition("\n\n")
    said = dict(line.removeprefix("# ").split(": ", 1) for line in header.splitlines())
    return Recorded(path.stem, said["row"], said["command"], json.loads(said["exit"]), tail)


ALL = [recorded(path) for path in sorted(HERE.glob("*.txt"))]
