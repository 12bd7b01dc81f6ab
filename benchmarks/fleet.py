"""Many hosts, many processes, one controller: up, listed, idle, down, beside as many bare logins in the same run.

Hosts are namespaces with a real sshd each, all on this machine, so that their key exchanges, keepers and processes share its
cores with the controller: the ratios to bare logins mean something, the seconds little.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import proc
from benchmarks.machine import HOST_PYTHON, load
from benchmarks.site import STUB, Site
from benchmarks.table import Table, ratio
from tests.hosts.bed import Bed, missing

NEEDS_ROOM = "it makes hosts, which needs root"
PER_HOST = 8
IDLE_S = 20.0


def run(place: Path, quick: bool) -> Table:
    if why := missing():
        return Table("Many hosts", ("",), [], [f"left out: {why}"])
    count, per_host, idle_s = (2, 2, 0.5) if quick else (50, PER_HOST, IDLE_S)
    before = load()
    with Bed(place, [f"h{n:02d}" for n in range(count)]) as bed:
        floor_s = logins(bed)
        bare_s = bare(place / "bare", count * per_host)
        site = Site(place, [], count * per_host, bed.inventory)
        began = time.monotonic()
        with site:
            up_s = time.monotonic() - began
            started_s = proc.cpu_s(site.controller)
            status_s = timed(lambda: site.noray("status", "--json"))
            hosts_s = timed(lambda: site.noray("hosts", "--json", "-i", str(place / "hosts.yaml")))
            time.sleep(idle_s)  # what is left of starting
            busy_s = proc.cpu_s(site.controller)
            time.sleep(idle_s)
            cpu = (proc.cpu_s(site.controller) - busy_s) / idle_s
            memory_mb = proc.pss_mb(site.controller)
            down_s = timed(lambda: site.noray("down", "--yes"))
        after_s = logins(bed)
    processes = count * per_host + 2
    rows = [
        (f"{count} x `ssh host python3 -c pass`, at once, before", f"{floor_s:.1f} s", "1.00"),
        ("the same, afterwards", f"{after_s:.1f} s", ratio(after_s, floor_s)),
        (
            f"{count * per_host} workers, bare, at once, until all have registered",
            f"{bare_s:.1f} s",
            ratio(bare_s, floor_s),
        ),
        (f"`noray serve` → all {processes} processes ready", f"{up_s:.1f} s", ratio(up_s, floor_s)),
        ("of it CPU of the controller", f"{started_s:.1f} s", ratio(started_s, floor_s)),
        ("`noray status --json`, from the controller", f"{status_s:.2f} s", ratio(status_s, floor_s)),
        ("`noray hosts --json`, every host asked anew", f"{hosts_s:.1f} s", ratio(hosts_s, floor_s)),
        ("`noray down` → nothing left", f"{down_s:.1f} s", ratio(down_s, floor_s)),
        ("controller, memory (PSS)", f"{memory_mb:.0f} MB", "-"),
        ("controller, CPU while all are ready and nothing happens", f"{cpu * 100:.1f} % of a core", "-"),
    ]
    notes = [
        f"{per_host} workers a host, which like etcd and frontend are stubs that answer what is asked to see them ready "
        f"(`stub.py`); every line over SSH to a namespace with its own sshd, on the same cores. Load before: {before}.",
        "Targets: at most 120 MB and 3 % of a core for the controller.",
    ]
    return Table(f"Many hosts: {count} of them, {processes} processes", ("", "", "of the bare logins"), rows, notes)


def logins(bed: Bed) -> float:
    """Seconds until the last of as many bare logins as there are hosts, all at once, is back."""
    options = ["-F", "none", "-i", str(bed.key), f"-oUserKnownHostsFile={bed.known_hosts}", "-oBatchMode=yes"]
    began = time.monotonic()
    asked = [
        subprocess.Popen(["ssh", *options, f"root@{host.address}", f"{HOST_PYTHON} -c pass"], stdin=subprocess.DEVNULL)
        for host in bed
    ]
    assert all(each.wait() == 0 for each in asked)
    return time.monotonic() - began


def bare(folder: Path, count: int) -> float:
    """Seconds until as many workers, started here by nobody in particular, have registered."""
    folder.mkdir()
    env = {
        **os.environ,
        "DYN_TCP_RPC_HOST": "-",
        "DYN_TCP_RPC_PORT": "0",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SYSTEM_PORT": "0",
    }
    argv = [HOST_PYTHON, "-I", "-S", str(STUB), str(folder), "worker"]
    began = time.monotonic()
    started = [subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL) for _ in range(count)]
    proc.until(lambda: len(os.listdir(folder)) == 2 * count, 120.0, "all have registered")
    took_s = time.monotonic() - began
    for each in started:
        each.kill()
        each.wait()
    return took_s


def timed(work: Callable[[], subprocess.CompletedProcess[str]]) -> float:
    began = time.monotonic()
    done = work()
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began
