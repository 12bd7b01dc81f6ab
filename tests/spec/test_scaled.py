"""A file with other numbers of replicas than it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.effects.statedir import Files, StateDir
from supervisor.errors import FileError

TEXT = """\
name: lab
models:
  - {name: qwen, model: some/model, engine: mocker, replicas: 2}
  - {name: big, model: other/model, engine: mocker, replicas: 2}
"""
FILES = Files(TEXT, Path("deployment.yaml"))


def names(files: Files) -> list[str]:
    return [name for name in files.plan().wanted if name.startswith(("qwen", "big", "frontend"))]


def scaled(**replicas: int) -> Files:
    return Files(TEXT, Path("deployment.yaml"), scaled=replicas)


def test_others_than_it_says_and_only_of_those_named() -> None:
    assert names(FILES) == ["frontend-0", "qwen-0", "qwen-1", "big-0", "big-1"]
    assert names(scaled(qwen=1)) == ["frontend-0", "qwen-0", "big-0", "big-1"]
    assert names(scaled(big=0, frontend=2)) == ["frontend-0", "frontend-1", "qwen-0", "qwen-1"]
    assert names(scaled(gone=7)) == names(FILES)


def test_who_is_there_does_not_change_by_it() -> None:
    before, after = FILES.plan().wanted, scaled(qwen=5).plan().wanted
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("replicas", [{"qwen": 10_001}, {"frontend": 0}])
def test_a_number_that_does_not_fit_is_refused_like_one_of_the_file(replicas: dict[str, int]) -> None:
    with pytest.raises(FileError, match="replicas"):
        scaled(**replicas).plan()


def test_they_are_kept_until_the_file_changes(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "lab")
    assert state.scaled(FILES) == FILES
    state.save_seats({})  # something is kept, but nothing was started
    assert state.scaled(FILES) == FILES
    state.save(scaled(qwen=3))
    assert state.load() == state.scaled(FILES) == scaled(qwen=3)
    other = Files(TEXT + "# edited", Path("deployment.yaml"))
    assert state.scaled(other) == other
