"""What was stopped by hand, on disk: whole or not at all, and never guessed at."""

from __future__ import annotations

import sqlite3
from contextlib import closing
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
    assert StateDir(state.path).load_held() == held


def test_a_stop_without_a_controller_adds_to_it_and_keeps_who_was_first(state: StateDir) -> None:
    state.save_held({"qwen": Held("ann", 1)})
    state.hold(["qwen", "etcd-0"], "ben")
    held = state.load_held()
    assert held["qwen"] == Held("ann", 1)
    assert held["etcd-0"].by == "ben"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"held": []}', '{"held": {"qwen": "ann"}}', '{"held": {"qwen": {"by": "ann"}}}', "\0"]
)
def test_what_nobody_of_us_wrote_is_named_and_not_guessed_at(state: StateDir, text: str) -> None:
    state.save_held({})
    with closing(sqlite3.connect(state.path / "noray.db")) as db, db:
        db.execute("UPDATE intents SET body = ? WHERE name = 'held'", (text,))
    with pytest.raises(NorayError, match=r"noray\.db: held: cannot be read"):
        state.load_held()


def test_where_it_cannot_be_written_the_old_word_stands(state: StateDir) -> None:
    state.save_held({"qwen": Held("ann", 1)})
    with closing(sqlite3.connect(state.path / "noray.db")) as db, db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON intents BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    with pytest.raises(NorayError, match="cannot write down"):
        state.save_held({})
    assert state.load_held() == {"qwen": Held("ann", 1)}
