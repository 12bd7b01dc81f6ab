"""Play scenarios, one after another, and judge each."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.chaos.oracle import Ledger, end_states, lost_logs, wrong
from tests.chaos.scenario import Step, plan
from tests.chaos.world import HOSTS, NAMES, World

LOOK_S = 0.25
START_S = 60.0
SETTLE_S = 45.0  # after the last fault is over
INSISTS = 3  # so often the operator types again what failed
KEPT = 8  # scenarios in one world: restarts of etcd have a budget for ten minutes

RESTORED = "restored"


@dataclass
class Outcome:
    seed: int
    steps: tuple[Step, ...]
    word: str = RESTORED  # or a named end state
    violations: list[str] = field(default_factory=list)
    did: list[str] = field(default_factory=list)
    took_s: float = 0.0
    settled_s: float = 0.0

    def __str__(self) -> str:
        word = "VIOLATION" if self.violations else self.word
        lines = [f"seed {self.seed}: {word}; {self.took_s:.1f} s, of which settling {self.settled_s:.1f} s"]
        lines += [f"    {step}" for step in self.steps]
        lines += [f"    . {line}" for line in self.did] if self.violations or self.word != RESTORED else []
        return "\n".join(lines + [f"    ! {line}" for line in self.violations])


def scenarios(seeds: Iterable[int], *, real: bool = False, told: Callable[[Outcome], None], keep: Path | None = None) -> None:
    """Play these seeds; `told` hears each outcome. Worlds are left in `keep` where something was violated."""
    todo = list(seeds)
    while todo:
        with (
            tempfile.TemporaryDirectory(prefix="nc", dir="/tmp", ignore_cleanup_errors=True) as place,
            World(Path(place), real=real) as world,
        ):
            if left := settled(world, START_S):
                told(Outcome(todo.pop(0), (), violations=[f"it did not start: {line}" for line in left]))
                continue
            for _ in range(KEPT):
                if not todo:
                    break
                outcome = play(world, todo.pop(0))
                fit = not outcome.violations and outcome.word == RESTORED and well_again(world)
                if outcome.violations and keep:
                    preserve(world, keep / str(outcome.seed))
                told(outcome)
                if not fit:
                    break


def play(world: World, seed: int) -> Outcome:
    steps = plan(seed, HOSTS, NAMES)
    outcome = Outcome(seed, steps)
    world.did.clear()
    began = time.monotonic()
    for step in steps:
        time.sleep(max(0.0, began + step.at_s - time.monotonic()))
        world.do(step)
    world.mend()
    mended = time.monotonic()
    left = settled(world, SETTLE_S)
    outcome.settled_s = time.monotonic() - mended
    if left:
        named = end_states(world.facts())
        outcome.word = " and ".join(sorted(named)) if named else "not restored"
        outcome.violations += [] if named else left
    ledger = world.ledger()
    if not left:
        # What is well for a moment may be about to notice that a line is dead.
        if by_verb(world) and (left := settled(world, SETTLE_S)):
            outcome.violations += left
        outcome.violations += [*by_verb(world), *first_failure(world, ledger)]
    outcome.violations += ledger.doubles
    outcome.violations += missing_logs(world, ledger)
    outcome.did = list(world.did)
    outcome.took_s = time.monotonic() - began
    return outcome


def settled(world: World, within_s: float) -> list[str]:
    """Wait until all is well, seen twice; what is still wrong when the time is over. Meanwhile a service manager is at work."""
    end, well, insists = time.monotonic() + within_s, 0, 0
    while True:
        world.serve()
        left = wrong(world.facts())
        if not world.idle():
            left.append("the operator's last word has not been answered")
        elif insists < INSISTS and world.owed:
            insists += 1
            world.insist()
            left.append("the operator asks again")
        well = 0 if left else well + 1
        if well == 2:
            return []
        if time.monotonic() > end:
            return left
        time.sleep(LOOK_S)


def by_verb(world: World) -> list[str]:
    """What an operator is told, beside what is so."""
    if world.down:
        return []
    code, said = world.noray("status", "--json")
    if code:
        return [f"noray status -> {code}: {said[-300:]}"]
    return [f"noray status: {line}" for line in wrong(replace(world.facts(), status=json.loads(said)))]


def missing_logs(world: World, ledger: Ledger) -> list[str]:
    found: list[str] = []
    for name in ledger.names:
        touched = world.touched.get(name, 0.0)
        found += lost_logs(ledger.ended(name), world.logs(name), touched, unborn(world, name), world.told_lost(name))
    return found


def unborn(world: World, name: str) -> int:
    """So many of its runs on record never came to life: refused, or killed before they began."""
    return max(0, world.recorded(name) - len(re.findall(r"^life \S+ of", world.logs(name), re.MULTILINE)))


def first_failure(world: World, ledger: Ledger) -> list[str]:
    """Whether the operator is shown it, of whoever failed most often since somebody could have asked for an end."""
    series = {name: [x for x in ledger.ended(name) if x.born > world.touched.get(name, 0.0)] for name in world.wanted}
    name = max(sorted(series), key=lambda name: len(series[name]), default="")
    if not name or not series[name] or unborn(world, name):
        return []
    first = series[name][0]
    firsts = [x.life for x in ledger.ended(name) if x.born <= first.born]
    code, said = world.noray("logs", name, "--first-failure", "-n", "1000000")
    if not code and any(f"life {life} of {name}" in said for life in firsts):
        return []
    return [f"noray logs {name} --first-failure -> {code}, and does not show {first.life}: {said[:300]}"]


def well_again(world: World) -> bool:
    """Bring back what the scenario left stopped; whether the next one can begin here."""
    world.all_wanted()
    return not settled(world, SETTLE_S)


def preserve(world: World, where: Path) -> None:
    """What a human needs to see why."""
    where.mkdir(parents=True, exist_ok=True)
    for file in (world.place / "controller.log", world.ledger_file, *sorted(world.place.glob("s*/*/controller.log"))):
        if file.exists():
            (where / "-".join(file.relative_to(world.place).parts)).write_bytes(file.read_bytes())
    facts = world.facts()
    (where / "status.json").write_text(json.dumps(facts.status, indent=1))
    (where / "beings.txt").write_text("\n".join(f"{facts.hosts.get(b.pid)} {b}" for b in facts.beings) + "\n")
    for host in HOSTS:
        for record in world.records(host):
            target = where / "-".join((host, *record.parts[-4:]))
            target.write_bytes(record.read_bytes())
