"""What clients notice of a failure, and of what an operator does: 12 of them, each streams one answer after the other.

Real etcd, frontends and mockers on three hosts. Beside each failure the same one where nobody fences: the same processes,
started by hand, with Dynamo's own lease of 10 s.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import load
from benchmarks.stage import Pids, by_hand, by_noray, stage
from benchmarks.table import Table
from tests.e2e.lab import Lab, pids
from tests.e2e.load import Balanced, Load
from tests.e2e.procs import below, until
from tests.hosts.bed import missing

NEEDS_ROOM = "it makes hosts, which needs root"
CLIENTS, TOKENS, DOORS = 12, 100, 2
RUNS = 5  # of a kill
TTL_S = 10  # Dynamo's own
WATCHED_S = 15.0  # where nobody fences, and where nothing is waited for
SILENT_S = 30.0
ETCD_AWAY_S = 25.0
AGAIN_S = 0.1  # after an error
PATIENCE_S = 180.0
ROUTERS = ("round-robin", "least-loaded", "kv")


@dataclass
class Heard:
    """By the clients, from a failure on."""

    done: int = 0
    failed: list[int] = field(default_factory=list)  # of each run

    def add(self, clients: Load, since: int) -> None:
        seen = clients.requests[since:]
        failed = sum(1 for each in seen if each.failure)
        self.done += len(seen) - failed
        self.failed.append(failed)

    def __str__(self) -> str:
        most = f", at most {max(self.failed)} at once" if len(self.failed) > 1 and any(self.failed) else ""
        return f"{sum(self.failed)} of {self.done + sum(self.failed)}{most}"


Row = tuple[str, str, str, str, str]


def run(place: Path, quick: bool) -> Table:
    if why := missing():
        return Table("Recovery", ("",), [], [f"left out: {why}"])
    before, rows = load(), list[Row]()
    for router in ROUTERS[:1] if quick else ROUTERS:
        rows += killed(_sub(place, router), router, quick)
    if not quick:
        rows += orderly(_sub(place, "orderly"))
        rows += stopped(_sub(place, "stopped"))
        rows += etcd(_sub(place, "etcd"))
    header = ("", "router", "failed", "healed", "without fencing: failed")
    notes = [
        f"{CLIENTS} closed-loop clients, each stream {TOKENS} tokens; failed of all requests from the event until after it was "
        f"healed; of {RUNS} kills together. Without fencing: the same processes by hand, lease {TTL_S} s, once, over "
        f"{WATCHED_S:g} s. Who fails asks again after {AGAIN_S:g} s; what says nothing for {SILENT_S:g} s is given up. "
        f"Load before: {before}.",
        "Clients of two frontends ask the next one that lists the model, and another where one says 503 or refuses.",
    ]
    return Table("Recovery as the clients see it", header, rows, notes)


def _sub(place: Path, name: str) -> Path:
    (place / name).mkdir()
    return place / name


def streams(lab: Lab) -> Callable[[], None]:
    return lambda: lab.stream(TOKENS, timeout_s=SILENT_S)


def patient(ask: Callable[[], object]) -> Callable[[], None]:
    """Who was refused does not ask again at once: 12 that did would take the machine for themselves."""

    def asks() -> None:
        try:
            ask()
        except Exception:
            time.sleep(AGAIN_S)
            raise

    return asks


@contextmanager
def clients(lab: Lab, ask: Callable[[], object] | None = None) -> Iterator[Load]:
    """Under way in the block, and each of them again after it."""
    with Load(patient(ask or streams(lab)), CLIENTS) as some:
        some.more(2 * CLIENTS, PATIENCE_S)
        yield some
        some.more(2 * CLIENTS, PATIENCE_S)


def by_hand_heard(place: Path, router: str, hurt: Callable[[Lab, Pids], None]) -> str:
    heard = Heard()
    with stage(place, router) as (lab, bed), by_hand(lab, bed, TTL_S) as started:
        with Load(patient(streams(lab)), CLIENTS) as some:
            some.more(2 * CLIENTS, PATIENCE_S)
            since = len(some.requests)
            hurt(lab, started)
            time.sleep(WATCHED_S)
        heard.add(some, since)
    return str(heard)


# --- a worker is killed -------------------------------------------------------------------------------------------------


def killed(place: Path, router: str, quick: bool) -> Iterator[Row]:
    heard, healed = Heard(), list[float]()
    with stage(_sub(place, "noray"), router) as (lab, _), by_noray(lab):
        for _ in range(1 if quick else RUNS):
            with clients(lab) as some:
                since, began_s, old = len(some.requests), time.monotonic(), pids(lab.status())["mock-1"]
                lab.kill_tree("mock-1")
                lab.wait(lambda s, old=old: s["ready"] and pids(s)["mock-1"] != old, PATIENCE_S)  # type: ignore[misc]
                healed.append(time.monotonic() - began_s)
            heard.add(some, since)
    beside = "-" if quick else by_hand_heard(_sub(place, "hand"), router, lambda _, started: end(started["mock-1"]))
    yield ("SIGKILL of 1 of 2 workers", router, str(heard), f"serving again after {max(healed):.1f} s at most", beside)


def end(pid: int, number: int = signal.SIGKILL) -> None:
    for each in (pid, *below(pid)):
        with suppress(ProcessLookupError):
            os.kill(each, number)


def stopped(place: Path) -> Iterator[Row]:
    heard = Heard()
    with stage(_sub(place, "noray"), "round-robin") as (lab, _), by_noray(lab), clients(lab) as some:
        since, began_s, pid = len(some.requests), time.monotonic(), lab.pid("mock-1")
        old, there = pids(lab.status())["mock-1"], lab.instances()
        end(pid, signal.SIGSTOP)
        until(lambda: lab.instances() != there, PATIENCE_S)
        out_s = time.monotonic() - began_s
        lab.wait(lambda s: s["ready"] and pids(s)["mock-1"] != old, PATIENCE_S)
        healed_s = time.monotonic() - began_s
    heard.add(some, since)
    beside = by_hand_heard(_sub(place, "hand"), "round-robin", lambda _, started: end(started["mock-1"], signal.SIGSTOP))
    told = f"out of the routing after {out_s:.1f} s, serving again after {healed_s:.1f} s"
    yield ("SIGSTOP of 1 of 2 workers", "round-robin", str(heard), told, beside)


# --- what an operator does ----------------------------------------------------------------------------------------------

VERBS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "restart of a worker": (("restart", "mock-1", "--yes"),),
    "cordon and uncordon of a worker": (("cordon", "mock-1"), ("uncordon", "mock-1")),
    "scale to 3 and back to 2": (("scale", "mock=3", "--yes"), ("scale", "mock=2", "--yes")),
    "drain of a host, and its return": (("drain", "c", "--yes"), ("start", "c")),
    "restart of both frontends": (("restart", "frontend", "--yes"),),
}


def orderly(place: Path) -> Iterator[Row]:
    with stage(place, "round-robin", DOORS) as (lab, _), by_noray(lab):
        for what, verbs in VERBS.items():
            heard = Heard()
            with clients(lab, Balanced(lab, DOORS, TOKENS)) as some:
                since, began_s = len(some.requests), time.monotonic()
                for words in verbs:
                    lab.noray(*words, timeout_s=PATIENCE_S)
                    some.more(CLIENTS, PATIENCE_S)
                lab.ready(PATIENCE_S)
                took_s = time.monotonic() - began_s
            heard.add(some, since)
            yield (what, "round-robin", str(heard), f"done after {took_s:.1f} s", "-")


# --- etcd ---------------------------------------------------------------------------------------------------------------


def etcd(place: Path) -> Iterator[Row]:
    def away(pid: int) -> None:
        end(pid, signal.SIGSTOP)
        time.sleep(ETCD_AWAY_S)
        end(pid, signal.SIGCONT)

    beside = by_hand_heard(_sub(place, "hand"), "round-robin", lambda _, started: away(started["etcd-0"]))
    with stage(_sub(place, "noray"), "round-robin") as (lab, bed), by_noray(lab):
        heard = Heard()
        with clients(lab) as some:
            since = len(some.requests)
            away(lab.pid("etcd-0"))
            lab.ready(PATIENCE_S)
        heard.add(some, since)
        yield (f"etcd away for {ETCD_AWAY_S:g} s", "round-robin", str(heard), "nobody was touched", beside)
        heard = Heard()
        with clients(lab) as some:
            since, began_s, old = len(some.requests), time.monotonic(), pids(lab.status())["etcd-0"]
            lab.kill_tree("etcd-0")
            lab.wait(lambda s: s["ready"] and pids(s)["etcd-0"] != old, PATIENCE_S)
            took_s = time.monotonic() - began_s
        heard.add(some, since)
        yield ("SIGKILL of etcd, its data kept", "round-robin", str(heard), f"etcd serves again after {took_s:.1f} s", "-")
        heard, before = Heard(), pids(lab.status())
        with clients(lab) as some:
            lab.noray("stop", "etcd", "--yes")
            (data,) = bed["a"].file("/var/lib/noray").glob("**/etcd/member")
            for each in sorted(data.rglob("*"), reverse=True):
                each.rmdir() if each.is_dir() else each.unlink()
            since, began_s = len(some.requests), time.monotonic()
            lab.noray("start", "etcd")
            lab.wait(lambda s: s["ready"] and all(pid != before[name] for name, pid in pids(s).items()), PATIENCE_S)
            took_s = time.monotonic() - began_s
        heard.add(some, since)
        yield ("etcd's data wiped", "round-robin", str(heard), f"all serve again after {took_s:.1f} s", "-")
