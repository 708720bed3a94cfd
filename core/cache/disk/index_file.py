"""The index as a file: its tables, how it is opened, and what to make of one that is broken."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_BUSY_TIMEOUT_S = 5.0
# Small, because the log counts against the cap like everything else in the folder.
_CHECKPOINT_PAGES = 128
_DAMAGES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)

_SCHEMA = """
CREATE TABLE state (num_bytes INTEGER NOT NULL, clock INTEGER NOT NULL);
INSERT INTO state VALUES (0, 0);
CREATE TABLE namespace (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, description TEXT NOT NULL
);
CREATE TABLE record (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace INTEGER NOT NULL, kind TEXT NOT NULL, block_hash BLOB NOT NULL, parent BLOB,
    num_tokens INTEGER NOT NULL, num_bytes INTEGER NOT NULL,
    created_unix REAL NOT NULL, used_unix REAL NOT NULL,
    used INTEGER NOT NULL, hits INTEGER NOT NULL DEFAULT 0,
    num_children INTEGER NOT NULL DEFAULT 0,
    UNIQUE (namespace, kind, block_hash)
);
CREATE INDEX record_parent ON record (namespace, kind, parent);
CREATE INDEX record_leaf ON record (used) WHERE num_children = 0;
CREATE TABLE reservation (
    owner TEXT PRIMARY KEY,
    namespace INTEGER NOT NULL, kind TEXT NOT NULL, block_hash BLOB NOT NULL,
    num_bytes INTEGER NOT NULL
);
CREATE TRIGGER record_added AFTER INSERT ON record BEGIN
    UPDATE state SET num_bytes = num_bytes + NEW.num_bytes;
    UPDATE record SET num_children = num_children + 1
        WHERE namespace = NEW.namespace AND kind = NEW.kind AND block_hash = NEW.parent
        AND id <> NEW.id;
    UPDATE record SET num_children = (
        SELECT count(*) FROM record AS child WHERE child.namespace = NEW.namespace
        AND child.kind = NEW.kind AND child.parent = NEW.block_hash AND child.id <> NEW.id
    ) WHERE id = NEW.id;
END;
CREATE TRIGGER record_removed AFTER DELETE ON record BEGIN
    UPDATE state SET num_bytes = num_bytes - OLD.num_bytes;
    UPDATE record SET num_children = num_children - 1
        WHERE namespace = OLD.namespace AND kind = OLD.kind AND block_hash = OLD.parent;
END;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open an index, made if missing. Needs the folder's lock.

    Raises:
        sqlite3.Error: It cannot be opened; see `is_damage`.
    """
    if not path.exists():
        # The log of an index that somebody deleted would be played into the new one.
        delete_index(path)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    connection.text_factory = _decode
    try:
        _set_up(connection)
    except UnicodeDecodeError as error:
        connection.close()
        raise IndexDamagedError("the index is damaged") from error  # so much that no error fits
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_CHECKPOINT_PAGES * 4096}")
    if not _schema(connection):
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
    with closing(sqlite3.connect(":memory:")) as expected:
        expected.executescript(_SCHEMA)
        is_ours = _schema(connection) == _schema(expected)
    if not is_ours or connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
        raise IndexDamagedError("the index is damaged or of another version")


def _decode(text: bytes) -> str:
    return text.decode(errors="replace")  # a damaged text must not look like a bug of ours


def _schema(connection: sqlite3.Connection) -> list[tuple[str]]:
    return connection.execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall()


class IndexDamagedError(sqlite3.DatabaseError):
    """The index can be opened, but must not be trusted."""


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the index is broken, and not that it cannot be used now."""
    if isinstance(error, IndexDamagedError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    # The low byte is the kind of error. No row of ours breaks a constraint unless others are wrong.
    return code is not None and code & 0xFF in _DAMAGES


def delete_index(path: Path) -> None:
    """Delete an index with its log. Needs the folder's lock."""
    for file in (path, *side_files(path)):
        file.unlink(missing_ok=True)


def side_files(path: Path) -> list[Path]:
    """What SQLite keeps beside an index."""
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open an index to look at it, even where nothing can be written."""
    # Where the folder cannot be written, SQLite opens the file only if nobody could change it.
    for how in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{how}", uri=True, timeout=_BUSY_TIMEOUT_S
        )
        connection.text_factory = _decode
        try:
            connection.execute("SELECT 1 FROM state")
        except sqlite3.OperationalError:
            connection.close()
        else:
            return connection
    raise sqlite3.OperationalError(f"{path} cannot be read")
