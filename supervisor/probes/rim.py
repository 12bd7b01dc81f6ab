"""Where bytes from a network become typed values. Whatever arrives, nothing here raises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Yes or no, and why: the operator reads `reason` as it stands."""

    ok: bool
    reason: str


def obj(body: bytes) -> Mapping[str, object] | None:
    """The JSON object in `body`, or None."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # not JSON, not text; or a thousand brackets
        return None
    return found if isinstance(found, dict) else None


def mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def whole(value: object) -> int | None:
    """An integer, and no bool. Instance ids exceed 2**53: never let one pass through a float."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def excerpt(status: int, body: bytes) -> str:
    """An unexpected answer in a few words. Status 0 means there was none, and `body` says why."""
    found = obj(body)
    said = text(found.get("message")) if found is not None else ""
    said = " ".join((said or body[:400].decode("utf-8", "replace")).split())
    said = "".join(char if char.isprintable() else "?" for char in said)
    said = said if len(said) <= 160 else said[:157] + "..."
    head = f"HTTP {status}" if status else "no answer"
    return f"{head}: {said}" if said else head
