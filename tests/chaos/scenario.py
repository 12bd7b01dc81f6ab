"""What happens in a scenario: a pure function of its seed. Who is meant is said by name; which pid that is shows in time.

A fault that lasts is two steps, its beginning and its end. Nothing lasts beyond the plan: judged is what is left when all that
was broken is whole again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SPAN_S = 3.5  # faults begin within this time of each other
CLOSE_S = (0.05, 0.3, 1.0)

LASTS = (0.2, 0.6, 1.5, 3.0)
CUTS = (0.5, 2.0, 5.0, 8.0)  # of a line: shorter and longer than the 6 s after which it counts as silent
HANG_S = 40.0  # longer than it takes to be told from a pause, and ended
CLOCKS = (-90_000, -700, 0, 0, 5000, 10_000_000)  # CLOCK_MONOTONIC and CLOCK_BOOTTIME of the next boot, seconds ahead of ours
ROOMS = (0, 1, 2, 3, 8)  # of 4 KiB, what a full disk still takes
STEPS = (-7200, -30, 30, 86_400)  # of a wall clock

FREEZES = ("leader", "keeper", "pump", "keeper+pump", "link", "session", "controller")
KILLS = (*FREEZES, "child", "tree", "keeper+pump+leader", "operator")
OF_HOST, OF_NOBODY = ("link", "session"), ("controller", "operator")

WEIGHTS = {
    "kill": 10, "freeze": 5, "partition": 2, "one-way": 2, "reset": 1, "reboot": 2, "power-cut": 1, "shutdown": 1, "clock": 2,
    "disk-full": 3, "birth": 2, "crashes": 1, "hang": 0.3, "stop": 1, "restart": 2, "down-up": 1, "change": 2, "take-over": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    at_s: float
    what: str
    who: str = ""
    how: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in (f"{self.at_s:5.2f}", self.what, self.who, self.how) if word)


def plan(seed: int, hosts: tuple[str, ...], names: tuple[str, ...]) -> tuple[Step, ...]:
    """1 to 4 faults, in the order of their times. `names`: of the processes that a fault may mean.

    In every other scenario all faults mean the same process, or its host, and come close together: what is just being mended
    breaks again.
    """
    draw = random.Random(f"noray chaos {seed}")
    count = draw.choice((1, 2, 2, 3, 3, 4))
    close = draw.random() < 0.5
    began, span_s = (draw.uniform(0.0, SPAN_S), draw.choice(CLOSE_S)) if close else (0.0, SPAN_S)
    steps: list[Step] = []
    host, name = draw.choice(hosts), draw.choice(names)
    for what in draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count):
        if not close:
            host, name = draw.choice(hosts), draw.choice(names)
        steps += _fault(draw, what, host, name, round(began + draw.uniform(0.0, span_s), 2))
    return tuple(sorted(steps, key=lambda step: step.at_s))


def _fault(draw: random.Random, what: str, host: str, name: str, at: float) -> list[Step]:
    def lasting(end: str, lasts: tuple[float, ...], who: str, how: str = "") -> list[Step]:
        return [Step(at, what, who, how), Step(round(at + draw.choice(lasts), 2), end, who, how)]

    match what:
        case "kill":
            kind = draw.choice(KILLS)
            if kind == "controller":
                return [Step(at, "kill", kind), Step(round(at + draw.choice(LASTS), 2), "controller")]
            return [Step(at, "kill", kind if kind in OF_NOBODY else host if kind in OF_HOST else name, kind)]
        case "freeze":
            kind = draw.choice(FREEZES)
            return lasting("thaw", LASTS, "" if kind == "controller" else host if kind in OF_HOST else name, kind)
        case "birth":  # it dies, and so does what starts it anew, at any moment of the start
            again = [round(at + draw.uniform(0.0, 0.4), 2) for _ in range(3)]
            deaths = [Step(late, "kill", name, "keeper+pump") for late in again[:2]]
            return [Step(at, "kill", name, "tree"), *deaths, Step(again[2], "kill", host, "link")]
        case "shutdown":  # everybody is asked to end, and after a while the host is off
            return [Step(at, what, host), Step(round(at + draw.choice(LASTS), 2), "reboot", host, "0")]
        case "crashes":
            return [Step(round(at + number * draw.uniform(0.2, 1.5), 2), "kill", name, "leader") for number in range(4)]
        case "hang":
            return [Step(at, "freeze", name, "leader"), Step(at + HANG_S, "thaw", name, "leader")]
        case "partition" | "reset":
            return lasting("heal", CUTS, host)
        case "one-way":
            return lasting("heal", CUTS, host, draw.choice(("to", "from")))
        case "reboot":
            return [Step(at, what, host, str(draw.choice(CLOCKS)))]
        case "power-cut":
            return [Step(at, what, host), Step(round(at + draw.choice(CUTS), 2), "boot", host, str(draw.choice(CLOCKS)))]
        case "clock":
            who = draw.choice((host, "controller"))
            return lasting("clock-back", CUTS, who, str(draw.choice(STEPS)))
        case "disk-full":
            return lasting("disk-free", CUTS, host, str(draw.choice(ROOMS)))
        case "stop":
            back = [Step(round(at + draw.choice(LASTS), 2), "start", name)] if draw.random() < 0.6 else []
            return [Step(at, what, name), *back]
        case "down-up":
            return [Step(at, "down"), Step(round(at + draw.choice(LASTS), 2), "up")]
        case "change":
            return [Step(at, what, how=draw.choice(("replicas", "definition")))]
        case "restart":
            return [Step(at, what, name)]
        case _:
            return [Step(at, what)]
