"""Three hosts to compare on: `a` with etcd and the frontends, `b` and `c` with a mocker each; run by noray, or started by hand.

The same processes both times, with the arguments and variables that noray gives them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from supervisor.effects.statedir import Files
from supervisor.plan.build import Plan
from supervisor.plan.launch import HostFacts, launch
from tests.e2e.lab import PORTS, Lab
from tests.e2e.procs import below, until
from tests.hosts.bed import Bed

SPEED = {"speedup_ratio": 5.0}
Pids = Mapping[str, int]


@contextlib.contextmanager
def stage(place: Path, router: str, frontends: int = 1, window_s: int = 600) -> Iterator[tuple[Lab, Bed]]:
    """Nothing runs yet. `window_s`: within it, each restart of a worker waits longer."""
    lab = Lab(place)
    with Bed(lab.place, ["a", "b", "c"], env={"NORAY_TEST": lab.mark}) as bed, lab:
        lab.over(bed)
        lab.deployment["etcd"]["host"] = "a"
        lab.deployment["frontend"] |= {"host": "a", "replicas": frontends, "args": {"router_mode": router}}
        lab.deployment["models"] = [
            lab.service(replicas=2, hosts=["b", "c"], args=SPEED, restart={"budget": 1000, "window": window_s})
        ]
        lab.write()
        yield lab, bed


@contextlib.contextmanager
def by_noray(lab: Lab) -> Iterator[None]:
    lab.up()
    lab.ready()
    yield
    lab.down()


@contextlib.contextmanager
def by_hand(lab: Lab, bed: Bed, ttl: int) -> Iterator[Pids]:
    """Each process below the first one of its host; they go with it. Gives who is above each."""
    text = (lab.place / "deployment.yaml").read_text(), (lab.place / "hosts.yaml").read_text()
    plan = Files(text[0], lab.place / "deployment.yaml", text[1], lab.place / "hosts.yaml").plan()
    started = {name: _begin(lab, bed, plan, name, number, ttl) for number, name in enumerate(plan.processes)}
    try:
        until(lambda: _serves(lab), 60.0)
        yield {name: process.pid for name, process in started.items()}
    finally:
        for process in started.values():
            for pid in below(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.kill()
            process.wait()
        for host in bed:
            host.off()


def _begin(lab: Lab, bed: Bed, plan: Plan, name: str, number: int, ttl: int) -> subprocess.Popen[bytes]:
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


def _serves(lab: Lab) -> bool:
    """Both workers are there, and a request is answered."""
    try:
        if len(lab.instances()) < 2:
            return False
        lab.chat()
    except (OSError, AssertionError):
        return False
    return True
