"""GPUs lent to one run: clean when taken, its own while it runs, and proven back before anybody else may have them.

    take()      before the start: which they are, that no stranger is on them, that enough memory is free, how much is used
    Lending     afterwards: the proof that the run sits on its own GPUs, and the wait for their memory when its tree is gone

"In use" is what no listed process accounts for: a driver keeps some for itself, and memory of a killed process takes seconds
to come back. A run that leaves more behind than it found is not over.
"""

from __future__ import annotations

from typing import Any, Callable, Collection, Dict, List, NamedTuple, Optional, Union

from . import gpus
from .holders import ELSEWHERE
from .reactor import Reactor, Timer

ASK_S = 5.0  # for NVML to answer
PATIENT_S = gpus.PATIENT_S  # before a start: only that start waits, and idle cards may have to be woken one by one
PROOF_S = 5.0  # between two looks at a run that is not proven yet
PROVEN_S = 60.0  # and at one that is
REFUSE_AFTER = 2  # looks that say the same: one may have met a pid that changed hands
SAMPLE_S = 0.2  # between two looks at memory that has to come back
SAMPLES = 3  # in a row, with everything back
HELD_S = 2.0  # between two looks, once the wait has been given up


class Unfit(Exception):
    """These GPUs cannot be had now: the message names why. `cause`: "missing" if no waiting will help, else "gpu"."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Lent(NamedTuple):
    """One GPU of a run, as recorded in run.json."""

    index: int  # type: ignore[assignment]  # tuple.index: nobody misses it
    uuid: str
    before_mib: int  # in use by nobody, before the run
    ecc_errors: Optional[int] = None  # uncorrected since the driver was loaded, before the run


def recorded(record: Dict[str, Any]) -> List[Lent]:
    """The GPUs that a run's record names."""
    told = record.get("gpus", ())
    return [Lent(one["index"], one["uuid"], one["before_mib"], one.get("ecc_errors")) for one in told]


def take(wanted: List[Union[int, str]], free: float, hold: Callable[[str], None]) -> List[Lent]:
    """The GPUs named by index or UUID, claimed through `hold`. `free`: the part of their memory that must be free, 0..1.

    Raises Unfit, and what `hold` raises. Blocks for two looks at most.
    """
    look = gpus.look(PATIENT_S)
    found = gpus.resolve(look, wanted)
    if isinstance(found, str):
        raise Unfit("gpu" if look.error else "missing", found)
    uuids = [gpu.uuid for gpu in found]
    for uuid in uuids:
        hold(gpus.claim_name(uuid))
    if gpus.foreign(look, uuids, ()):
        look = gpus.look(PATIENT_S)  # who was on it then may have been its last holder of ours: the claim is ours only now
    strangers = gpus.foreign(look, uuids, ())
    if strangers:
        raise Unfit("gpu", "; ".join(str(stranger) for stranger in strangers))
    lent = []
    before = gpus.baseline(look, uuids)
    for uuid in uuids:
        gpu = look.find(uuid)
        if gpu is None:
            raise Unfit("gpu", look.error or "%s is gone" % uuid)
        if gpu.free_mib is not None and gpu.total_mib is not None and gpu.free_mib < free * gpu.total_mib:
            told = "%s has %d of %d MiB free, %d wanted" % (gpu, gpu.free_mib, gpu.total_mib, free * gpu.total_mib)
            raise Unfit("gpu", told)
        lent.append(Lent(gpu.index, uuid, before.get(uuid, 0), gpu.ecc_errors))
    return lent


class Lending:
    """`tree()`: pids alive now. `proven`: the proof changed. `refuted(why)`: the run must fail. `returned`: all is back."""

    def __init__(
        self,
        reactor: Reactor,
        lent: List[Lent],
        tree: Callable[[], Collection[int]],
        proven: Callable[[], None],
        refuted: Callable[[str], None],
        returned: Callable[[], None],
    ) -> None:
        self._reactor, self.lent, self._tree = reactor, lent, tree
        self._proven, self._refuted, self._returned = proven, refuted, returned
        self._before = {one.uuid: one.before_mib for one in lent}
        self._timer = Timer(lambda: None)
        self._same = 0  # looks in a row that said the same
        self._pause_s = SAMPLE_S
        self._giving_back = False
        self.proof, self.why = "", ""  # proved, refuted, cannot tell; "" = nothing of it is on any GPU yet
        self.owed = ""  # what is not back, as a sentence
        self.signs: Dict[str, str] = {}  # what was wrong with them when its tree had ended, as `postmortem` has it

    def told(self) -> List[Dict[str, Any]]:
        return [{"index": one.index, "uuid": one.uuid, "proof": self.proof} for one in self.lent]

    def watch(self) -> None:
        """The run has begun: look whether it sits where it should."""
        if self.lent:
            gpus.prepare()
            self._timer = self._reactor.after(PROOF_S, self._prove)

    def _prove(self) -> None:
        gpus.ask(self._reactor, ASK_S, self._judge)

    def _judge(self, look: gpus.Look) -> None:
        if self._giving_back:
            return
        proof, why = gpus.proof(look, self._tree(), list(self._before), self._before)
        self._same = self._same + 1 if proof == gpus.REFUTED else 0
        if proof != gpus.REFUTED or self._same >= REFUSE_AFTER:
            changed = (proof, why) != (self.proof, self.why)
            self.proof, self.why = proof or self.proof, why
            if changed:
                self._proven()
        if self._same >= REFUSE_AFTER:
            self._refuted(why)
        settled = self.proof and not self._same
        self._timer = self._reactor.after(PROVEN_S if settled else PROOF_S, self._prove)

    def give_back(self) -> None:
        """The tree is gone: `returned` will be called when the memory is back. Idempotent."""
        if self._giving_back:
            return
        self._giving_back = True
        self._timer.cancel()
        self._same = 0
        self._sample()

    def slow_down(self) -> None:
        """It has taken too long; go on looking, but not so often."""
        self._pause_s = HELD_S

    def _sample(self) -> None:
        gpus.ask(self._reactor, ASK_S, self._weigh)

    def _weigh(self, look: gpus.Look) -> None:
        # Nobody of the tree lives, and nobody else was on them before: who is listed and does not exist is ours.
        dead = [h.pid for gpu in look.gpus if gpu.uuid in self._before for h in gpu.holders if h.seen == ELSEWHERE]
        if not self.signs:
            wrong = gpus.ailing(look, {one.uuid: one.ecc_errors for one in self.lent})
            self.signs = {"gpu": wrong} if wrong else {}
        was, self.owed = self.owed, gpus.owed(self._before, look, dead)
        self._same = 0 if self.owed else self._same + 1
        if self._same >= SAMPLES:
            self._returned()
            return
        if self.owed != was:
            self._proven()
        self._reactor.after(self._pause_s, self._sample)
