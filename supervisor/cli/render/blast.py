"""What a stop or a restart by name takes away, in one question."""

from __future__ import annotations

from collections.abc import Collection

from supervisor.core.snapshot import Status
from supervisor.core.wanted import INFRASTRUCTURE
from supervisor.core.words import listing, plain, plural

LIVE = ("starting", "ready", "draining", "stopping", "stuck", "unknown")


def blast_radius(seen: Status, names: Collection[str], does: str, *, in_turn: bool = False) -> str:
    """`does`: "stops" or "restarts". `in_turn`: one after the other."""
    gone = [p for p in seen["processes"] if (p["name"] in names or p["service"] in names) and p["state"] in LIVE]
    if not gone:
        said = [f"This {does} {listing(list(map(plain, names)))}, of which nothing runs"]
    else:
        hosts = sorted({plain(p["host"]) for p in gone})
        turns = ", one after the other" if in_turn and len(gone) > 1 else ""
        said = [f"This {does} {listing([plain(p['name']) for p in gone], 6)} on {listing(hosts)}{turns}"]
    for service in seen["services"]:
        mine = [p for p in gone if p["service"] == service["name"] and p["state"] == "ready"]
        if mine:
            left = max(service["serving"] - (1 if in_turn else len(mine)), 0)
            name = plain(service["name"])
            if left:
                said.append(f"{name} goes on with {left} of {plural(service['wanted'], 'replica')}")
            elif service["kind"] == "frontend":
                said.append("no request is answered then")
            elif service["kind"] in INFRASTRUCTURE:
                said.append(f"without {name} nothing new can register, and what runs ends when its lease does")
            else:
                said.append(f"nothing serves {name} then")
    return "; ".join(said) + ". Go on?"
