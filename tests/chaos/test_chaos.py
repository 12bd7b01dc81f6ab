"""A handful of random scenarios for CI. `python -m tests.chaos` plays as many as you like."""

from __future__ import annotations

import random

import pytest

from tests.chaos.run import Outcome, scenarios
from tests.chaos.scenario import plan
from tests.chaos.world import HOSTS, NAMES
from tests.hosts.bed import missing

SEEDS = (3, 4, 6)  # deaths in the middle of a start; of a restart; a power cut
SHORT_S = 6.0

pytestmark = pytest.mark.root


def test_random_faults_leave_what_is_wanted() -> None:
    if why := missing("nft"):
        pytest.skip(why)
    drawn = (random.SystemRandom().randrange(10**6) for _ in range(1000))
    seeds = [*SEEDS, next(seed for seed in drawn if plan(seed, HOSTS, NAMES)[-1].at_s < SHORT_S)]
    outcomes: list[Outcome] = []
    scenarios(seeds, told=outcomes.append)
    said = "\n".join(map(str, outcomes))
    print(said)
    assert [outcome.seed for outcome in outcomes if outcome.violations] == [], said
    assert len(outcomes) == len(seeds)
