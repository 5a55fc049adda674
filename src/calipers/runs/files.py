"""Files of runs: made whole, told from other files, read without a trace, and their faults in calipers' words."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from calipers.errors import MissingFile, StoreCorrupt, StoreError, StoreNotWritable

__all__ = [
    "APPLICATION_ID",
    "BUSY_SECONDS",
    "Doubled",
    "application_id",
    "check_application",
    "check_header",
    "check_sqlite",
    "connect",
    "connect_to_read",
    "create",
    "translated",
]

APPLICATION_ID = 0x43414C50
"""The bytes ``CALP`` in the header of the file, by which a run is told from another program's database."""

BUSY_SECONDS = 30.0
"""How long a process waits for another that writes."""

_OLDEST_SQLITE = (3, 37, 0)
_NOT_WRITABLE = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PERM")
_DAMAGED = (
    "SQLITE_CORRUPT",
    "SQLITE_NOTADB",
    "SQLITE_FORMAT",
    "SQLITE_SCHEMA",
    "SQLITE_ERROR",
    "SQLITE_MISMATCH",
)


class Doubled(Exception):  # caught by the store, which looks closer; never shown
    """A key of the batch is in the file already."""


def check_sqlite() -> None:
    """Make sure that this Python's SQLite knows what a run needs.

    Raises:
        StoreError: if it is too old.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreError(
            f"this Python has SQLite {sqlite3.sqlite_version}, a run needs 3.37 or newer: use a newer Python"
        )


def connect(path: Path, options: str) -> sqlite3.Connection:
    """Connect to a file by its URI.

    Args:
        path: the file.
        options: the query of the URI, such as ``mode=ro``.

    Returns:
        The connection, without transactions of its own.
    """
    check_sqlite()
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?{options}", uri=True, isolation_level=None, timeout=BUSY_SECONDS
    )


def check_header(path: Path) -> None:
    """Refuse what is not a run, without touching it.

    The header is read through SQLite and not through a file of our own, since closing such a file would drop the locks
    that this process holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2).

    Args:
        path: the file.

    Raises:
        MissingFile: if it is not there.
        StoreCorrupt: if it is something else.
        StoreError: if it cannot be read.
    """
    if not path.exists():
        raise MissingFile(f"there is no run at {path}: `calipers runs` lists what is there")
    if not path.is_file() or path.stat().st_size == 0:
        what = "an empty file" if path.is_file() else "a folder"
        raise StoreCorrupt(
            f"{path} is {what}, not a run of calipers: name another file; it was left as it is"
        )
    try:
        with contextlib.closing(connect(path, "mode=ro&immutable=1")) as connection:
            found = application_id(connection)
    except sqlite3.OperationalError as problem:
        raise StoreError(f"{path} cannot be read ({problem}): look at its permissions") from None
    except sqlite3.DatabaseError as problem:
        if problem.sqlite_errorname == "SQLITE_CORRUPT" and _log_of(path).exists():
            return  # a full disk cut short the move of the log into the file: both together tell
        raise StoreCorrupt(f"{path} is not a run of calipers ({problem}): it was left as it is") from None
    check_application(path, found)


def check_application(path: Path, found: int) -> None:
    """Refuse the database of another program.

    Args:
        path: its file.
        found: the identity in its header.

    Raises:
        StoreCorrupt: if it is not that of calipers.
    """
    if found != APPLICATION_ID:
        raise StoreCorrupt(
            f"{path} is a database of another program, not a run of calipers: it was left as it is"
        )


def application_id(connection: sqlite3.Connection) -> int:
    """Read the identity in the header of a file.

    Args:
        connection: the file.

    Returns:
        The number; 0 where none was set.
    """
    return int(connection.execute("PRAGMA application_id").fetchone()[0])


def _log_of(path: Path) -> Path:
    # SQLite's write-ahead log lies beside the file itself, not beside a link to it.
    whole = path.resolve()
    return whole.with_name(whole.name + "-wal")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open for reading, so that nothing is left behind that was not there.

    Without a write-ahead log beside the file, a connection that could write removes at its end the log it had to make;
    with one, a connection that cannot write leaves it as it is. Where neither can be had (read-only media), the file is
    read as it is, together with a log that a killed run left.

    Args:
        path: the file.

    Returns:
        The connection, or one to a copy in memory.

    Raises:
        OperationalError: if SQLite refuses for a reason that ``translated`` puts into words.
    """
    log = _log_of(path)
    with translated(path, writing=False):
        for options in ("mode=ro",) if log.exists() else ("mode=rw", "mode=ro"):
            try:
                return _connect_and_look(path, options)
            except sqlite3.OperationalError as problem:
                if not problem.sqlite_errorname.startswith(_NOT_WRITABLE):
                    raise
        if not log.exists() or log.stat().st_size == 0:
            return _connect_and_look(path, "mode=ro&immutable=1")
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            shutil.copyfile(path, copy)
            shutil.copyfile(log, copy.with_name(log.name))
            memory = sqlite3.connect(":memory:", isolation_level=None)
            with contextlib.closing(connect(copy, "mode=rw")) as source:
                source.backup(memory)
            return memory


def _connect_and_look(path: Path, options: str) -> sqlite3.Connection:
    # Connect, and make sure that the tables can be read this way.
    connection = connect(path, options)
    try:
        connection.execute("PRAGMA query_only=1")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def create(path: Path, initialize: Callable[[sqlite3.Connection], None]) -> None:
    """Make a file whole under another name, then give it its own: there is never half a run at ``path``.

    Args:
        path: the file; its folder is made if it is missing.
        initialize: makes the tables.
    """
    with translated(path, writing=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
        os.close(handle)
        try:
            with contextlib.closing(connect(Path(name), "mode=rw")) as connection:
                connection.execute("PRAGMA synchronous=FULL")
                initialize(connection)
                connection.execute("PRAGMA journal_mode=WAL")
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            _give_name(Path(name), path)
            _make_durable(path.parent)
        finally:
            for leftover in (name, f"{name}-wal", f"{name}-shm", f"{name}-journal"):
                Path(leftover).unlink(missing_ok=True)


def _give_name(made: Path, path: Path) -> None:
    # Move a file to a name that nobody has taken in the meantime.
    try:
        os.link(made, path)
    except FileExistsError:
        return
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        if not path.exists():
            made.rename(path)


def _make_durable(folder: Path) -> None:
    # Write the folder's own entry to disk, where the system can (POSIX).
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def translated(path: Path, *, writing: bool) -> Iterator[None]:
    """Turn what SQLite and the file system say into the errors of calipers.

    Args:
        path: the file that is worked on.
        writing: whether it is written to.

    Yields:
        Nothing.

    Raises:
        Doubled: if a key of the batch is there already.
        StoreNotWritable: if the file cannot be written.
        StoreCorrupt: if it is damaged.
        StoreError: if anything else is wrong with it.
    """
    try:
        yield
    except sqlite3.IntegrityError as problem:
        if problem.sqlite_errorname in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
            raise Doubled from None
        raise StoreError(f"{path}: {problem}") from None
    except sqlite3.DatabaseError as problem:
        name = getattr(problem, "sqlite_errorname", "")
        if writing and name.startswith(_NOT_WRITABLE):
            reason = "the disk is full" if name == "SQLITE_FULL" else f"{problem}"
            raise StoreNotWritable(
                f"{path} cannot be written ({reason}): what it holds is kept; make room or name another file "
                "with --run, then run the same command again"
            ) from None
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreNotWritable(
                f"{path} is being written by another process for more than {BUSY_SECONDS:.0f} s: wait for it"
            ) from None
        if name.startswith(_DAMAGED):
            raise StoreCorrupt(
                f"{path} is damaged ({problem}): restore a copy; it was left as it is"
            ) from None
        raise StoreError(f"{path} cannot be used ({problem})") from None
    except OSError as problem:
        kind = StoreNotWritable if writing else StoreError
        verb = "written" if writing else "read"
        raise kind(f"{path} cannot be {verb} ({problem.strerror}): choose another place with --run") from None
