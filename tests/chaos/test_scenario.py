"""A seed is a scenario: the same everywhere, and over many of them everything happens."""

from __future__ import annotations

import subprocess
import sys

from tests.chaos.scenario import CUTS, FREEZES, HANG_S, KILLS, SPAN_S, WEIGHTS, plan
from tests.chaos.world import HOSTS, NAMES, ROOT

BEGINS = {"freeze": "thaw", "partition": "heal", "one-way": "heal", "reset": "heal", "power-cut": "boot", "clock": "clock-back",
          "disk-full": "disk-free", "down": "up"}  # fmt: skip


def test_the_same_seed_is_the_same_plan_in_another_process_too() -> None:
    plans = [plan(seed, HOSTS, NAMES) for seed in range(50)]
    assert plans == [plan(seed, HOSTS, NAMES) for seed in range(50)]
    assert len(set(plans)) == 50
    code = f"from tests.chaos.scenario import plan; print(plan(7, {HOSTS!r}, {NAMES!r}))"
    argv = [sys.executable, "-c", code]
    salted = [{"PYTHONHASHSEED": salt} for salt in ("1", "2")]
    told = {subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout for env in salted}
    assert told == {f"{plans[7]}\n"}


def test_everything_happens_and_nothing_lasts_beyond_the_plan() -> None:
    happened: set[str] = set()
    for seed in range(1000):
        steps = plan(seed, HOSTS, NAMES)
        assert steps, seed
        assert list(steps) == sorted(steps, key=lambda step: step.at_s)
        assert steps[-1].at_s <= SPAN_S + 10 + max(HANG_S, *CUTS), seed
        happened |= {step.what for step in steps} | {f"{step.what} {step.how or step.who}" for step in steps}
        for step in steps:
            if end := BEGINS.get(step.what):
                assert any(later.what == end and later.who == step.who and later.at_s >= step.at_s for later in steps), (
                    seed,
                    step,
                )
            if step.what == "kill" and step.who == "controller":
                assert any(later.what == "controller" and later.at_s >= step.at_s for later in steps), seed
    assert {f"kill {kind}" for kind in KILLS} | {f"freeze {kind}" for kind in FREEZES if kind != "controller"} <= happened
    assert set(WEIGHTS) - {"down-up", "crashes", "hang", "birth"} <= happened
    assert {"one-way to", "one-way from", "change replicas", "change definition", "down", "start"} <= happened
