"""How a run is told: the one shape that keepers, links and records use towards a controller."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Optional

from . import cgroup, events, lending, procfs, pump, spawn
from .rundir import Run

# Of its log, told with a run that is over: a Dynamo worker that shuts down writes 8 kB after the line that says why, and vLLM's
# leader a traceback of 5 kB after its engine's.
TAIL_BYTES = 16384


def wall_ms() -> int:
    return int(time.time() * 1000)


def run_state(
    run: Run,
    spec: Dict[str, Any],
    record: Dict[str, Any],
    ended: Optional[Dict[str, Any]],
    phase: str,
    **more: Any,
) -> Dict[str, Any]:
    """The shape in which a run is told to a controller, by its keeper or, when it is over, from its records."""
    state = {
        "run": run.run,
        "process": run.process,
        "deployment": run.deployment,
        "phase": phase,
        "pid": record.get("pid"),
        "sid": record.get("sid"),
        "started": record.get("at"),
        "ports": record.get("ports", {}),
        "gpus": [{"index": one.index, "uuid": one.uuid, "proof": ""} for one in lending.recorded(record)],
        "about": spec.get("about", {}),
        "exit": ended,
        "stop": None,
        "fenced": (ended or {}).get("fenced"),
        "notes": [],
        "heir": False,
        "asked": bool((ended or {}).get("asked")),
    }
    state.update(more)
    if "events" not in state:  # told by somebody else than its owner
        state["events"] = events.read(run.file(events.NAME))
    if phase == "gone":
        state["tail"] = pump.Log(run.file("log")).tail(TAIL_BYTES).decode("latin-1")
    return state


def finished_state(run: Run) -> Dict[str, Any]:
    """A run that is over, told from its records."""
    gone = run.record("gone.json") or {}
    spec, born = run.record("spec.json") or {}, run.record("run.json") or {}
    ended = run.record("exit.json")
    if ended is not None and ended.get("cause") == "terminated" and procfs.elsewhere(born):
        # Nobody could tell then: of a plain init the first that shows is that everything on it gets SIGTERM.
        ended = dict(ended, cause="shutdown", message="its keeper was sent SIGTERM, and its host was started again after that")
    fenced = gone.get("fenced") or (ended or {}).get("fenced")
    ended = with_signs(ended, gone.get("signs", {}))
    return run_state(run, spec, born, ended, "gone", notes=gone.get("notes", []), fenced=fenced)


def with_signs(ended: Optional[Dict[str, Any]], more: Dict[str, str]) -> Optional[Dict[str, Any]]:
    """An exit with what was seen only after it was recorded."""
    return ended if ended is None or not more else dict(ended, signs=dict(ended.get("signs", {}), **more))


def close_unborn(run: Run, held: Optional[spawn.Held], why: str, cause: str = "start") -> Dict[str, Any]:
    """Record that this run never lived, and let go. Returns its exit."""
    ended = {"code": None, "signal": None, "at": wall_ms(), "asked": False, "cause": cause, "message": why}
    cgroup.clear(run)
    if held is not None:
        for sock in held.claims:
            sock.close()
        held.listener.close()
    run.write("exit.json", ended)
    run.write("gone.json", {"at": wall_ms(), "notes": []})
    unlink_channels(run)
    return ended


def when(at: float) -> str:
    """A moment as a sentence has it, in the host's own time."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at))


def unlink_channels(run: Run) -> None:
    """What only a living run needs; after gone.json, so that an heir never finds a run without its FIFO."""
    for path in (run.socket, run.file("out")):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def fence_target(spec: Dict[str, Any], record: Dict[str, Any], auth: Optional[Dict[str, str]]) -> Optional[Dict[str, Any]]:
    """`auth`: for etcd, where it wants a login; the spec is a file, and has none."""
    target = spec.get("fence")
    return None if not target else dict(target, address=spawn.fill(target["address"], record["ports"]), auth=auth)


def title(run: Run, role: str) -> None:
    procfs.set_title("noray-%s %s@%s (%s)" % (role, run.process, run.run, run.deployment))
