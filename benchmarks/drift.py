"""What a controller, and a link on a host, have grown by after many reconnections and many restarts: it should be nothing.

Links are killed on their hosts by SIGKILL, workers too, each as soon as the last one was healed. A leak shows as a difference
between the first tenth and the last: of memory the mean, of descriptors the least of what was sampled after each.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import proc
from benchmarks.fleet import NEEDS_ROOM
from benchmarks.machine import load
from benchmarks.site import Site
from benchmarks.table import Table
from tests.hosts.bed import Bed
from tests.hosts.host import Host
from tests.hosts.torture import MORTAL, Report, Scene, links, why_not

__all__ = ["NEEDS_ROOM", "run"]

TIMES = 1000


class Sample(NamedTuple):
    files: int
    memory_mb: float

    @classmethod
    def of(cls, pid: int) -> Sample:
        return cls(len(os.listdir(f"/proc/{pid}/fd")), proc.pss_mb(pid))


def run(place: Path, quick: bool) -> Table:
    if why := why_not():
        return Table("Drift", ("",), [], [f"left out: {why}"])
    count, per_host, times = (2, 2, 12) if quick else (4, 4, TIMES)
    before = load()
    (place / "lives").mkdir()
    restart = {"window": 1.0, "budget": 1000}  # at once, again and again
    with (
        Bed(place, [f"h{n}" for n in range(count)]) as bed,
        Site(place, [], count * per_host, bed.inventory, MORTAL, restart=restart) as site,
    ):
        drift = Drift(bed, site, times)
        reconnections = drift.reconnections()
        restarts = drift.restarts()
        kept = drift.kept()
        with drift.scene.over():
            site.down()
    tenth = max(1, times // 10)
    rows = [row(what, of, samples, tenth) for what, parts in (("reconnections", reconnections), ("restarts", restarts))
            for of, samples in parts.items()]  # fmt: skip
    rows.append((f"{times} restarts", "runs that a host keeps of one process, at most", "", "", str(kept), ""))
    notes = [
        f"{count} hosts, {count * per_host} workers (stubs). Mean memory (PSS), least descriptors of {tenth} samples, one "
        f"after each. A link is one connection: reconnections begin new ones, restarts do not. Load before: {before}.",
    ]
    header = ("", "", f"first {tenth}", f"middle {tenth}", f"last {tenth}", "last - first")
    return Table(f"Drift: {times} reconnections, then {times} restarts", header, rows, notes)


def row(what: str, of: str, samples: list[Sample], tenth: int) -> tuple[str, ...]:
    half = len(samples) // 2
    parts = [samples[:tenth], samples[half : half + tenth], samples[-tenth:]]
    mb = [statistics.mean(sample.memory_mb for sample in part) for part in parts]
    files = [min(sample.files for sample in part) for part in parts]
    cells = [f"{m:.1f} MB, {f} descriptors" for m, f in zip(mb, files, strict=True)]
    return (f"{len(samples)} {what}", of, *cells, f"{mb[-1] - mb[0]:+.1f} MB, {files[-1] - files[0]:+d}")


class Drift:
    def __init__(self, bed: Bed, site: Site, times: int) -> None:
        self.bed, self.site, self.times = bed, site, times
        self.scene = Scene(bed, site, Report(0))
        self._samples: dict[str, list[Sample]] = {}
        self._lock = threading.Lock()

    def reconnections(self) -> dict[str, list[Sample]]:
        def one(host: Host) -> None:
            was = links(host)
            os.kill(was[0], signal.SIGKILL)
            self.scene.wait(lambda: set(links(host)) - set(was) and self.scene.up(host), f"{host.name}: up again")
            self._sample(("controller", self.site.controller))

        return self._all([lambda host=host: one(host) for host in self.bed])  # type: ignore[misc]

    def restarts(self) -> dict[str, list[Sample]]:
        (link,) = links(next(iter(self.bed)))
        workers = sorted(name for name in self.scene.rows if name.startswith("w-"))

        def one(name: str) -> None:
            restarts = self.scene.restarts(name)
            os.kill(self.scene.host(name).pids()[self.scene.lives(name)[-1][1]], signal.SIGKILL)
            self.scene.wait(
                lambda: self.scene.restarts(name) > restarts and self.scene.rows[name]["state"] == "ready",
                f"{name}: ready again",
            )
            self._sample(("controller", self.site.controller), ("a link", link))

        return self._all([lambda name=name: one(name) for name in workers])  # type: ignore[misc]

    def kept(self) -> int:
        """The most runs that any host has on record of one process."""
        return max(
            sum(1 for run in process.iterdir() if run.is_dir())
            for host in self.bed
            for process in host.file(f"/var/lib/noray/{host.machine_id}/runs/{self.site.name}").iterdir()
            if process.is_dir()
        )

    def _all(self, works: list[Callable[[], None]]) -> dict[str, list[Sample]]:
        """Each again and again, beside the others, until all together are done."""
        self._samples, failed = {}, self.scene.report.wrong
        left = iter(range(self.times))

        def again(work: Callable[[], None]) -> None:
            while not failed:
                with self._lock:
                    if next(left, None) is None:
                        return
                work()

        threads = [self.scene.begin(again, work) for work in works]
        for thread in threads:
            thread.join()
        if failed:
            raise RuntimeError("; ".join(failed))
        return self._samples

    def _sample(self, *of: tuple[str, int]) -> None:
        with self._lock:
            for what, pid in of:
                self._samples.setdefault(what, []).append(Sample.of(pid))
