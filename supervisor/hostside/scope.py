"""A scope of a run's own, made by systemd: its keeper and pump outlive there the login, or the link, that began them.

There a machine that goes down finds them, and leaves their end to the keeper: a stop of the scope is SIGURG to everybody in it,
which means nothing to whoever does not listen for it. So the worker, which may be in there too (its cgroup, for all but root),
hears of it from its keeper alone. Who goes when, by `Before=` and `After=`, which systemd turns round for stopping:

    the controller's unit       so that nobody starts again what ends
    the slices of rank 0, 1, 2  frontends, workers, etcd: each finds what it needs to end well. Slices, since the scopes of a
                                deployment come to be all at once and cannot know each other's names
    network, remote disks
"""

from __future__ import annotations

import os
import re
import signal
from typing import Any, Dict, List, Optional, Tuple

from . import dbus
from .ladder import KILL_S, RETURN_S
from .rundir import Run

ASKED = signal.SIGURG  # to stop
MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
MOVE_S = 3.0
STOP_SPARE_S = 15.0  # what systemd waits longer than the run's own ladder climbs
LAST = 2  # of the ranks, 0 being the first to stop
BELOW = ["network.target", "remote-fs.target"]
LINK = re.compile(r"/noray-link-[0-9a-f]+-([^/]+\.service)$")  # as transport/unit.py calls it


def passing(cgroup: str) -> Optional[str]:
    """The controller's unit, if that is the cgroup of a unit which is there for that controller's link, and ends with it."""
    found = LINK.search(cgroup)
    return found[1] if found else None


def name(run: Run) -> str:
    """Unique, also for the second keeper of a run: the first one's scope is there while its tree is."""
    words = "-".join(("noray", run.deployment, run.process, run.run, str(os.getpid())))
    return re.sub(r"[^A-Za-z0-9:_.-]", "_", words)[:240] + ".scope"


def properties(run: Run, spec: Dict[str, Any], system: bool, controller: Optional[str]) -> List[Tuple[str, Tuple[str, Any]]]:
    """`system`: of the machine's manager, not of a user's. `controller`: its unit, if it has one of the same manager."""
    rank = min(max(int(spec.get("stop_rank", 1)), 0), LAST)
    stop_s = float(spec.get("term_s", 30.0)) + KILL_S + STOP_SPARE_S + (RETURN_S if spec.get("gpus") else 0.0)
    before = [slice_of(run, each, system) for each in range(rank)] + ([controller] if controller else [])
    return [
        ("Description", ("s", "noray %s %s" % (run.process, run.run))),
        ("PIDs", ("au", [os.getpid()])),
        ("Delegate", ("b", True)),  # below it a cgroup for the tree can be made
        ("CollectMode", ("s", "inactive-or-failed")),
        ("Slice", ("s", slice_of(run, rank, system))),
        ("Before", ("as", before)),
        ("After", ("as", BELOW if system else [])),
        ("KillSignal", ("i", int(ASKED))),
        ("TimeoutStopUSec", ("t", int(stop_s * 1e6))),
    ]


def slice_of(run: Run, rank: int, system: bool) -> str:
    """Everything of a deployment on this host that stops at its turn. An empty one stays until the manager ends."""
    deployment = re.sub(r"[^A-Za-z0-9_.]", "_", run.deployment)  # a dash would be one level more
    return "%snoray-%s-%d.slice" % ("" if system else "app-", deployment, rank)


def move(run: Run, spec: Dict[str, Any], system: bool, controller: Optional[str]) -> None:
    """This process, into a transient scope that goes when the last of its processes has gone. Raises OSError or dbus.Failed.

    By the manager's own socket, as systemctl does: it needs neither a session bus nor XDG_RUNTIME_DIR.
    """
    socket = "/run/systemd/private" if system else "/run/user/%d/systemd/private" % os.getuid()
    asked: Tuple[Any, ...] = (name(run), "fail", properties(run, spec, system, controller), [])
    with dbus.Bus(socket, MOVE_S, direct=True) as bus:
        (job,) = bus.call(*MANAGER, MANAGER[0] + ".Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", *asked)
        while True:
            _, done, _, result = bus.signal("JobRemoved")
            if done == job:
                break
    if result != "done":
        raise dbus.Failed("its job ended with: %s" % result)
