"""A short torture: every kind of blow, at three hosts. NORAY_TORTURE_SEED replays one; `torture.py` has the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hosts.torture import KINDS, torture, why_not

pytestmark = pytest.mark.root

BLOWS = 14
DROP_S = 6.0  # longer than silence is borne


def test_whatever_befalls_a_link_its_workers_live_on_and_every_death_is_counted_once(tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(why)
    report = torture(tmp_path, BLOWS, DROP_S, int(os.environ.get("NORAY_TORTURE_SEED", "707")))
    print(report)
    assert report.wrong == []
    assert sum(map(len, report.blows.values())) == BLOWS
    assert set(report.blows) == set(KINDS)
    assert report.deaths
