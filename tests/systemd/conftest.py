"""Real systemd, in namespaces of its own, over this machine's root file system. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.bed import NEEDED, Machine, booted

# Distinct users for distinct questions: a verdict may depend on who is logged in.
USERS = {"lingers": (7001, True), "leaves": (7002, False), "guest": (7003, False), "serves": (7004, False)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    """By KillUserProcesses: "no" (what distributions ship) and "yes" (what systemd ships)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: systemd in namespaces of its own")
    missing = sorted({package for path, package in NEEDED.items() if not os.path.exists(path)})
    if missing:
        pytest.skip(f"no systemd to boot: apt-get install {' '.join(missing)}")
    made = {
        kills: Machine(tmp_path_factory.mktemp("machine") / kills, f"KillUserProcesses={kills}", USERS)
        for kills in ("no", "yes")
    }
    with booted(*made.values()):
        yield made
