"""From what hosts said of their GPUs to seats for the processes of a plan that have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from supervisor.core.facts import GpuSeen
from supervisor.core.process import Process, State
from supervisor.core.words import listing
from supervisor.plan.build import Plan
from supervisor.plan.place import Card, Seat, Seated, place
from supervisor.spec import Host

FULL = 0.08  # a card of whose memory more than that is in use by nobody: vLLM asks for 92 % of it


@dataclass(frozen=True, slots=True)
class Seating:
    """`refused`: why the others have no place."""

    seats: Mapping[str, Seat] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def seating(
    plan: Plan,
    gpus: Mapping[str, Sequence[GpuSeen]],
    silent: Mapping[str, str],
    avoided: Mapping[tuple[str, int], str] = MappingProxyType({}),
) -> Seating:
    """For every unplaced process of the plan. `gpus`: of the hosts that told; `silent`: why others did not.

    `avoided`: (host, index) -> why this GPU is passed by, whatever its host tells of it.
    """
    if not plan.unplaced:
        return Seating()
    taken = {(p.wanted.host, gpu): name for name, p in plan.processes.items() for gpu in p.wanted.gpus}
    cards = {name: cards_of(plan, plan.hosts[name], seen, taken, avoided) for name, seen in gpus.items() if name in plan.hosts}
    seated = Counter((p.wanted.service, p.wanted.host) for p in plan.processes.values())
    answers = place([u.ask for u in plan.unplaced.values()], cards, seated)
    seats: dict[str, Seat] = {}
    refused: dict[str, str] = {}
    for name, answer in answers.items():
        if not isinstance(answer, Seated):
            unheard = [f"{host}: {silent[host]}" for host in plan.unplaced[name].ask.hosts if host in silent]
            refused[name] = answer.why + (f"; not known: {listing(unheard)}" if unheard else "")
        elif len(answer.seats) > 1:
            split = listing([f"{len(seat.gpus)} of {seat.host}" for seat in answer.seats])
            refused[name] = f"needs GPUs of {len(answer.seats)} hosts ({split}): engines over several hosts are not yet built"
        else:
            seats[name] = answer.seats[0]
    return Seating(seats, refused)


def cards_of(
    plan: Plan,
    host: Host,
    seen: Sequence[GpuSeen],
    taken: Mapping[tuple[str, int | str], str],
    avoided: Mapping[tuple[str, int], str],
) -> tuple[Card, ...]:
    """What of a host's GPUs may be given away, and why the others may not. Slices of MIG are given by hand only."""
    cards = []
    for gpu in seen:
        lent = host.gpus is None or gpu.index in host.gpus or gpu.uuid in host.gpus
        if not lent or gpu.uuid.startswith("MIG-"):
            continue
        owner = taken.get((host.name, gpu.index)) or taken.get((host.name, gpu.uuid))
        blocked = f"given to {owner}" if owner else avoided.get((host.name, gpu.index)) or _unfit(plan, gpu)
        cards.append(Card(gpu.index, gpu.numa, frozenset(gpu.nvlink), blocked))
    return tuple(cards)


def _unfit(plan: Plan, gpu: GpuSeen) -> str:
    if gpu.error:
        return gpu.error
    if gpu.mig:
        return "split by MIG; its slices are given by hand (gpus)"
    if gpu.claim:
        # Who is to be seated anew gives up its old seat first.
        ours = gpu.claim.get("deployment") == plan.deployment and gpu.claim.get("process") in plan.unplaced
        return "" if ours else f"claimed by {gpu.claim.get('process')} of {gpu.claim.get('deployment')}"
    if gpu.strangers:
        return f"held by {gpu.strangers[0]}"
    if gpu.total_mib and gpu.used_mib and not gpu.holders and gpu.used_mib > FULL * gpu.total_mib:
        return f"{gpu.used_mib} MiB in use by nobody"
    return ""


def refused_by_gpu(process: Process) -> bool:
    """Its host refused the start for the sake of a GPU (hostside/lending.py, spawn.py); what came later is the run's own."""
    last = process.last_exit
    never_ran = process.seen is not None and not process.seen.pid
    if process.state not in (State.FAILED, State.BACKOFF) or last is None or not never_ran:
        return False
    return last.cause == "gpu" or (last.cause == "held" and last.message.startswith("gpu-"))
