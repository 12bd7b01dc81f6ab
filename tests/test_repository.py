"""What stands in the repository beside the code: locks that fit pyproject.toml, and no address of a package source."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = {"requirements.lock": ("dynamo",), "requirements-test.lock": ("dynamo", "test")}


def pins(lock: str) -> dict[str, str]:
    """name -> version, for those that have a hash; a name may be pinned twice for two Python versions."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    found = re.findall(r"^([a-z0-9.-]+)==(\S+).*--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^[a-z0-9]", text, re.MULTILINE)), "a line without version or hash"
    return dict(found)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_all_that_the_project_asks_for(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in LOCKS[lock]:
        wanted += project["optional-dependencies"][extra]
    names = {_name(requirement) for requirement in wanted}
    pinned = pins(lock)
    assert names - pinned.keys() == set(), "run: make lock"
    exact = {_name(requirement): requirement.partition("==")[2] for requirement in wanted if "==" in requirement}
    assert {name: pinned[name] for name in exact} == exact, "run: make lock"


def _name(requirement: str) -> str:
    return re.sub(r"[._-]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def test_both_locks_agree() -> None:
    small, large = (pins(lock) for lock in LOCKS)
    assert {name: large.get(name) for name in small} == small


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place_to_fetch_from(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE), "an option of pip or uv"
