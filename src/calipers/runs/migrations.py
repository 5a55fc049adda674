"""Migrations: the tables of a run's file, version by version, each recorded in the file, and files of this version."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from calipers import __version__
from calipers.errors import StoreCorrupt, StoreMismatch
from calipers.runs.files import (
    application_id,
    check_application,
    check_header,
    connect,
    connect_to_read,
    translated,
)

__all__ = ["SCHEMA_VERSION", "connect_to_append", "connect_to_this_version", "migrate"]


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


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to this version, inside the caller's transaction.

    Args:
        connection: the file.
    """
    for version in range(_user_version(connection), SCHEMA_VERSION):
        for statement in _statements(_MIGRATIONS[version]):
            connection.execute(statement)
        connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", (version + 1, __version__, time.time()))
        connection.execute(f"PRAGMA user_version={version + 1}")


def connect_to_append(path: Path) -> sqlite3.Connection:
    """Connect to a file that is to be written, and bring its tables to this version.

    Args:
        path: the file of a run.

    Returns:
        The connection; what it commits survives a power cut.
    """
    with translated(path, writing=True):
        connection = connect(path, "mode=rw")
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            migrate(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
    return connection


def connect_to_this_version(path: Path) -> sqlite3.Connection:
    """Connect to a file that is only read, which stays as it is: one of an older version is copied into memory.

    Args:
        path: the file.

    Returns:
        A connection with the tables of this version.

    Raises:
        StoreCorrupt: if the file is not a run of calipers or is damaged.
        StoreMismatch: if a newer calipers wrote it.
    """
    check_header(path)
    connection = connect_to_read(path)
    try:
        with translated(path, writing=False):
            check_application(path, application_id(connection))
            version = _user_version(connection)
            if version > SCHEMA_VERSION:
                raise StoreMismatch(
                    f"{path} has tables of version {version}, this calipers {__version__} knows up to "
                    f"{SCHEMA_VERSION}: install a newer calipers"
                )
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise StoreCorrupt(f"{path} is damaged (SQLite's quick_check fails): restore a copy")
            return connection if version == SCHEMA_VERSION else _migrated_copy(connection)
    except BaseException:
        connection.close()
        raise


def _user_version(connection: sqlite3.Connection) -> int:
    # The version of the tables; 0 for a file without tables.
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrated_copy(connection: sqlite3.Connection) -> sqlite3.Connection:
    # In memory; the file is closed, and stays as it is.
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
