"""What was stopped by hand, on disk: whole or not at all, and never guessed at."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.core.hand import Held
from supervisor.effects.statedir import StateDir
from supervisor.errors import NorayError


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "lab")


def test_nothing_is_held_where_nobody_ever_stopped_anything(state: StateDir) -> None:
    assert state.load_held() == {}


def test_what_is_written_is_read(state: StateDir) -> None:
    held = {"qwen": Held("ann", 1_700_000_000_123), "etcd-0": Held("", 0)}
    state.save_held(held)
    assert state.load_held() == held
    assert [file.name for file in state.path.iterdir()] == ["held.json"]


def test_a_stop_without_a_controller_adds_to_it_and_keeps_who_was_first(state: StateDir) -> None:
    state.save_held({"qwen": Held("ann", 1)})
    state.hold(["qwen", "etcd-0"], "ben")
    held = state.load_held()
    assert held["qwen"] == Held("ann", 1)
    assert held["etcd-0"].by == "ben"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"held": []}', '{"held": {"qwen": "ann"}}', '{"held": {"qwen": {"by": "ann"}}}', "\0"]
)
def test_a_file_that_nobody_of_us_wrote_is_named_and_not_guessed_at(state: StateDir, text: str) -> None:
    state.create()
    (state.path / "held.json").write_text(text)
    with pytest.raises(NorayError, match=r"held\.json: cannot be read"):
        state.load_held()


def test_where_it_cannot_be_written_the_old_word_stands(state: StateDir) -> None:
    state.save_held({"qwen": Held("ann", 1)})
    (state.path / "held.json.new").mkdir()
    with pytest.raises(NorayError, match="cannot write down"):
        state.save_held({})
    assert state.load_held() == {"qwen": Held("ann", 1)}
