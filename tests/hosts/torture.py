"""Blows at the links of a fleet, in an order drawn by chance, while its workers die now and then: and what must be true after.

    python -m tests.hosts.torture [--blows 100] [--drop 20] [--seed N]      root; prints the seed, what it saw, what was wrong

Each host has somebody who hits its link and waits until it is back, and hits again; one more kills workers. All real: sshd,
wires, `noray serve`. What happened to workers is known from their own books (`mortal.py`), never from noray.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from benchmarks import room
from benchmarks.site import Site
from supervisor.control.client import connect
from supervisor.effects.store import Store
from supervisor.transport.bootstrap import ONE_LINER
from tests.hosts.bed import Bed, missing
from tests.hosts.host import Host

HOSTS, PER_HOST = ("a", "b", "c"), 2
MORTAL = Path(__file__).with_name("mortal.py")
KINDS = ("silence", "hang", "to", "from", "reset", "sshd", "link", "channel")  # what takes longest first: dealt like cards
PATIENCE_S = 60.0
DEATHS = (signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM)


@dataclass
class Report:
    seed: int
    blows: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # kind -> seconds until it was up again
    deaths: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by process
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {sum(map(len, self.blows.values()))} blows, {sum(self.deaths.values())} deaths of workers"]
        for kind, took in sorted(self.blows.items()):
            lines.append(
                f"  {kind:8} {len(took):3} x  up again after {statistics.median(took):.1f} s, at most {max(took):.1f} s"
            )
        return "\n".join([*lines, *(f"WRONG: {each}" for each in self.wrong)])


def torture(place: Path, blows: int, drop_s: float, seed: int) -> Report:
    """`drop_s`: how long nothing gets through one way. The order is of the seed; what meets what is of the machine."""
    report, chance = Report(seed), random.Random(seed)
    (place / "lives").mkdir()
    with Bed(place, HOSTS) as bed:
        restart = {"window": 1.0, "budget": 100}  # at once, again and again
        with Site(place, [], len(HOSTS) * PER_HOST, bed.inventory, MORTAL, restart=restart) as site:
            scene = Scene(bed, site, report)
            before, files = scene.rows, len(os.listdir(f"/proc/{site.controller}/fd"))
            hitters = []
            deck = sorted((KINDS[-1 - n % len(KINDS)] for n in range(blows)), key=KINDS.index)
            for number, host in enumerate(bed):
                kinds = deck[number :: len(HOSTS)]
                chance.shuffle(kinds)
                hitters.append(scene.begin(scene.hit, host, kinds, drop_s))
            over = threading.Event()
            reaper = scene.begin(scene.reap, random.Random(chance.random()), over)
            for each in hitters:
                each.join()
            over.set()
            reaper.join()
            scene.judge(before)
            try:
                scene.wait(lambda: len(os.listdir(f"/proc/{site.controller}/fd")) <= files, f"{files} descriptors, as before")
            except TimeoutError as error:
                report.wrong.append(str(error))
            with scene.over():
                site.down()
    return report


class Scene:
    """All that is going on; its methods run in threads of their own, and what they find wrong is in the report."""

    def __init__(self, bed: Bed, site: Site, report: Report) -> None:
        self.bed, self.site, self.report = bed, site, report
        self._seen: dict[str, Any] = {}
        self._news = threading.Condition()
        self._over = False
        self._follower = self.begin(lambda: anyio.run(self._follow))
        self.wait(lambda: bool(self._seen), "a first snapshot")

    def begin(self, work: Callable[..., None], *args: Any) -> threading.Thread:
        def told() -> None:
            try:
                work(*args)
            except Exception as error:
                if self._over:
                    return  # what it spoke with has ended
                self.report.wrong.append(f"{type(error).__name__}: {error}")

        thread = threading.Thread(target=told, daemon=True)
        thread.start()
        return thread

    @contextmanager
    def over(self) -> Iterator[None]:
        """Whoever ends what we follow does it in here."""
        self._over = True
        yield
        self._follower.join()

    async def _follow(self) -> None:
        async with connect(self.site.place / "state" / self.site.name / "controller.sock") as client:
            async for seen in client.request("follow", follow=True):
                with self._news:
                    self._seen = dict(seen)
                    self._news.notify_all()

    def wait(self, true: Callable[[], object], what: str) -> None:
        """For what the controller says, and what only /proc can tell and tells nobody by itself."""
        end = time.monotonic() + PATIENCE_S
        while not true():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
            with self._news:
                self._news.wait(0.05)

    @property
    def rows(self) -> dict[str, Any]:
        return {row["name"]: row for row in self._seen["processes"]}

    def up(self, host: Host) -> bool:
        return any(row["name"] == host.name and row["state"] == "up" for row in self._seen["hosts"])

    # --- blows ----------------------------------------------------------------------------------------------------------

    def hit(self, host: Host, kinds: list[str], drop_s: float) -> None:
        try:
            for kind in kinds:
                self.wait(lambda: self.up(host) and len(links(host)) == 1, f"{host.name}: up, by one link")
                was = links(host)
                if kind in ("to", "from"):
                    host.wire.one_way(kind)  # type: ignore[arg-type]
                    time.sleep(drop_s)  # the time is the fault
                    host.wire.heal()
                    began_s = time.monotonic()
                    self.wait(lambda: self.up(host), f"{host.name}: back after a drop")
                else:
                    began_s = self._blow(host, kind, was)
                    self.wait(lambda was=was: self.up(host) and set(links(host)) - set(was), f"{host.name}: back after {kind}")
                self.report.blows[kind].append(time.monotonic() - began_s)
                print(f"{host.name} {kind}: up again after {time.monotonic() - began_s:.1f} s", flush=True)
        finally:
            host.wire.heal()

    def _blow(self, host: Host, kind: str, was: list[int]) -> float:
        """When it was over."""
        if kind == "sshd":
            for pid in sessions(host):
                os.kill(pid, signal.SIGKILL)
        elif kind in ("link", "hang"):
            os.kill(was[0], signal.SIGKILL if kind == "link" else signal.SIGSTOP)
        elif kind == "silence":
            host.wire.partition()
            self.wait(lambda: not links(host), f"{host.name}: its link ends by itself")
            host.wire.heal()
        elif kind == "channel":
            subprocess.run(["ss", "-K", "dst", host.address, "dport", "=", "22"], check=True, capture_output=True)
        else:
            host.wire.reset()
            self.wait(lambda: not set(was) & set(links(host)), f"{host.name}: its link ends with its connection")
            host.wire.heal()
        return time.monotonic()

    def reap(self, chance: random.Random, over: threading.Event) -> None:
        """Kill workers of chance, each life once, whether their host can be reached or not."""
        dead: set[tuple[str, int]] = set()
        while not over.wait(chance.uniform(0.2, 1.5)):
            name, how = chance.choice(sorted(self.rows)), chance.choice(DEATHS)
            if not name.startswith("w-"):
                continue
            run, pid = self.lives(name)[-1]
            if (run, pid) not in dead:
                dead.add((run, pid))
                os.kill(self.host(name).pids()[pid], how)
                self.report.deaths[name] += 1

    # --- what must be true ----------------------------------------------------------------------------------------------

    def judge(self, before: dict[str, Any]) -> None:
        deaths, wrong = self.report.deaths, self.report.wrong

        def settled() -> bool:
            ready = all(row["state"] == "ready" for row in self.rows.values())
            return ready and all(map(self.up, self.bed)) and all(self.restarts(name) == deaths[name] for name in self.rows)

        try:
            self.wait(settled, "all up and ready, every death answered by one restart")
            for host in self.bed:
                self.wait(lambda host=host: len(links(host)) == 1, f"{host.name}: one link")
        except TimeoutError as error:
            wrong.append(str(error))
        for name, row in self.rows.items():
            if row["restarts"] != deaths[name]:
                wrong.append(f"{name}: {deaths[name]} deaths, {row['restarts']} restarts")
            if not deaths[name] and (row["run"], row["pid"]) != (before[name]["run"], before[name]["pid"]):
                wrong.append(f"{name}: nobody killed it, and it is another")
            if name.startswith("w-"):
                self._judge_lives(name, row)
                self._judge_events(name)
        wrong += [f"{host.name}: links {links(host)}" for host in self.bed if len(links(host)) != 1]

    def _judge_lives(self, name: str, row: dict[str, Any]) -> None:
        lives, wrong = self.lives(name), self.report.wrong
        runs = [run for run, _ in lives]
        if "TWO" in runs:
            wrong.append(f"{name}: two at once")
        if len(set(runs)) != len(runs):
            wrong.append(f"{name}: a run begun twice: {runs}")
        if len(lives) != 1 + self.report.deaths[name]:
            wrong.append(f"{name}: {self.report.deaths[name]} deaths, {len(lives)} lives")
        if (row["run"], row["pid"]) != lives[-1]:
            wrong.append(f"{name}: noray says {row['run']}, pid {row['pid']}, it says {lives[-1]}")
        said = self.log(name, runs[-1])
        if said != [str(n + 1) for n in range(len(said))] or not said:
            wrong.append(f"{name}: not every line once and in order in the log of {runs[-1]}")

    def _judge_events(self, name: str) -> None:
        """Of each of its lives every number once, in the words of its host."""

        def wrong() -> dict[str, object]:
            told: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
            with Store.reading(self.site.place / "state" / self.site.name) as store:
                for event in store.events():
                    if event.process == name and event.n is not None:
                        told[event.run].append((event.n, event.what, event.text))
            found: dict[str, object] = {}
            for run, _ in self.lives(name):
                file = self.record(name, run) / "events"
                kept = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else None
                if [n for n, _, _ in told[run]] != list(range(1, 1 + len(told[run]))) or not told[run]:
                    found[run] = told[run]
                elif kept is not None and told[run] != [(event["n"], event["what"], event["text"]) for event in kept]:
                    found[run] = (told[run], kept)
            return found

        try:
            self.wait(lambda: not wrong(), f"{name}: every event once")
        except TimeoutError:
            self.report.wrong += [f"{name}: events of {run}: {what}" for run, what in wrong().items()]

    def restarts(self, name: str) -> int:
        return int(self.rows[name]["restarts"])

    def lives(self, name: str) -> list[tuple[str, int]]:
        lines = (self.site.place / "lives" / name).read_text().splitlines()
        return [(run, int(pid)) for run, pid in map(str.split, lines)]

    def host(self, name: str) -> Host:
        return self.bed[self.rows[name]["host"]]

    def record(self, name: str, run: str) -> Path:
        """Where its host keeps it."""
        host = self.host(name)
        return host.file(f"/var/lib/noray/{host.machine_id}/runs/{self.site.name}/{name}/{run}")

    def log(self, name: str, run: str) -> list[str]:
        """Its whole lines so far."""
        kept = self.record(name, run) / "log"
        text = "".join(path.read_text() for path in sorted(kept.iterdir()) if path.suffix != ".times")
        return text.splitlines()[: text.count("\n")]


def links(host: Host) -> list[int]:
    """Link processes of noray on it, as we see them. What one forks for a look is below it, and none."""
    found = {}
    for pid in host.pids().values():
        try:
            if ONE_LINER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return [pid for pid, parent in found.items() if parent not in found]


def sessions(host: Host) -> list[int]:
    """What its sshd has forked to serve connections."""
    found = []
    for pid in host.pids().values():
        try:
            name, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[::2]
        except OSError:
            continue
        if name.endswith("(sshd") and int(parent.split()[1]) != host.init:
            found.append(pid)
    return found


def why_not() -> str:
    return missing("nft", "ss")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.torture")
    parser.add_argument("--blows", type=int, default=100)
    parser.add_argument("--drop", type=float, default=20.0, help="seconds")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args()
    if room.INSIDE not in os.environ:
        return room.run([sys.executable, "-m", "tests.hosts.torture", f"--blows={args.blows}", f"--drop={args.drop}",
                         f"--seed={args.seed}"])  # fmt: skip
    print(f"seed {args.seed}", flush=True)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nt", dir="/tmp") as place:
        report = torture(Path(place), args.blows, args.drop, args.seed)
    print(report, f"in {time.monotonic() - began_s:.0f} s", sep="\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
