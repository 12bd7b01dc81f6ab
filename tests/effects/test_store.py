"""What a controller must not forget: taken over, migrated, refused by name, and never in anybody's way."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from supervisor.core.hand import Held
from supervisor.effects import statedir
from supervisor.effects.statedir import Files, StateDir, file_system
from supervisor.effects.store import EVENTS_KEPT_MS, MIGRATIONS, Row, Store
from supervisor.errors import NorayError
from supervisor.plan.place import Seat

FILES = Files("name: lab\n", Path("/etc/lab/deployment.yaml"), "hosts: {}\n", Path("/etc/lab/hosts.yaml"))
HELD = {"qwen": Held("ann", 1_700_000_000_123)}
SEATS = {"qwen-0": Seat("gpu01", (0, 1), "NVLink neighbours")}
OLD = {
    "deployment.json": {"v": 1, **FILES.args()},
    "held.json": {"v": 1, "held": {"qwen": {"by": "ann", "at_ms": 1_700_000_000_123}}},
    "seats.json": {"v": 1, "seats": {"qwen-0": {"host": "gpu01", "gpus": [0, 1], "why": "NVLink neighbours"}}},
}
PROCESS = {"run": "r1", "host": "gpu01", "at_ms": 1, "launch_hash": "h", "was_ready": True, "restarts_ms": [1, 2], "rest": ""}
WRITER = """
import sys
from pathlib import Path
from supervisor.effects.store import Row, Store
with Store.writing(Path(sys.argv[1]), durable=False) as store:
    for n in range(200):
        store.write({}, [Row(n, "note", run=sys.argv[2], n=n)])
"""


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "lab")


@pytest.fixture
def old(state: StateDir) -> StateDir:
    """As the noray before there was a database left it."""
    state.create()
    for name, body in OLD.items():
        (state.path / name).write_text(json.dumps(body))
    return state


def intents(state: StateDir) -> tuple[object, ...]:
    return state.load(), state.load_held(), state.load_seats()


def test_the_files_before_it_are_taken_over_once_and_removed(old: StateDir) -> None:
    old.writing().close()
    assert sorted(path.name for path in old.path.iterdir()) == ["noray.db"]
    assert intents(old) == (FILES, HELD, SEATS)
    old.save_held({})
    assert intents(old) == (FILES, {}, SEATS)


def test_who_only_reads_takes_nothing_over(old: StateDir) -> None:
    """A controller of the noray before may be alive, and may still write there."""
    assert intents(old) == (FILES, HELD, SEATS)
    assert sorted(path.name for path in old.path.iterdir()) == sorted(OLD)
    assert old.exists


def test_an_older_noray_that_ran_since_has_the_last_word(old: StateDir) -> None:
    old.writing().close()
    (old.path / "held.json").write_text(json.dumps({"v": 1, "held": {"etcd": {"by": "ben", "at_ms": 2}}}))
    assert old.load_held() == {"etcd": Held("ben", 2)}
    old.writing().close()
    assert intents(old) == (FILES, {"etcd": Held("ben", 2)}, SEATS)
    assert not (old.path / "held.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", "\0"])
def test_a_file_before_it_that_cannot_be_read_is_named_and_nothing_is_lost(old: StateDir, text: str) -> None:
    (old.path / "held.json").write_text(text)
    for ask in (old.load_held, old.writing, old.next_epoch):
        with pytest.raises(NorayError, match=r"held\.json: cannot be read"):
            ask()
    assert sorted(path.name for path in old.path.iterdir() if path.suffix == ".json") == sorted(OLD)


def test_a_newer_database_is_refused_by_name_and_left_as_it_is(state: StateDir) -> None:
    state.save_held(HELD)
    with closing(sqlite3.connect(state.path / "noray.db")) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = (state.path / "noray.db").read_bytes()
    for ask in (state.load_held, state.writing, state.load):
        with pytest.raises(NorayError, match=r"noray\.db was written by a newer noray: its schema is \d+") as refused:
            ask()
        assert refused.value.hint
    assert (state.path / "noray.db").read_bytes() == before


@pytest.mark.parametrize("damage", [b"not a database, but as long as one " * 100, b""])
def test_a_database_that_is_none_is_named_with_what_to_do(state: StateDir, damage: bytes) -> None:
    state.save_held(HELD)
    if not damage:  # the header is fine, what is behind it is not
        whole = (state.path / "noray.db").read_bytes()
        damage = whole[:100] + b"\xa5" * (len(whole) - 100)
    (state.path / "noray.db").write_bytes(damage)
    for ask in (state.load_held, state.next_epoch):
        with pytest.raises(NorayError, match=r"noray\.db: cannot be read") as refused:
            ask()
        assert "move it away" in refused.value.hint
    assert (state.path / "noray.db").read_bytes() == damage


def test_what_other_machines_may_write_is_refused(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.save_held(HELD)
    monkeypatch.setattr(statedir, "REMOTE", re.compile(re.escape(file_system(state.path))))
    for ask in (state.load_held, state.next_epoch):
        with pytest.raises(NorayError, match="other machines may write"):
            ask()


def test_a_database_that_is_a_link_is_judged_by_where_it_leads(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    state.create()
    there = state.path.parent / "mounted"
    there.mkdir()
    (state.path / "noray.db").symlink_to(there / "noray.db")
    monkeypatch.setattr(statedir, "file_system", lambda path: "nfs4" if path == there else "ext4")
    with pytest.raises(NorayError, match="mounted is on nfs4"):
        state.next_epoch()


def test_a_reader_waits_for_nobody_and_holds_nobody_up(state: StateDir) -> None:
    state.save_held(HELD)
    with state.reading() as reader, state.writing() as writer:
        assert len(reader.events()) == 0
        writer._db.execute("BEGIN IMMEDIATE")  # a controller in the middle of a write
        assert state.load_held() == HELD
        writer._db.execute("COMMIT")
        reader._db.execute("BEGIN")
        assert reader.events() == []
        writer.write({"qwen-0": PROCESS}, [Row(1, "note")])  # while somebody reads
        assert reader.events() == [], "he sees what was there when he began"
        reader._db.execute("COMMIT")
        assert len(reader.events()) == 1


def test_who_reads_cannot_write(state: StateDir) -> None:
    state.save_held(HELD)
    with state.reading() as reader, pytest.raises(NorayError, match="readonly"):
        reader.intend("held", {})


def test_two_processes_never_spoil_it(state: StateDir) -> None:
    state.save_held(HELD)
    argv = [sys.executable, "-c", WRITER, str(state.path)]
    writers = [subprocess.Popen([*argv, run]) for run in ("r1", "r2")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with state.reading() as store:
        numbers = {run: [e.n for e in store.events() if e.run == run] for run in ("r1", "r2")}
        assert store._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert numbers == {"r1": list(range(200)), "r2": list(range(200))}


def test_each_controller_has_a_higher_epoch_whatever_the_clock_says(state: StateDir) -> None:
    with state.writing() as store:
        epochs = [store.next_epoch(now_ms) for now_ms in (1000, 2000, 500, 500)]
    assert epochs == [1000, 2000, 2001, 2002]


def test_an_event_told_twice_is_one(state: StateDir) -> None:
    told = [Row(n, "note", f"number {n}", "gpu01", "qwen-0", "r1", n) for n in (1, 2, 3)]
    with state.writing() as store:
        store.write({}, told[:2])
        store.write({}, told)
        store.write({}, [Row(9, "host", "a controller's own have no number"), Row(9, "host")])
    with state.reading() as store:
        assert [(e.n, e.text) for e in store.events() if e.run] == [(n, f"number {n}") for n in (1, 2, 3)]
        first, second, *rest = store.events()
        assert store.events(since=second.id) == rest
        assert first.id < second.id


def test_old_events_go_but_not_those_that_hosts_may_tell_again(state: StateDir) -> None:
    now_ms = 10**12
    with state.writing() as store:
        store.write({"qwen-0": PROCESS}, [Row(1, "born", run="r1", n=1), Row(1, "born", run="r0", n=1), Row(1, "host")])
        store.write({}, [Row(now_ms, "host", str(n)) for n in range(20)])
        store.prune(now_ms, kept=10)
        assert [e.run for e in store.events()[:1]] == ["r1"]
        assert [e.text for e in store.events()[1:]] == [str(n) for n in range(10, 20)]
        store.prune(now_ms + EVENTS_KEPT_MS + 1)
        assert [e.run for e in store.events()] == ["r1"]


def test_what_is_kept_of_a_process_comes_back_whole(state: StateDir) -> None:
    with state.writing(durable=False) as store:
        store.write({"qwen-0": PROCESS, "qwen-1": PROCESS}, ())
        store.write({"qwen-1": None}, ())
    with state.reading() as store:
        assert store.processes() == [{"process": "qwen-0", **PROCESS}]


def test_a_batch_is_whole_or_not_at_all(state: StateDir) -> None:
    with state.writing() as store:
        with pytest.raises(NorayError):
            store.write({"qwen-0": PROCESS}, [Row(1, "note"), Row(1, None)])  # type: ignore[arg-type]
        assert (store.processes(), store.events()) == ([], [])


def test_nothing_is_there_where_nothing_was_started(state: StateDir) -> None:
    with pytest.raises(NorayError, match="nothing was started"):
        state.load()
    assert not state.path.exists()
    assert not state.forget_failures()
    assert not state.exists, "an `up` that came to nothing is no deployment"


def test_purge_removes_all_of_it(state: StateDir) -> None:
    state.save(FILES)
    with Store.writing(state.path):
        assert len(list(state.path.iterdir())) > 1
        state.remove()
    state.touch()  # the last beat of a controller that purged
    assert not state.exists
    assert not state.path.exists()
