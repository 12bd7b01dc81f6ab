"""How one process, host or exit is spoken of, the same in every view."""

from __future__ import annotations

import signal

from supervisor.cli.render.times import ahead, clock
from supervisor.core.snapshot import ExitStatus, GpuStatus, HostStatus, ProcessStatus
from supervisor.core.words import plain

BACK_AGAIN = ("pending", "starting")


def fine(process: ProcessStatus) -> bool:
    """As the operator wants it. What was stopped by hand is fine when it is gone."""
    if process["desired"] != "running":
        return process["state"] in ("stopped", "pending", "failed")
    return process["state"] == "ready" and not process["cordoned"]


def step(process: ProcessStatus) -> str:
    """importing · loading"""
    return plain(process.get("stage", ""))


def stage(process: ProcessStatus) -> str:
    """The step, and what moves in it: `loading: 12.3 GB read`."""
    return ": ".join(filter(None, (step(process), plain(process.get("moves", "")))))


def state(process: ProcessStatus) -> str:
    """The state word with what belongs to it: `ready, cordoned` · `unknown, was ready`."""
    said = plain(process["state"])
    if process["state"] == "unknown" and process["last_known_state"] not in ("", "unknown"):
        said += f", was {plain(process['last_known_state'])}"
    return f"{said}, cordoned" if process["cordoned"] else said


def gpus(held: list[GpuStatus]) -> str:
    """0,1 · 0-7"""
    indices = sorted({g["index"] for g in held})
    if len(indices) > 2 and indices[-1] - indices[0] == len(indices) - 1:
        return f"{indices[0]}-{indices[-1]}"
    return ",".join(map(str, indices))


def place(process: ProcessStatus) -> str:
    """gpu02, GPU 4,5"""
    where = plain(process["host"]) or "no host"
    return f"{where}, GPU {gpus(process['gpus'])}" if process["gpus"] else where


def ended(last: ExitStatus) -> str:
    """exited 1: CUDA out of memory · killed by SIGKILL · ended, exit code unknown"""
    if last["signal"] is not None:
        try:
            said = f"killed by {signal.Signals(last['signal']).name}"
        except ValueError:
            said = f"killed by signal {last['signal']}"
    elif last["code"] is None:
        said = "ended, exit code unknown"
    else:
        said = f"exited {last['code']}"
    cause = plain(last["cause"])
    return f"{said}: {cause}" if cause else said


def because(process: ProcessStatus) -> str:
    """The reason, and how it ended where the reason does not already say so."""
    reason, last = plain(process["reason"]), process["last_exit"]
    if last is None or process["state"] in ("ready", "draining"):  # its last exit is an older story
        return reason
    if not reason:
        return ended(last)
    cause = plain(last["cause"])
    return reason if (cause and cause in reason) or ended(last) in reason else f"{reason}; {ended(last)}"


def by_hand(process: ProcessStatus, now: float) -> str:
    """stopped by hand (ann, 12:03:04)"""
    held = process.get("held")
    if held is None or process["state"] != "stopped":
        return ""
    return f"stopped by hand ({plain(held['by']) or 'somebody'}, {clock(held['at'], now)})"


def cordoned_by(process: ProcessStatus, now: float) -> str:
    """by hand (ann, 12:03:04)"""
    word = process.get("cordon")
    return f"by hand ({plain(word['by']) or 'somebody'}, {clock(word['at'], now)})" if word and process["cordoned"] else ""


LADDER = {  # the steps of a stop as the host says them, and what their deadline brings
    "drain": "no new requests, SIGTERM in {} at the latest",
    "term_leader": "SIGTERM sent, has {} more",
    "term_rest": "SIGTERM to what it left, SIGKILL in {}",
    "kill": "SIGKILL sent, stuck in {}",
    "gpu_return": "gone, its GPU memory has {} more to come back",
}


def stop_step(process: ProcessStatus, now: float) -> str:
    """Which step of its stop is under way, and how long that may take: `SIGTERM sent, has 24 s more`."""
    step, until = plain(process.get("stop_step", "")), process.get("stop_until")
    if process["state"] not in ("draining", "stopping") or not step or until is None:
        return ""
    left = [plain(each) for each in process.get("stop_left", [])] if step == "drain" else []
    return ", ".join((*left, LADDER.get(step, f"{step}, {{}} more").format(ahead(until - now))))


def story(process: ProcessStatus, now: float) -> str:
    """What goes on with it, in one cell of a table."""
    if by_hand(process, now):
        return by_hand(process, now)
    said: list[str] = [f"in place of {plain(process['replaces'])}"] if "replaces" in process else []
    said += [f"{plain(process['replaced_by'])} stands in for it"] if "replaced_by" in process else []
    if process["state"] == "backoff" and process["next_attempt_at"] is not None:
        said.append(f"next try in {ahead(process['next_attempt_at'] - now)}")
    if process["state"] in BACK_AGAIN:
        said += [stage(process)] if stage(process) else []
    if stop_step(process, now):
        said.append(stop_step(process, now))
    if process["restarts"] and process["state"] in ("backoff", *BACK_AGAIN):
        said.append(f"restart {process['restarts']}")
    if cordoned_by(process, now):
        said.append(cordoned_by(process, now))
    lead = ", ".join(said)
    return ": ".join(filter(None, (lead, because(process))))


def host_trouble(host: HostStatus) -> str:
    return plain(host.get("reason", "")) or plain(host["state"])
