"""How long an orderly stop of trees takes that no SIGTERM ends, and who is left: noray over ssh, s6, supervisord.

A tree is a leader, its child, and a grandchild that left session and parents; all are deaf to SIGTERM. Grace is the time from
SIGTERM to SIGKILL. The time is that of the command that an operator types, until it returns. Survivors are counted from
outside, when it returns and some seconds later: what reappears counts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import proc
from benchmarks.machine import HOST_PYTHON, load
from benchmarks.site import Site
from benchmarks.table import Table, ratio
from tests.hosts.bed import Bed, missing

LOOK_S = 0.5  # at 0.1 the looking alone cost noray three seconds on two cores (measured)
NEEDS_ROOM = "it makes hosts, which needs root"
DEAF = Path(__file__).with_name("deaf.py")
VENV = "NORAY_BENCH_SUPERVISORD"  # where supervisorctl is


@dataclass(frozen=True)
class Size:
    hosts: int
    trees: int
    grace_s: float
    later_s: float


FULL = Size(hosts=16, trees=64, grace_s=5.0, later_s=5.0)
QUICK = Size(hosts=2, trees=2, grace_s=1.0, later_s=0.1)


@dataclass(frozen=True)
class Stopped:
    took_s: float  # until the command returned
    last_s: float  # until the last process ended that it ended at all
    left: int  # processes, when the command returned
    later: int
    load: str


def prepare(place: Path, quick: bool) -> None:
    """Before the room is entered, which has no network: supervisord in a throw-away environment, if it can be had."""
    if quick or os.environ.get(VENV):
        return
    python = place / "venv" / "bin" / "python"
    subprocess.run([HOST_PYTHON, "-m", "venv", str(place / "venv")], capture_output=True, check=False)
    done = subprocess.run([str(python), "-m", "pip", "install", "-q", "supervisor"], capture_output=True, check=False)
    if done.returncode == 0:
        os.environ[VENV] = str(python.parent)


def run(place: Path, quick: bool) -> Table:
    size = QUICK if quick else FULL
    tools = {f"noray, over ssh to {size.hosts} hosts": noray, "s6, one machine": s6, "supervisord, one machine": supervisord}
    rows, notes, ours = [], [], 0.0
    for number, (name, tool) in enumerate(tools.items()):
        folder = place / f"stop{number}"
        folder.mkdir()
        try:
            found = measured(tool, folder, size)
        except Absent as absent:
            notes.append(f"{name.partition(',')[0]} is not in the table: {absent}")
            continue
        ours = ours or found.took_s
        beside = ratio(ours, found.took_s)
        rows.append(
            (name, f"{found.last_s:.1f} s", f"{found.took_s:.2f} s", beside, str(found.left), str(found.later), found.load)
        )
    notes += [
        f"{size.trees} trees of 3 processes, {size.grace_s:g} s from SIGTERM to SIGKILL; survivors are processes, 0 is right.",
        f"Last ended: of those that it ended at all, looked for every {LOOK_S:g} s.",
        f"noray: `stop: {{drain: 0, term: {size.grace_s:g}}}`; its hosts are namespaces with an sshd each, on these cores too. "
        "`noray down` also ends frontend and etcd (stubs), one before and one after, and returns when the controller is gone.",
        "s6: `timeout-kill`, `s6-svc -wD -d` for all at once. supervisord: `stopwaitsecs`, `stopasgroup`, `killasgroup`, "
        "`supervisorctl stop all`.",
    ]
    title = f"Stop: {size.trees} SIGTERM-deaf trees, {size.grace_s:g} s grace"
    later = f"{size.later_s:g} s later"
    return Table(
        title, ("", "last one ended", "command returned", "noray / it", "survivors", later, "load before"), rows, notes
    )


class Absent(Exception):
    """This tool is not on the machine; says how to get it."""


Stop = Callable[[], object]


def measured(tool: Callable[[Path, Size, str], contextlib.AbstractContextManager[Stop]], place: Path, size: Size) -> Stopped:
    mark = f"tree-{place.name}-{os.getpid()}"
    before = load()
    with tool(place, size, mark) as stop:
        proc.until(lambda: len(proc.marked(mark)) == 3 * size.trees, 120, f"{size.trees} trees")
        time.sleep(size.later_s)  # it is the stop that is measured, not what is left of starting
        began = time.monotonic()
        with Countdown(mark) as countdown:
            stop()
            took_s = time.monotonic() - began
        left = len(proc.marked(mark))
        time.sleep(size.later_s)
        later = len(proc.marked(mark))
    for pid in proc.marked(mark):
        os.kill(pid, 9)
    return Stopped(took_s, countdown.last - began, left, later, before)


class Countdown:
    """When the number of processes with a mark last fell, to LOOK_S."""

    def __init__(self, mark: str) -> None:
        self.mark, self.last = mark, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def __enter__(self) -> Countdown:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _count(self) -> None:
        left = len(proc.marked(self.mark))
        while left:
            over = self._over.wait(LOOK_S)
            now = len(proc.marked(self.mark))
            if now < left:
                left, self.last = now, time.monotonic()
            if over:
                return


@contextlib.contextmanager
def noray(place: Path, size: Size, mark: str) -> Iterator[Stop]:
    why = missing()
    if why:
        raise Absent(why)
    stop = {"drain": 0, "term": size.grace_s}
    with Bed(place, [f"h{n:02d}" for n in range(size.hosts)]) as bed:
        site = Site(place, [HOST_PYTHON, "-I", "-S", str(DEAF), mark], size.trees, bed.inventory, stop=stop)

        def down() -> None:
            done = site.down()
            assert done.returncode == 0, done.stderr

        with site:
            yield down


@contextlib.contextmanager
def s6(place: Path, size: Size, mark: str) -> Iterator[Stop]:
    scan = shutil.which("s6-svscan")
    if scan is None:
        raise Absent("apt-get install s6")
    services = [place / "scan" / f"t{n}" for n in range(size.trees)]
    for service in services:
        service.mkdir(parents=True)
        (service / "run").write_text(f"#!/bin/sh\nexec {HOST_PYTHON} -I -S {DEAF} {mark}\n")
        (service / "run").chmod(0o755)
        (service / "timeout-kill").write_text(f"{size.grace_s * 1000:.0f}\n")
    running = subprocess.Popen([scan, "-c", "1000", str(place / "scan")])

    def down() -> None:
        asked = [subprocess.Popen(["s6-svc", "-wD", "-T", "60000", "-d", str(service)]) for service in services]
        for one in asked:
            one.wait()

    try:
        yield down
    finally:
        subprocess.run(["s6-svscanctl", "-t", str(place / "scan")], check=False)
        running.wait()


SUPERVISORD = """\
[supervisord]
nodaemon=true
logfile={place}/log
pidfile={place}/pid
childlogdir={place}
minfds=1024
[unix_http_server]
file={place}/sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{place}/sock
[program:t]
command={command}
process_name=t%(process_num)d
numprocs={trees}
startsecs=0
stopwaitsecs={grace:.0f}
stopasgroup=true
killasgroup=true
stdout_logfile=NONE
stderr_logfile=NONE
"""


@contextlib.contextmanager
def supervisord(place: Path, size: Size, mark: str) -> Iterator[Stop]:
    folder = os.environ.get(VENV, "")
    daemon, ctl = (shutil.which(name, path=folder or None) for name in ("supervisord", "supervisorctl"))
    if daemon is None or ctl is None:
        raise Absent("pip install supervisor (the full run does so by itself)")
    config = place / "conf"
    command = f"{HOST_PYTHON} -I -S {DEAF} {mark}"
    config.write_text(SUPERVISORD.format(place=place, command=command, trees=size.trees, grace=size.grace_s))
    # Its import package is called supervisor, as ours is: ours must not be on its path.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with (place / "said").open("wb") as said:
        running = subprocess.Popen([daemon, "-c", str(config)], env=env, stdout=said, stderr=said)
        end = time.monotonic() + 30
        while not (place / "sock").exists():
            if running.poll() is not None or time.monotonic() > end:
                raise Absent("it does not start: " + (place / "said").read_text().strip().splitlines()[-1])
            time.sleep(0.02)

    def down() -> None:
        subprocess.run([ctl, "-c", str(config), "stop", "all"], env=env, capture_output=True, check=False)

    try:
        yield down
    finally:
        running.terminate()
        running.wait()
