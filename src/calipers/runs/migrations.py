"""Migrations: the tables of a run's file, version by version, each recorded in the file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

from calipers import __version__

__all__ = ["SCHEMA_VERSION", "migrate", "migrated_copy", "user_version"]


def _append_only(*tables: str) -> str:
    # Nothing that was written is changed or removed.
    return "".join(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'a run is append-only: {verb} on {table} is refused'); END;"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE migrations (
        version INTEGER PRIMARY KEY, calipers TEXT NOT NULL, unix_time REAL NOT NULL
    ) STRICT;
    CREATE TABLE spec (id INTEGER PRIMARY KEY CHECK (id = 1), hash TEXT NOT NULL, body TEXT NOT NULL) STRICT;
    CREATE TABLE facts (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL,
        ordinal INTEGER NOT NULL,
        kind TEXT NOT NULL,
        input_index INTEGER NOT NULL,
        body TEXT NOT NULL,
        check_sum BLOB NOT NULL,
        UNIQUE (key, ordinal)
    ) STRICT;
    CREATE TABLE sittings (
        id INTEGER PRIMARY KEY, unix_time REAL NOT NULL, event TEXT NOT NULL, body TEXT NOT NULL
    ) STRICT;
    """
    + _append_only("spec", "facts", "records", "sittings", "migrations"),
    """
    CREATE TABLE tensors (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL,
        name TEXT NOT NULL,
        input_index INTEGER NOT NULL,
        shape TEXT NOT NULL,
        body BLOB NOT NULL,
        check_sum BLOB NOT NULL,
        UNIQUE (key, name)
    ) STRICT;
    """
    + _append_only("tensors"),
)
SCHEMA_VERSION = len(_MIGRATIONS)
"""The version of the tables; every change is one more migration, recorded in the file."""


def user_version(connection: sqlite3.Connection) -> int:
    """Read the version of the tables of a file.

    Args:
        connection: the file.

    Returns:
        The version; 0 for a file without tables.
    """
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to this version, inside the caller's transaction.

    Args:
        connection: the file.
    """
    for version in range(user_version(connection), SCHEMA_VERSION):
        for statement in _statements(_MIGRATIONS[version]):
            connection.execute(statement)
        connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", (version + 1, __version__, time.time()))
        connection.execute(f"PRAGMA user_version={version + 1}")


def migrated_copy(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Copy a file of an older version into memory and bring the copy to this one; the file stays as it is.

    Args:
        connection: the file; it is closed.

    Returns:
        The copy.
    """
    memory = sqlite3.connect(":memory:", isolation_level=None)
    connection.backup(memory)
    connection.close()
    memory.execute("BEGIN")
    migrate(memory)
    memory.execute("COMMIT")
    return memory


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                yield statement
            statement = ""
