"""Real systemd, in namespaces of its own, over this machine's root file system. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.bed import NEEDED, Machine, User, booted

USERS: dict[str, User] = {
    "lingers": (7001, True), "leaves": (7002, False), "serves": (7003, False),  # log out, and stay out
    "resident": (7004, True), "guest": (7005, False),  # come and go meanwhile
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who needs the cut comes first, who needs it to be long ago comes last: the others run while that time passes."""
    mine = [number for number, item in enumerate(items) if Path(__file__).parent in item.path.parents]

    def turn(item: pytest.Item) -> int:
        used = getattr(item, "fixturenames", ())
        return 2 if "later" in used else 0 if "cut" in used else 1

    for number, item in zip(mine, sorted((items[number] for number in mine), key=turn), strict=True):
        item.add_marker(pytest.mark.root)
        items[number] = item


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    """By KillUserProcesses: "no" (what distributions ship) and "yes" (what systemd ships)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: systemd in namespaces of its own")
    missing = sorted({package for path, package in NEEDED.items() if not os.path.exists(path)})
    if missing:
        pytest.skip(f"no systemd to boot: apt-get install {' '.join(missing)}")
    place = tmp_path_factory.mktemp("machine")
    made = {kills: Machine(place / kills, f"KillUserProcesses={kills}", USERS) for kills in ("no", "yes")}
    with booted(*made.values()):
        yield made
