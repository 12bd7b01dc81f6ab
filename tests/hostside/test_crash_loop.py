"""A hundred starts of a process that dies at once: real keepers below, the real core above, its clock turned by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path

from supervisor.cli.render import Look, show_status, show_why
from supervisor.core.actions import Action, Spawn, WakeAt
from supervisor.core.facts import Due, Told
from supervisor.core.known import Fleet
from supervisor.core.process import State
from supervisor.core.restart import RestartPolicy
from supervisor.core.status import status
from supervisor.hostside.rundir import RUNS_KEPT
from supervisor.runtime.parse import run_state
from tests.core.world import World, wanted
from tests.hostside.driver import Host, Link
from tests.hostside.test_tail import data, told

STARTS = 100
PATIENT = RestartPolicy(budget=STARTS - 1, window_s=1e6)


def footprint(folder: Path) -> tuple[int, int]:
    """Files, and bytes on disk."""
    files = [Path(top) / name for top, _, names in os.walk(folder) for name in names]
    return len(files), sum(file.lstat().st_blocks * 512 for file in files)


def spawned(actions: tuple[Action, ...]) -> str:
    [run] = [action.run for action in actions if isinstance(action, Spawn)]
    return run


def test_a_hundred_starts_leave_the_first_and_the_newest_failures_and_a_way_on(host: Host, link: Link) -> None:
    world = World(Fleet(epoch_ms=int(time.time() * 1000)))
    world.plan(wanted("w-0", restart=PATIENT))
    actions = world.found()
    footprints, runs = [], []
    for n in range(1, STARTS + 1):
        runs.append(spawned(actions))
        about = {"controller": "c1", "hash": "h1"}
        link.start(runs[-1], argv=["sh", "-c", f"echo failure {n}; exit 3"], about=about)
        actions = world.tell(Told("gpu01", run_state(link.gone(runs[-1]))))
        footprints.append(footprint(host.base / "runs"))
        if n < STARTS:
            assert world["w-0"].state is State.BACKOFF
            [wake] = [action for action in actions if isinstance(action, WakeAt)]
            world.now_s = wake.at_s
            actions = world.tell(Due("w-0", runs[-1]))

    kept = sorted(path.name for path in (host.base / "runs" / host.deployment / "w-0").iterdir())
    assert kept == [runs[0], *runs[-RUNS_KEPT - 1 :]]
    settled, last = footprints[RUNS_KEPT + 2], footprints[-1]
    assert last[0] <= settled[0]
    assert last[1] <= settled[1] * 1.1
    assert data(told(host, which="first_failure")) == b"failure 1\n"
    assert data(told(host)) == b"failure %d\n" % STARTS
    assert data(told(host, which="previous")) == b"failure %d\n" % (STARTS - 1)

    assert world["w-0"].state is State.FAILED
    seen = status(world.fleet, deployment="d", endpoints=[], controller={"pid": 1, "version": "1", "since": 0.0},
                  now_s=world.now_s)  # fmt: skip
    why = show_why(seen, Look())
    assert f"{STARTS - 1} restarts within 1e+06 s did not help" in why
    assert f"failure {STARTS}" in why
    for command in ("noray logs w-0 --first-failure", "noray start w-0"):
        assert command in why
    assert "noray why" in show_status(seen, Look())
    host.assert_nothing_left()
