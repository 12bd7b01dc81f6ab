"""One of two worker hosts loses its power, under load: what clients notice, with noray and without.

The same processes both times, with the arguments and variables that noray gives them: once run by it, once started by hand
on the same hosts, with Dynamo's own lease of 10 s and with one of 60 s, as long as noray's. Real etcd, frontend and mockers.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.machine import load
from benchmarks.stage import by_hand, by_noray, stage
from benchmarks.table import Table
from tests.e2e.load import Asked, Load
from tests.hosts.bed import missing

NEEDS_ROOM = "it makes hosts, which needs root"
WATCHED_S = 35.0
SILENT_S = 30.0  # a client gives up on a stream that has said nothing for so long
SLOW_S = 3.0
CLIENTS = 12
TOKENS = 100
ROUTERS = ("round-robin", "kv")


def run(place: Path, quick: bool) -> Table:
    if why := missing():
        return Table("Power cut", ("",), [], [f"left out: {why}"])
    before, rows = load(), []
    for router in ROUTERS[:1] if quick else ROUTERS:
        for ttl in (60,) if quick else (10, 60, 0):
            case = place / f"{router}-{ttl}"
            case.mkdir()
            rows.append((router, f"by hand, lease {ttl} s" if ttl else "noray", *measured(case, router, ttl, quick)))
    header = ("router", "", "requests begun and done", "failed", f"over {SLOW_S:g} s", "the last of these began after the cut")
    notes = [
        f"{CLIENTS} closed-loop clients, each stream {TOKENS} tokens, looked at for {WATCHED_S:g} s from the cut of one of two "
        f"hosts with a mocker each; a client gives up after {SILENT_S:g} s of silence. Load before: {before}.",
        "What is in flight on the host when its power goes is lost in all of them: nobody tells the frontend (Dynamo 1.4.2). "
        "Its client asks nothing until it gives up, which is why some rows did so few.",
    ]
    return Table("Power cut of one of two worker hosts", header, rows, notes)


def measured(place: Path, router: str, ttl: int, quick: bool) -> tuple[str, str, str, str]:
    """`ttl`: of the leases of what is started by hand; 0: noray runs it."""
    with stage(place, router) as (lab, bed), by_noray(lab) if not ttl else by_hand(lab, bed, ttl):
        with Load(lambda: lab.stream(TOKENS, timeout_s=SILENT_S), CLIENTS) as clients:
            clients.more(2 * CLIENTS)
            bed["c"].power_cut()
            cut_s = time.monotonic()
            time.sleep(1.0 if quick else WATCHED_S)
        seen = [each for each in clients.requests if each.at_s > cut_s]
        if not ttl:
            bed["c"].boot()
            lab.ready()
    return told(seen, cut_s)


def told(seen: list[Asked], cut_s: float) -> tuple[str, str, str, str]:
    failed = [each for each in seen if each.failure]
    slow = [each for each in seen if each.took_s > SLOW_S]
    hurt = [each.at_s - cut_s for each in (*failed, *slow)]
    return str(len(seen) - len(failed)), str(len(failed)), str(len(slow)), f"{max(hurt):.1f} s" if hurt else "-"
