"""A conversation of questions, for programs that no controller leads: one line with an `op` in, one line of answer out."""

from __future__ import annotations

import json
import os
import signal
from typing import Any, Callable, Dict

from .reactor import CHUNK


def answer(answers: Dict[str, Callable[[], Dict[str, Any]]]) -> int:
    """Until the other side hangs up, one question at a time. What is not known is answered with {}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rest = b""
    while True:
        part = os.read(0, CHUNK)
        if not part:
            return 0
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            asked = answers.get(json.loads(line).get("op"))
            data = json.dumps(asked() if asked else {}).encode() + b"\n"
            while data:
                data = data[os.write(1, data) :]
