from __future__ import annotations

from datetime import UTC, datetime

import pytest

from supervisor.cli.since import ago_s
from supervisor.errors import UsageError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), ("3d", 259200), (" 1m ", 60), ("0s", 0),
     ("2026-03-01T11:59:00Z", 60), ("2026-03-01T12:30:00+01:00", 1800), ("2026-03-01 11:00+00:00", 3600)],
)  # fmt: skip
def test_how_long_ago_or_when(text: str, seconds: float) -> None:
    assert ago_s(text, NOW) == seconds


def test_a_time_without_a_zone_is_of_this_machine() -> None:
    here = datetime(2026, 3, 1, 11, 0).astimezone()
    assert ago_s("2026-03-01T11:00", NOW) == (NOW - here).total_seconds()


@pytest.mark.parametrize("text", ["", "yesterday", "10", "-5m", "10 minutes", "m", "2026-13-01", "2026-03-01T12:30:00Z"])
def test_what_is_no_time_past_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError, match="--since") as refused:
        ago_s(text, NOW)
    assert "10m" in refused.value.hint
