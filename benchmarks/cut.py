"""One of two worker hosts loses its power, under load: what clients notice, with noray and without.

The same processes both times, with the arguments and variables that noray gives them: once run by it, once started by hand
on the same hosts, with Dynamo's own lease of 10 s and with one of 60 s, as long as noray's. Real etcd, frontend and mockers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import load
from benchmarks.table import Table
from supervisor.effects.statedir import Files
from supervisor.plan.build import Plan
from supervisor.plan.launch import HostFacts, launch
from tests.e2e.lab import PORTS, Lab, until
from tests.e2e.load import Asked, Load
from tests.hosts.bed import Bed, missing

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
    lab = Lab(place)
    with Bed(lab.place, ["a", "b", "c"], env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.over(bed)
        lab.deployment["etcd"]["host"] = "a"
        lab.deployment["frontend"] |= {"host": "a", "args": {"router_mode": router}}
        lab.deployment["models"] = [lab.service(replicas=2, hosts=["b", "c"], args={"speedup_ratio": 5.0})]
        lab.write()
        with by_noray(lab) if not ttl else by_hand(lab, bed, ttl):
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


@contextlib.contextmanager
def by_noray(lab: Lab) -> Iterator[None]:
    lab.up()
    lab.ready()
    yield
    lab.down()


@contextlib.contextmanager
def by_hand(lab: Lab, bed: Bed, ttl: int) -> Iterator[None]:
    """Each process below the first one of its host; they go with it."""
    text = (lab.place / "deployment.yaml").read_text(), (lab.place / "hosts.yaml").read_text()
    plan = Files(text[0], lab.place / "deployment.yaml", text[1], lab.place / "hosts.yaml").plan()
    started = [begin(lab, bed, plan, name, number, ttl) for number, name in enumerate(plan.processes)]
    try:
        until(lambda: serves(lab), 60.0)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
        for host in bed:
            host.off()


def begin(lab: Lab, bed: Bed, plan: Plan, name: str, number: int, ttl: int) -> subprocess.Popen[bytes]:
    host = bed[plan.processes[name].wanted.host]
    base = f"/var/lib/noray/{name}"
    made = launch(plan, name, HostFacts(base, {"HOME": "/root", "PATH": os.defpath}), {}, "by hand")
    ports, first = {}, int(PORTS.partition("-")[0]) + 20 * number
    for port, (chosen, _, _) in made.spec["ports"].items():  # type: ignore[attr-defined]
        ports[port] = chosen or first + len(ports)
    words, env = list(made.argv), dict(made.env) | {"ETCD_LEASE_TTL": str(ttl), "NORAY_TEST": lab.mark}
    for port, chosen in ports.items():
        words = [word.replace(f"${{port.{port}}}", str(chosen)) for word in words]
        env = {key: value.replace(f"${{port.{port}}}", str(chosen)) for key, value in env.items()}
    folder = host.file(base)
    folder.mkdir(parents=True)
    argv = ["nsenter", "-t", str(host.init), "-a", "env", "-i", "-C", base, *(f"{k}={v}" for k, v in env.items()), *words]
    with (lab.place / f"{name}.log").open("wb") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def serves(lab: Lab) -> bool:
    """Both workers are there, and a request is answered."""
    try:
        if len(lab.instances()) < 2:
            return False
        lab.chat()
    except (OSError, AssertionError):
        return False
    return True
