"""What a controller must not forget, in one SQLite database beside its socket: <state>/noray.db.

    intents    documents: what was started, what is stopped by hand, who was placed where, the last epoch
    processes  of each process its newest run and what became of it, as far as the next controller must know
    events     what happened, told by hosts (numbered there) and by controllers, oldest first

WAL: a reader never blocks the controller, nor it a reader. Intents are on the disk when a call returns; the rest is written in
batches from beside the loop, survives the controller, and may lose its last moment in a power cut: hosts tell it again.
A schema is a list of migrations, each one transaction, their count in `user_version`. Who only reads changes nothing: of a
database of an older noray, or of the files that came before there was one, it reads a migrated copy in memory.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.errors import NorayError

NAME = "noray.db"
FILES = {"deployment": "deployment.json", "held": "held.json", "seats": "seats.json"}  # what it took over
BUSY_S = 5.0  # for another writer's transaction, which takes milliseconds
EVENTS_KEPT, EVENTS_KEPT_MS = 10_000, 14 * 24 * 3600 * 1000
LOST = "move it away: what runs is found where it runs; what was stopped by hand starts again, unknown seats are chosen anew"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One event. `n`: its number in its run, given by the host; None for what a controller says. `id`: its place here."""

    at_ms: int
    what: str
    text: str = ""
    host: str = ""
    process: str = ""
    run: str = ""
    n: int | None = None
    id: int = 0


# --- the schema ---------------------------------------------------------------------------------------------------------------


def _first(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE intents (name TEXT PRIMARY KEY, body TEXT NOT NULL)")
    db.execute(
        "CREATE TABLE processes (process TEXT PRIMARY KEY, run TEXT NOT NULL, host TEXT NOT NULL, at_ms INTEGER NOT NULL,"
        " launch_hash TEXT NOT NULL, was_ready INTEGER NOT NULL, restarts_ms TEXT NOT NULL, body TEXT NOT NULL)"
    )
    db.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, what TEXT NOT NULL,"
        " text TEXT NOT NULL, host TEXT NOT NULL, process TEXT NOT NULL, run TEXT NOT NULL, n INTEGER, UNIQUE (run, n))"
    )


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first,)


# --- opening ------------------------------------------------------------------------------------------------------------------


class Store:
    """An open database. Every method raises NorayError with the path; then nothing was changed."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self._db = path, db

    @staticmethod
    def reading(folder: Path) -> Store:
        """As it is now; there may be none."""
        path = folder / NAME
        with _told(path):
            db = _memory()
            if path.exists():
                file = _connect(path, "ro")
                if _version(path, file) == len(MIGRATIONS) and not _before(folder):
                    return Store(path, file)
                with closing(file):
                    file.backup(db)
        _migrate(path, db, folder)
        return Store(path, db)

    @staticmethod
    def writing(folder: Path, *, durable: bool = True) -> Store:
        """Made, migrated, and the files before it taken over, if need be. `durable`: on the disk when a call returns."""
        path = folder / NAME
        with _told(path):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            db = _connect(path, "rw")
            try:
                _version(path, db)
                if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                    raise NorayError(f"{path}: this file system has no shared memory", "set NORAY_STATE to a local disk")
                db.execute("PRAGMA synchronous = FULL")
                _migrate(path, db, folder)
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            except BaseException:
                db.close()
                raise
        return Store(path, db)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- intents ----------------------------------------------------------------------------------------------------------

    def intent(self, name: str) -> Document | None:
        with _told(self.path):
            found = self._db.execute("SELECT body FROM intents WHERE name = ?", (name,)).fetchone()
            return None if found is None else _document(f"{self.path}: {name}", found[0])

    def intend(self, name: str, body: Mapping[str, object]) -> None:
        with _told(self.path), self._transaction():
            self._db.execute("INSERT OR REPLACE INTO intents VALUES (?, ?)", (name, json.dumps(body)))

    def next_epoch(self, now_ms: int) -> int:
        """Higher than any before, whatever the clock says."""
        with _told(self.path), self._transaction():
            found = self._db.execute("SELECT body FROM intents WHERE name = 'epoch'").fetchone()
            last = int(_document(f"{self.path}: epoch", found[0])["epoch"]) if found else 0
            epoch = max(now_ms, last + 1)
            self._db.execute("INSERT OR REPLACE INTO intents VALUES ('epoch', ?)", (json.dumps({"epoch": epoch}),))
        return epoch

    # --- processes and events -----------------------------------------------------------------------------------------------

    def processes(self) -> list[Document]:
        """Of each process what `write` was last given."""
        with _told(self.path):
            rows = self._db.execute("SELECT * FROM processes").fetchall()
        return [
            {"process": process, "run": run, "host": host, "at_ms": at_ms, "launch_hash": launch_hash,
             "was_ready": bool(was_ready), "restarts_ms": json.loads(restarts_ms), **json.loads(body)}
            for process, run, host, at_ms, launch_hash, was_ready, restarts_ms, body in rows
        ]  # fmt: skip

    def write(self, processes: Mapping[str, Document | None], events: Iterable[Row]) -> None:
        """All of it or nothing. A process that is None is forgotten; an event that is there already stays as it is."""
        with _told(self.path), self._transaction():
            for process, row in processes.items():
                if row is None:
                    self._db.execute("DELETE FROM processes WHERE process = ?", (process,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _columns(process, row))
            self._db.executemany(
                "INSERT INTO events (at_ms, what, text, host, process, run, n) VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                [(e.at_ms, e.what, e.text, e.host, e.process, e.run, e.n) for e in events],
            )

    def prune(self, now_ms: int, kept: int = EVENTS_KEPT) -> None:
        """Forget what is old or too much; not of the newest runs, which their hosts may tell again."""
        with _told(self.path), self._transaction():
            self._db.execute(
                "DELETE FROM events WHERE (at_ms < ? OR id <= (SELECT max(id) FROM events) - ?)"
                " AND (n IS NULL OR run NOT IN (SELECT run FROM processes))",
                (now_ms - EVENTS_KEPT_MS, kept),
            )

    def events(self, since: int = 0) -> list[Row]:
        """Those with a higher `id`, in the order in which they were heard."""
        with _told(self.path):
            rows = self._db.execute(
                "SELECT at_ms, what, text, host, process, run, n, id FROM events WHERE id > ? ORDER BY id", (since,)
            )
            return [Row(*row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _columns(process: str, row: Document) -> tuple[object, ...]:
    columns = ("run", "host", "at_ms", "launch_hash", "was_ready", "restarts_ms")
    body = {key: value for key, value in row.items() if key not in columns}
    *plain, restarts_ms = (row[key] for key in columns)
    return (process, *plain, json.dumps(restarts_ms), json.dumps(body))


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # By hand (`isolation_level`): the module would begin transactions where it sees fit, and not around CREATE TABLE.
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


def _version(path: Path, db: sqlite3.Connection) -> int:
    """Of its schema. Raises NorayError for one that we do not know."""
    found = int(db.execute("PRAGMA user_version").fetchone()[0])
    if found > len(MIGRATIONS):
        db.close()
        knows = f"its schema is {found}, this noray knows {len(MIGRATIONS)}"
        raise NorayError(f"{path} was written by a newer noray: {knows}", "run the newer noray; nothing was changed")
    return found


def _migrate(path: Path, db: sqlite3.Connection, folder: Path) -> None:
    """To the schema of today, with what stands in the files of a time before there was a database. Where that is the file
    itself they are removed then; should one be there later, an older noray has run since, and its word is the newer one.
    """
    before = _before(folder)
    for version in range(_version(path, db), len(MIGRATIONS)):
        with _told(path), Store(path, db)._transaction():
            if _version(path, db) == version:  # nobody was quicker
                MIGRATIONS[version](db)
                db.execute(f"PRAGMA user_version = {version + 1}")
    if not before:
        return
    with _told(path), Store(path, db)._transaction():
        for name, file in FILES.items():
            text = _text(folder / file)
            if text is not None:
                body = _document(f"{folder / file}", text)
                db.execute("INSERT OR REPLACE INTO intents VALUES (?, ?)", (name, json.dumps(body)))
    if db.execute("PRAGMA database_list").fetchone()[2]:  # a file, not memory
        for old in before:
            old.unlink(missing_ok=True)


def _before(folder: Path) -> list[Path]:
    return [folder / name for name in FILES.values() if (folder / name).exists()]


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise NorayError(f"{path}: cannot be read: {error}") from None


def _document(where: str, text: str) -> Document:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise NorayError(f"{where}: cannot be read: {error}", LOST) from None
    if not isinstance(found, dict):
        raise NorayError(f"{where}: cannot be read: not what we write", LOST)
    return found


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite says, as an operator can act on it."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, full, no permission: nothing is wrong with what stands there
        raise NorayError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise NorayError(f"{path}: cannot be read: {error}", LOST) from error
    except OSError as error:
        raise NorayError(f"{path}: {error.strerror or error}") from error
