"""What the GPUs of this host are, who holds them, and what follows from that.

    prepare()                            early in a long life; nothing happens on a host without an NVIDIA driver
    look(deadline_s) -> Look             blocking, for a process that has no loop yet
    ask(reactor, deadline_s, done)       the same, and `done(look)` is called from the loop
    watch(reactor, tell)                 wide, and again as long as they cannot be seen
    children() -> pids                   of looks under way: children of this process, and none of its run's tree

    told(look)                           -> the same as plain data, for a controller

A wide look also asks who claims each GPU, and what placement and people want to know of it. A look is done in a child with a
deadline (aside.py): NVML hangs when a card does. It never raises; `Look.error` is a sentence when the GPUs could not be seen,
`Look.none` one when there are none. All below is pure, over a `Look`; GPUs are named by UUID:

    resolve(look, [0, "GPU-…"])          -> the GPUs, or a sentence that names what there is instead
    foreign(look, uuids, ours)           -> the strangers on them; furniture (Xorg, MPS, dcgm …) is none
    proof(look, tree, uuids, before)     -> ("proved" | "refuted" | "cannot tell" | "", why); "" = nothing of it on any GPU yet
    baseline(look, uuids)                -> {uuid: MiB in use that no listed process accounts for}; taken before the run
    ailing(look, ecc_errors)             -> what is wrong with cards, "" when nothing shows
    owed(baseline, look, ours)           -> why the memory is not back yet, "" when it is; `returned` = not owed
    Gpu.free_mib                         -> None where NVML does not say
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any, Callable, Collection, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from . import aside, claims, nvml
from .holders import ELSEWHERE, Holder, who
from .reactor import Reactor

DEADLINE_S = 5.0
AGAIN_S = 30.0
PATIENT_S = 25.0  # a driver without persistence mode starts anew for each look, and takes seconds for each idle card
SLACK_MIB = 64  # NVML's own accounting moves by a few MiB; a forgotten context is hundreds
CLAIMS_S = 1.0  # for all holders of claims together to say who they are
IDLE_MIB = 1024  # more than the driver keeps of an idle card (615 MiB of an H200, measured)
HEALTH = ("util_percent", "temp_c", "power_w", "power_limit_w", "ecc", "ecc_errors")
PROVED, REFUTED, CANNOT_TELL = "proved", "refuted", "cannot tell"


class Gpu(NamedTuple):
    """A card, or a MIG slice of one (`card` is then the card's UUID, `index` the card's)."""

    index: int  # type: ignore[assignment]  # tuple.index: nobody misses it
    uuid: str
    name: str
    total_mib: Optional[int]
    used_mib: Optional[int]
    holders: Tuple[Holder, ...]
    mig: bool = False  # split: its slices can be used, it cannot
    vgpu: bool = False
    card: str = ""
    listed: bool = True  # False: it does not tell who computes on it
    error: str = ""  # it could not be asked; whatever it answered before that stands
    ecc_errors: Optional[int] = None  # uncorrected, since the driver was loaded
    # What only a wide look asks; None, [] if it is not known, and where NVML had a reason for that it is in `unsaid`.
    claim: Optional[Dict[str, Any]] = None  # of the run that holds it; {}: its holder does not say who it is
    numa: Optional[int] = None  # the NUMA node it is nearest to
    nvlink: Sequence[int] = ()  # the indexes of the cards that it reaches over NVLink
    health: Optional[Dict[str, Any]] = None  # HEALTH
    unsaid: Optional[Dict[str, str]] = None

    @property
    def free_mib(self) -> Optional[int]:
        return None if self.total_mib is None or self.used_mib is None else self.total_mib - self.used_mib

    @property
    def unaccounted_mib(self) -> Optional[int]:
        return None if self.used_mib is None else self.used_mib - sum(h.mib or 0 for h in self.holders)

    def __str__(self) -> str:
        return "%s of GPU %d" % (self.uuid, self.index) if self.card else "GPU %d (%s)" % (self.index, self.uuid or "no UUID")


class Look(NamedTuple):
    gpus: Tuple[Gpu, ...]  # cards and slices
    error: str = ""
    none: str = ""
    driver: str = ""
    cuda: Optional[str] = None  # the newest that the driver runs; a wide look asks

    def find(self, uuid: str) -> Optional[Gpu]:
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)


class Stranger(NamedTuple):
    gpu: Gpu
    holder: Holder

    def __str__(self) -> str:
        return "%s is held by %s" % (self.gpu, self.holder)


# --- looking ------------------------------------------------------------------------------------------------------------

prepare = nvml.prepare
children = aside.children


def look(deadline_s: float = DEADLINE_S, wide: bool = False) -> Look:
    """Takes 40-150 ms, `deadline_s` at most."""
    known = _known()
    try:
        return known if known is not None else _seen(aside.do(functools.partial(_observe, wide), deadline_s), deadline_s)
    except OSError as error:
        return _unable(error)


def ask(reactor: Reactor, deadline_s: float, done: Callable[[Look], None], wide: bool = False) -> None:
    """`done` may be called before this returns: when there is nothing to ask, or no use in asking."""
    known = _known()
    if known is None:
        try:
            work = functools.partial(_observe, wide)
            return aside.begin(reactor, work, deadline_s, lambda answer: done(_seen(answer, deadline_s)))
        except OSError as error:
            known = _unable(error)
    return done(known)


def _unable(error: OSError) -> Look:
    """A host out of processes, memory or descriptors must not take a keeper down with it."""
    return Look((), error="cannot start a look at NVML: %s" % error.strerror)


def watch(reactor: Reactor, tell: Callable[[Look], None], deadline_s: float = DEADLINE_S) -> None:
    """Look wide now, and again, with more patience, as long as they cannot be seen."""

    def seen(look: Look) -> None:
        tell(look)
        if look.error:
            reactor.after(AGAIN_S, lambda: watch(reactor, tell, PATIENT_S))

    ask(reactor, deadline_s, seen, wide=True)


def _known() -> Optional[Look]:
    """The answer that needs no child."""
    why = nvml.missing()
    if why:
        return Look((), none=why)
    since = aside.stuck_since()
    if since is not None:
        at = time.strftime("%H:%M:%S", time.localtime(since))
        return Look((), error="NVML does not answer (a look is stuck since %s)" % at)
    wrong = nvml.prepare()
    return Look((), error=wrong) if wrong else None


def _observe(wide: bool) -> bytes:
    """In the child. /proc is read here too: the command line of a process in state D can block its reader."""
    raw, code = nvml.read(wide)
    if any(holder["seen"] == ELSEWHERE for holder in _described(raw)):
        nvml.remember(code)
        raw = nvml.read(wide)[0]  # perhaps it only ended between the two questions
        _described(raw)
    if wide:
        _claimed(raw)
    return json.dumps(raw).encode() + b"\n" + code


def _described(raw: Dict[str, Any]) -> List[Dict[str, Any]]:
    holders = [holder for device in _devices(raw) for holder in device.get("holders") or ()]
    for holder in holders:
        holder.update(who(holder["pid"]))
    return holders


def claim_name(uuid: str) -> str:
    return "gpu-%s" % uuid


def _claimed(raw: Dict[str, Any]) -> None:
    """In the child too: a keeper that does not answer holds up nobody else."""
    until = time.monotonic() + CLAIMS_S
    for device in _devices(raw):
        if device.get("uuid"):
            device["claim"] = claims.ask(claim_name(device["uuid"]), max(until - time.monotonic(), 0.01))


def _devices(raw: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Cards, and slices of them."""
    return [device for card in raw.get("cards", ()) for device in (card, *card["slices"])]


def _seen(answer: Optional[bytes], deadline_s: float) -> Look:
    if answer is None:
        return Look((), error="NVML does not answer within %g s" % deadline_s)
    line, _, code = answer.partition(b"\n")
    try:
        raw = json.loads(line)
    except ValueError:
        return Look((), error="NVML ended the process that asked it")
    nvml.remember(code)
    return parse(raw)


def parse(raw: Dict[str, Any]) -> Look:
    gpus: List[Gpu] = []
    for card in raw.get("cards", ()):
        flags: Dict[str, Any] = {"mig": bool(card.get("mig")), "vgpu": bool(card.get("vgpu")), "error": card.get("error", "")}
        if raw.get("wide"):
            flags.update(numa=card.get("numa"), nvlink=card.get("nvlink") or (), unsaid=card.get("unsaid", {}))
            flags.update(health={key: card.get(key) for key in HEALTH})
        gpus.append(_gpu(card["index"], card)._replace(**flags))
        gpus += [_gpu(card["index"], piece)._replace(card=card["uuid"], vgpu=flags["vgpu"]) for piece in card["slices"]]
    none = raw.get("none", "") or ("" if gpus or raw.get("error") else "the NVIDIA driver knows no GPU")
    return Look(tuple(gpus), raw.get("error", ""), none, raw.get("driver", ""), raw.get("cuda"))


def told(look: Look) -> Dict[str, Any]:
    """As a controller is told: plain data, each holder also as the sentence `says`.

    `strangers` are such sentences too: who computes on a GPU that no run claims. Who sits on a claimed one is left to the
    keeper that claimed it, and looked before it did.
    """
    cards = []
    for gpu in look.gpus:
        strangers = foreign(look, (gpu.uuid,), ()) if gpu.claim is None else ()
        holders = [dict(holder._asdict(), says=str(holder)) for holder in gpu.holders]
        cards.append(dict(gpu._asdict(), holders=holders, strangers=[str(one.holder) for one in strangers]))
    return {"gpus": cards, "error": look.error, "none": look.none, "driver": look.driver, "cuda": look.cuda}


def _gpu(index: int, raw: Dict[str, Any]) -> Gpu:
    holders = raw.get("holders")
    return Gpu(index, raw.get("uuid", ""), raw.get("name", ""), raw.get("total_mib"), raw.get("used_mib"),
               tuple(Holder(**h) for h in holders or ()), listed=holders is not None, claim=raw.get("claim"),
               ecc_errors=raw.get("ecc_errors"))  # fmt: skip


# --- what follows -------------------------------------------------------------------------------------------------------


def resolve(look: Look, wanted: Iterable[Union[int, str]]) -> Union[List[Gpu], str]:
    """Indexes are NVML's, which is CUDA's under CUDA_DEVICE_ORDER=PCI_BUS_ID; UUIDs are written in full."""
    found: List[Gpu] = []
    for one in wanted:
        named = [g for g in look.gpus if (g.uuid == one if isinstance(one, str) else g.index == one and not g.card)]
        if look.error:
            return "cannot see the GPUs of this host: %s" % look.error
        if not named:
            return "there is no GPU %s on this host: %s" % (one, _inventory(look))
        gpu = named[0]
        if gpu.error or not gpu.uuid:
            return "%s cannot be used: %s" % (gpu, gpu.error or "it does not tell its UUID")
        if gpu.mig:
            return "%s is split by MIG: name slices of it instead: %s" % (gpu, _inventory(look, gpu.uuid))
        if gpu in found:
            return "%s is named twice" % (gpu,)
        found.append(gpu)
    return found


def _inventory(look: Look, card: str = "") -> str:
    told = [str(gpu) for gpu in look.gpus if gpu.card == card] if card else [str(gpu) for gpu in look.gpus]
    return ("it has " + ", ".join(told)) if told else look.none or "it has none"


def foreign(look: Look, uuids: Collection[str], ours: Collection[int]) -> List[Stranger]:
    """Who else computes on these GPUs. Graphics alone is furniture too: every workstation has some."""
    return [
        Stranger(gpu, holder)
        for gpu in look.gpus
        if gpu.uuid in uuids
        for holder in gpu.holders
        if holder.pid not in ours and not holder.furniture and holder.kind != "graphics"
    ]


def proof(look: Look, tree: Collection[int], uuids: Collection[str], before: Dict[str, int]) -> Tuple[str, str]:
    """Does this tree sit on its own GPUs, and nowhere else? `before`: the baseline of its GPUs, {} if there is none."""
    if look.error:
        return CANNOT_TELL, look.error
    elsewhere = [h for gpu in look.gpus for h in gpu.holders if h.seen == ELSEWHERE]
    if elsewhere:
        return CANNOT_TELL, "NVML counts pids of another pid namespace: there is no %d here" % elsewhere[0].pid
    mine = [gpu for gpu in look.gpus if gpu.uuid in uuids]
    cards = {gpu.card for gpu in mine}
    for gpu in look.gpus:
        strays = [h for h in gpu.holders if h.pid in tree]
        if strays and gpu.uuid not in uuids and not (gpu.card or gpu.mig or gpu.vgpu or gpu.uuid in cards):
            return REFUTED, "%s is on %s, which is not its own" % (strays[0], gpu)
    for gpu in mine:
        blind = (
            "it is a slice made by MIG" if gpu.card else "it is a vGPU" if gpu.vgpu else gpu.error
            or ("" if gpu.listed else "it does not tell who computes on it")
        )  # fmt: skip
        if blind:
            return CANNOT_TELL, "%s: %s" % (gpu, blind)
    if any(h.pid in tree for gpu in mine for h in gpu.holders):
        return PROVED, ""
    for gpu in mine:
        nobodys = gpu.unaccounted_mib or 0
        if nobodys > before.get(gpu.uuid, IDLE_MIB) + SLACK_MIB:
            return CANNOT_TELL, "%s has %d MiB in use by nobody NVML lists" % (gpu, nobodys)
    return "", ""


def baseline(look: Look, uuids: Collection[str]) -> Dict[str, int]:
    return {gpu.uuid: gpu.unaccounted_mib for gpu in look.gpus if gpu.uuid in uuids and gpu.unaccounted_mib is not None}


def owed(baseline: Dict[str, int], look: Look, ours: Collection[int]) -> str:
    """What the GPUs of a run that ended have not got back, as a sentence; "" if nothing."""
    if look.error:
        return "cannot see its GPUs: %s" % look.error
    for uuid, before in baseline.items():
        gpu = look.find(uuid)
        if gpu is None or gpu.error:
            return "%s is not to be seen: %s" % (uuid, "no such GPU now" if gpu is None else gpu.error)
        left = [holder for holder in gpu.holders if holder.pid in ours]
        if left:
            return "%s is still held by %s" % (gpu, left[0])
        now = gpu.unaccounted_mib
        if now is not None and now > before + SLACK_MIB:
            return "%s has %d MiB in use by nobody, %d before the run" % (gpu, now, before)
    return ""


def ailing(look: Look, ecc_errors: Dict[str, Optional[int]]) -> str:
    """What is wrong with these cards, as a sentence; "" if nothing shows. `ecc_errors`: of each, as they were before."""
    if look.error:
        return look.error
    found = []
    for uuid, before in ecc_errors.items():
        gpu = look.find(uuid)
        if gpu is None:
            found.append("%s is not there any more" % uuid)
        elif gpu.error:
            found.append("%s: %s" % (gpu, gpu.error))
        elif before is not None and gpu.ecc_errors is not None and gpu.ecc_errors > before:
            found.append("%s had %d uncorrected memory errors (ECC) meanwhile" % (gpu, gpu.ecc_errors - before))
    return "; ".join(found)


def returned(baseline: Dict[str, int], look: Look, ours: Collection[int]) -> bool:
    return not owed(baseline, look, ours)
