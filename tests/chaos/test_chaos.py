"""A handful of random scenarios for CI. `python -m tests.chaos` plays as many as you like."""

from __future__ import annotations

import pytest

from tests.chaos.run import Outcome, scenarios
from tests.hosts.bed import missing

SEEDS = (3, 6)  # deaths in the middle of a start; a power cut

pytestmark = pytest.mark.root


def test_random_faults_leave_what_is_wanted() -> None:
    if why := missing("nft"):
        pytest.skip(why)
    outcomes: list[Outcome] = []
    scenarios(SEEDS, told=outcomes.append)
    said = "\n".join(map(str, outcomes))
    print(said)
    assert [outcome.seed for outcome in outcomes if outcome.violations] == [], said
    assert len(outcomes) == len(SEEDS)
