"""The recordings of tests/recorded, as a probe receives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WHERE = Path(__file__).parent.parent / "recorded"
NAMES = sorted(path.stem for path in WHERE.glob("*.json"))


def page(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((WHERE / f"{name}.json").read_text())
    return loaded


def said(name: str) -> tuple[int, bytes]:
    found = page(name)
    return found["status"], found["body"].encode()
