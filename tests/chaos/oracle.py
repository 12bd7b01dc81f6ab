"""Whether what is left is right. Pure functions of what the kernel shows and of what noray says; nothing of noray is imported.

Three questions: was there ever a second life of one process (the onlooker's ledger); is what runs exactly what is wanted,
owned, and told as it is, or is one of the named end states told; is every log there that a human would ask for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.watch import Being

KEPT = 3  # of a process's newest lives that have ended, the logs that must be there

SERVED = ("client", "http", "system", "rpc")  # ports at which stubs listen, too

SERVES = {"etcd-0", "frontend-0"}  # while one of them is stopped, nobody can be seen to serve

# How a scenario may end instead of in what is wanted, told by noray itself. There are no others.
END_STATES: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "crash budget spent": lambda p: p["state"] == "failed" and "did not help" in p["reason"],
    "SIGKILL does not end it": lambda p: p["state"] == "stuck",
    "its host does not answer": lambda p: p.get("host_state") == "unreachable",
    "its host refuses": lambda p: p.get("host_state") == "refused",
    "no space on its host": lambda p: "o space" in p["reason"],
}


@dataclass(frozen=True)
class Facts:
    """One look at everything."""

    wanted: frozenset[str]
    beings: tuple[Being, ...]
    hosts: Mapping[int, str]  # pid, as we see it -> host
    inside: Mapping[int, int]  # pid, as we see it -> as its host does
    status: Mapping[str, Any] | None
    controllers: int = 1
    dialled: frozenset[tuple[str, int]] = frozenset()  # (host, port) where somebody listens


def wrong(facts: Facts) -> list[str]:
    """What is not as it is wanted, owned and told; empty when all is well."""
    return [*_kernel(facts), *_told(facts)]


def _kernel(facts: Facts) -> list[str]:
    """Without asking noray."""
    found: list[str] = []
    names = {being.name for being in facts.beings}
    for name in sorted(names | facts.wanted):
        lives = sorted({b.life for b in facts.beings if b.name == name and b.role == "life"})
        owners = [b for b in facts.beings if b.name == name and b.role in ("keeper", "heir")]
        leaders = [b for b in facts.beings if b.name == name and b.leads]
        if name in facts.wanted and not leaders:
            found.append(f"{name}: wanted, and nobody lives")
        if name not in facts.wanted and lives:
            found.append(f"{name}: lives, though nobody wants it")
        if len(lives) > 1:
            found.append(f"{name}: {len(lives)} lives: {', '.join(lives)}")
        found += orphans(facts, name)
        if owners and not lives:
            found.append(f"{name}: its keeper keeps nothing")
        if len(owners) > 1:
            found.append(f"{name}: {len(owners)} keepers")
        found += [f"{name}: {b.role} {b.pid} is stopped" for b in facts.beings if b.name == name and b.state in "Tt"]
    if facts.controllers != int(bool(facts.wanted)):
        found.append(f"{facts.controllers} controllers")
    return found


def orphans(facts: Facts, name: str | None = None) -> list[str]:
    """Whoever lives without keeper, pump or heir on its host."""
    owned = {(b.name, facts.hosts.get(b.pid)) for b in facts.beings if b.role != "life"}
    lives = {
        (b.name, b.life)
        for b in facts.beings
        if b.role == "life" and name in (None, b.name) and (b.name, facts.hosts.get(b.pid)) not in owned
    }
    return [f"{who}: life {life} is an orphan" for who, life in sorted(lives)]


def _told(facts: Facts) -> list[str]:
    """What noray says, beside what the kernel says."""
    if not facts.wanted:
        return []
    if facts.status is None:
        return ["no controller answers"]
    found = [f"host {h['name']} is {h['state']}: {h.get('reason', '')}" for h in facts.status["hosts"] if h["state"] != "up"]
    told = {p["name"]: p for p in facts.status["processes"]}
    dark = SERVES & (set(told) - facts.wanted)
    for name in sorted(facts.wanted - set(told)):
        found.append(f"{name}: wanted, and not in the status")
    for name, process in told.items():
        if name not in facts.wanted:
            if process["state"] != "stopped":
                found.append(f"{name}: told to be {process['state']} ({process['reason']}), and nobody wants it")
            continue
        if process["state"] != "ready" and not (dark and process["state"] == "starting"):
            found.append(f"{name}: told to be {process['state']}: {process['reason']}")
            continue
        leads = [b for b in facts.beings if b.name == name and b.leads]
        where = [(facts.hosts.get(b.pid), facts.inside.get(b.pid)) for b in leads]
        if (process["host"], process["pid"]) not in where:
            found.append(f"{name}: told to be pid {process['pid']} on {process['host']}, and is {where}")
        runs = {b.run for b in facts.beings if b.name == name and b.role != "life"}
        if runs != {process["run"]}:
            found.append(f"{name}: told to be run {process['run']}, and its keeper keeps {sorted(runs)}")
        for which, port in process["ports"].items():
            if which in SERVED and (process["host"], port) not in facts.dialled:
                found.append(f"{name}: nobody listens at its port {port}")
    if not found and not facts.status["ready"] and not [p for p in told.values() if p["desired"] == "stopped"]:
        found.append(f"all is well, and the verdict is {facts.status['verdict']}")
    return found


def end_states(facts: Facts) -> set[str] | None:
    """Which of the named end states noray reports, if they explain every process that is not ready; None: they do not."""
    if facts.status is None:
        return None
    hosts = {h["name"]: h["state"] for h in facts.status["hosts"]}
    told = {p["name"]: {**p, "host_state": hosts.get(p["host"], "")} for p in facts.status["processes"]}
    named: set[str] = set()
    for name in facts.wanted:
        if name not in told:
            return None
        if told[name]["state"] != "ready":
            fitting = [word for word, fits in END_STATES.items() if fits(told[name])]
            if not fitting:
                return None
            named.add(fitting[0])
    if orphans(facts) or any("lives" in line for line in _kernel(facts) if "nobody lives" not in line):
        return None
    return named or None


# --- what the onlooker wrote down ---------------------------------------------------------------------------------------------


@dataclass
class Life:
    name: str
    life: str
    born: float
    ended: float | None = None


@dataclass
class Ledger:
    lives: dict[str, Life] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Ledger:
        lines = file.read_text().splitlines() if file.exists() else []
        return cls.of([json.loads(line) for line in lines if line.endswith("}")])

    @classmethod
    def of(cls, events: list[dict[str, Any]]) -> Ledger:
        found = cls()
        for event in events:
            if "born" in event:
                found.lives[event["born"]] = Life(event["name"], event["born"], event["at"])
            elif "ended" in event:
                found.lives[event["ended"]].ended = event["at"]
            else:
                found.doubles.append(f"{event['name']}: two lives at once: {', '.join(event['double'])}")
        return found

    @property
    def names(self) -> list[str]:
        return sorted({life.name for life in self.lives.values()})

    def ended(self, name: str) -> list[Life]:
        """The oldest first."""
        return sorted((x for x in self.lives.values() if x.name == name and x.ended is not None), key=lambda x: x.born)


def lost_logs(ended: list[Life], kept: str, untouched_since: float, unborn: int = 0, said: int = 0) -> list[str]:
    """Lives whose log should be there and is not: the newest that ended, and the first since anybody asked for an end.

    `kept`: everything that is on record of this process. `unborn`: so many runs on record never came to life. `said`: of so
    many noray itself says that something of their log was lost: a full disk.
    """
    there = set(re.findall(r"^life (\S+) of", kept, re.MULTILINE))
    newest = ended[max(0, len(ended) - max(0, KEPT - unborn)) :]
    missing = [f"{x.name}: the log of {x.life} is lost" for x in newest if x.life not in there]
    series = [x for x in ended if x.ended is not None and x.born > untouched_since]
    firsts = {x.life for x in ended if series and x.born <= series[0].born}  # or the series had begun before, by a reboot
    if firsts and not firsts & there and series[0] not in newest:
        missing.append(f"{series[0].name}: the log of its first failure, {series[0].life}, is lost")
    return missing if len(missing) > said else []
