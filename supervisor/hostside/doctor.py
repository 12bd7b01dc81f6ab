"""The doctor: who holds the GPUs of this host, and, when told to, the end of what is ours and has nobody.

A conversation over a channel of its own, not a controller's: it takes nothing over, and works while one lives.

In:  {"op": "look"}                         Out: {"gpus": …, "ours": {pid: …}, "claims": {uuid: holder}, "orphans": [...]}
     {"op": "reap"}                              {"did": [{"pid", "run", "ended", "how"}…]}

`reap` ends whole trees of runs that nobody looks after (owners.py says how that is proved), GPU or not. A run that never
was finished gets an heir first and is stopped through it, as any other: so its records and its claims end in order. Only
what is left of finished runs is ended from here, by pidfd, after a look at the start time. Nothing else is ever signalled.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any, Dict, List, Optional

from . import birth, gpus, owners, procfs, questions
from .holders import who
from .owners import Member
from .rundir import Run
from .tree import send

TERM_S = 5.0  # between an heir's SIGTERM and its SIGKILL
HEIR_S = 30.0  # for the whole of such a stop
KILL_S = 5.0  # for what is left to end after SIGKILL
AGAIN_S = 0.05
HEIR_COMES_S = 0.5  # a link that lives gives an abandoned run its heir within 50 ms: then it is no orphan


def main(base: str) -> int:
    return questions.answer({"look": lambda: look(base), "reap": lambda: {"did": reap(base)}})


def look(base: str) -> Dict[str, Any]:
    seen = gpus.look(gpus.PATIENT_S, wide=True)
    ours = owners.members(base)
    return {
        "gpus": gpus.told(seen),
        "ours": {str(member.process.pid): _told(member) for member in ours},
        "claims": {gpu.uuid: gpu.claim for gpu in seen.gpus if gpu.claim is not None},
        "orphans": [dict(_told(member), pid=member.process.pid, **who(member.process.pid)) for member in ours if member.orphan],
    }


def _told(member: Member) -> Dict[str, Any]:
    run = member.run
    names = {"deployment": run.deployment, "process": run.process, "run": run.run}
    return dict(names, care=member.care, proof=member.proof, orphan=member.orphan)


def reap(base: str) -> List[Dict[str, Any]]:
    """What was ended, and what was not though it should have been; told by process."""
    orphans = _orphans(base)
    time.sleep(HEIR_COMES_S)
    still = {(member.process.pid, member.process.start) for member in _orphans(base)}
    orphans = [member for member in orphans if (member.process.pid, member.process.start) in still]
    how: Dict[str, str] = {}
    for run in {member.run.path: member.run for member in orphans}.values():
        if not run.finished:
            how[run.path] = _stop_by_heir(run)
    _kill(base)
    did = []
    for member in orphans:
        now = procfs.read(member.process.pid)
        ended = now is None or now.start != member.process.start or now.gone
        text = how.get(member.run.path, "ended by SIGKILL, as its run is over")
        if not ended and now is not None and member.run.finished:
            text = "still there after SIGKILL, in state %s" % now.state
        did.append(dict(_told(member), pid=member.process.pid, ended=ended, how=text))
    return did


def _orphans(base: str) -> List[Member]:
    return [member for member in owners.members(base) if member.orphan]


def _stop_by_heir(run: Run) -> str:
    """Give it somebody who knows how to end it. How that went."""
    record, lock = run.record("run.json"), run.lock_if_abandoned()
    if lock is None or record is None or run.finished:
        return "left to its keeper, which is there again"
    if os.fork() == 0:
        code = 70
        try:
            os.setsid()
            birth.adopt_abandoned(run, record, lock)
            code = 0
        finally:
            os._exit(code)
    os.close(lock)
    end = time.monotonic() + HEIR_S
    while time.monotonic() < end and not run.finished:
        said = _order_stop(run, end)
        if said == "stuck":
            return "its heir could not end it: stuck"
    return "stopped by an heir" if run.finished else "its heir did not end it within %d s" % HEIR_S


def _order_stop(run: Run, end: float) -> Optional[str]:
    """Say stop and follow until the heir leaves; its last phase, None if it is not there."""
    phase = None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(run.socket)
            sock.sendall(json.dumps({"op": "stop", "term_s": TERM_S}).encode() + b"\n")
            with sock.makefile("rb", buffering=0) as lines:
                while select.select([sock], [], [], max(0.0, end - time.monotonic()))[0]:
                    phase = json.loads(lines.readline()).get("phase")
                    if phase in ("gone", "stuck"):
                        break
        except (OSError, ValueError):
            time.sleep(AGAIN_S)  # it is only just coming, or has just gone
    return phase


def _kill(base: str) -> None:
    """SIGKILL what is left of finished runs, until a look finds nobody, or it does not help."""
    end = time.monotonic() + KILL_S
    while time.monotonic() < end:
        left = [member for member in owners.members(base) if member.care == owners.FINISHED]
        if not left:
            return
        for member in left:
            send(member.process, signal.SIGKILL)
        time.sleep(AGAIN_S)
