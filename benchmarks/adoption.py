"""Many hosts, many processes, and a controller killed with SIGKILL: how long until the next one has them all again.

*Adopted*: the new controller has heard of the very run that its predecessor had, and owns it: it would see its end and could
stop it. *Ready*: it has looked at its health again as well, and says READY. Both are read from its snapshots, and count from
the start of its process; its interpreter and imports are part of it. Beside it, in the same run, as many bare logins at once.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import proc
from benchmarks.fleet import NEEDS_ROOM, PER_HOST, logins
from benchmarks.machine import load
from benchmarks.site import Site
from benchmarks.table import Table, ratio
from tests.hosts.bed import Bed, missing

__all__ = ["NEEDS_ROOM", "run"]

ROUNDS = 5


def run(place: Path, quick: bool) -> Table:
    if why := missing():
        return Table("Adoption", ("",), [], [f"left out: {why}"])
    count, per_host, rounds = (2, 2, 1) if quick else (50, PER_HOST, ROUNDS)
    before = load()
    floors, adopted, ready, cpu = [], [], [], []
    with Bed(place, [f"h{n:02d}" for n in range(count)]) as bed, Site(place, [], count * per_host, bed.inventory) as site:
        runs = site.runs()
        for _ in range(rounds):
            floors.append(logins(bed))
            site.kill()
            took = site.again(runs)
            adopted.append(took.adopted_s)
            ready.append(took.ready_s)
            cpu.append(proc.cpu_s(site.controller))
            floors.append(logins(bed))
    floor_s = statistics.median(floors)
    processes = count * per_host + 2

    def row(what: str, took_s: list[float]) -> tuple[str, ...]:
        middle = statistics.median(took_s)
        spread = f"{min(took_s):.1f} to {max(took_s):.1f} s"
        return (what, f"{middle:.1f} s", spread, ratio(middle, floor_s), f"{middle - floor_s:+.1f} s")

    rows = [
        row(f"{count} x `ssh host python3 -c pass`, at once", floors),
        row(f"`noray serve` after a `kill -9` → all {processes} runs adopted", adopted),
        row("… → all of them ready again", ready),
        row("CPU of the controller until then", cpu),
    ]
    notes = [
        f"Median of {rounds}, logins measured before and after each. {per_host} workers a host, stubs as under *Many hosts*; "
        f"every line over SSH to a namespace with its own sshd, on the same cores. Load before: {before}.",
        "Target: adopted within the bare logins and 1.5 s. The same runs, no restart: checked.",
    ]
    header = ("", "", "least and most", "of the bare logins", "beyond them")
    return Table(f"Adoption: {count} hosts, {processes} processes, the controller killed", header, rows, notes)
