from __future__ import annotations

from dataclasses import replace

from supervisor.plan.diff import Change, diff
from tests.core.world import by_name, wanted

NOW = by_name(wanted("a-0"), wanted("b-0"), wanted("c-0"))


def test_no_difference_is_empty() -> None:
    assert diff(NOW, dict(reversed(NOW.items()))) == ()


def test_rules_alone_are_no_difference() -> None:
    assert diff(NOW, {**NOW, "b-0": replace(NOW["b-0"], term_s=1.0, stop_rank=9)}) == ()


def test_everything_that_would_be_touched_by_name() -> None:
    then = by_name(wanted("b-0", launch_hash="h2"), wanted("c-0", host="gpu02"), wanted("d-0"))
    assert diff(NOW, then) == (
        Change("a-0", "stop", "no longer in the file"),
        Change("b-0", "restart", "its definition changed"),
        Change("c-0", "restart", "moves from gpu01 to gpu02"),
        Change("d-0", "start", "new in the file"),
    )
