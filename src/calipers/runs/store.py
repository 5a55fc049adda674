"""RunStore: one SQLite file a run, append-only, durable, and readable while it is written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, final

import numpy as np
from numpy.typing import NDArray

from calipers.errors import StoreCorrupt, StoreMismatch, UsageError
from calipers.evidence.records import AnyRecord, Attempt, Certificate, Prediction, Record
from calipers.runs.files import APPLICATION_ID, Doubled, check_sqlite, create, translated
from calipers.runs.migrations import connect_to_append, connect_to_this_version, migrate
from calipers.runs.rows import (
    INSERT_ARRAY,
    INSERT_RECORD,
    ArrayRow,
    RecordRow,
    array_of,
    array_rows,
    record_of,
    record_rows,
    say_the_same,
)
from calipers.runs.spec import RunSpec, difference

__all__ = ["Measured", "RunStore", "Sitting"]


class Measured(NamedTuple):
    """What one finished task gave.

    Args:
        key: the key of the task.
        records: its records, at least one.
        tensors: arrays that belong to it, float32, by name: the adversarial input of an attack.
    """

    key: str
    records: Sequence[Record]
    tensors: Mapping[str, NDArray[np.float32]] = {}


class Sitting(NamedTuple):
    """One event in the life of a run: it started, went on, or stopped.

    Args:
        unix_time: when, in seconds since 1970.
        event: what happened.
        body: what is worth knowing about it, as plain values.
    """

    unix_time: float
    event: str
    body: dict[str, Any]


@final
class RunStore:
    """The records of one run, with its specification, in one SQLite file.

    What it promises: a transaction that returned survives a crash and a power cut (WAL,
    ``synchronous=FULL``); the records of a task are stored together or not at all; nothing is ever changed or
    removed (triggers refuse it); a file that is not a run of this specification is left as it is; readers may
    read while one process writes, and leave nothing behind. Times aside, what a store says does not depend on
    the order of appending.

    Make one with :meth:`open` (write), :meth:`read` (read only) or :meth:`in_memory`.
    """

    def __init__(self, path: Path | None, connection: sqlite3.Connection, *, writable: bool) -> None:
        self.path = path
        self._connection = connection
        self._writable = writable
        self._spec: RunSpec | None = None

    @classmethod
    def open(cls, path: str | Path, spec: RunSpec) -> Self:
        """Make the file of a run, or go on with the one that is there.

        Args:
            path: the file; its folder is made if it is missing.
            spec: the specification.

        Returns:
            The store, open for appending.

        Raises:
            StoreMismatch: if the file holds another specification; nothing was written.
        """
        path = Path(path)
        if not path.exists():
            create(path, partial(_initialize, spec=spec))
        with cls.read(path) as stored:
            lines = stored.spec.difference(spec)
        if lines:
            raise StoreMismatch(
                f"{path} holds another run ({'; '.join(lines)}): name another file with --run, "
                "or ask for what is there"
            )
        return cls(path, connect_to_append(path), writable=True)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Open the file of a run for reading, also while a run writes it and on read-only media.

        Args:
            path: the file.

        Returns:
            The store, which refuses to append.

        Raises:
            StoreCorrupt: if the file is not a run of calipers or is damaged.
            StoreMismatch: if a newer calipers wrote it.
        """
        path = Path(path)
        connection = connect_to_this_version(path)
        try:
            store = cls(path, connection, writable=False)
            assert store.spec is not None
        except BaseException:
            connection.close()
            raise
        return store

    @classmethod
    def in_memory(cls, spec: RunSpec) -> Self:
        """Make a store that is gone when it is closed.

        Args:
            spec: the specification.

        Returns:
            The store, open for appending.
        """
        check_sqlite()
        connection = sqlite3.connect(":memory:", isolation_level=None)
        _initialize(connection, spec)
        return cls(None, connection, writable=True)

    @property
    def spec(self) -> RunSpec:
        """The specification that the file holds.

        Raises:
            StoreCorrupt: if the specification is missing, damaged, or does not match its hash.
        """
        if self._spec is None:
            with self._errors(writing=False):
                row = self._connection.execute("SELECT hash, body FROM spec").fetchone()
            if row is None or hashlib.sha256(row[1].encode()).hexdigest() != row[0]:
                raise StoreCorrupt(f"{self._name} has no specification that matches its hash: restore a copy")
            self._spec = RunSpec.from_json(row[1])
        return self._spec

    def facts(self) -> dict[str, str]:
        """Read what was settled when the run first started, such as fingerprints and the execution plan.

        Returns:
            Names and values.
        """
        with self._errors(writing=False):
            return dict(self._connection.execute("SELECT name, body FROM facts ORDER BY name"))

    def settle(self, facts: Mapping[str, str]) -> None:
        """Store what the references turned out to be, or check it against what was stored at the first run.

        Args:
            facts: names and values; those that the file does not have yet are added.

        Raises:
            StoreMismatch: if a value differs from the stored one; nothing was written.
        """
        stored = self.facts()
        lines = difference(
            {name: stored[name] for name in facts if name in stored},
            {name: value for name, value in facts.items() if name in stored},
        )
        if lines:
            raise StoreMismatch(
                f"{self._name} was begun with something else under the same names ({'; '.join(lines)}): "
                "put back what was there, or name another file with --run (of a case study another --folder)"
            )
        fresh = [(name, value) for name, value in facts.items() if name not in stored]
        if fresh:
            with self._transaction() as connection:
                connection.executemany("INSERT INTO facts (name, body) VALUES (?, ?)", fresh)

    def append(self, measured: Iterable[Measured]) -> int:
        """Store the records of finished tasks in one transaction.

        A task that is already there is left alone if its records say the same, the time they took aside; with
        other records it raises StoreMismatch, and nothing of the batch is written.

        Args:
            measured: finished tasks.

        Returns:
            The number of records added.
        """
        tasks = list(measured)
        rows = [row for task in tasks for row in record_rows(task.key, task.records)]
        tensors = [row for task in tasks for row in array_rows(task.key, task.records[0].index, task.tensors)]
        if not rows:
            return 0
        try:
            with self._transaction() as connection:
                connection.executemany(INSERT_RECORD, rows)
                connection.executemany(INSERT_ARRAY, tensors)
            return len(rows)
        except Doubled:
            return self._append_new(rows, tensors)

    def _append_new(self, rows: list[RecordRow], tensors: list[ArrayRow]) -> int:
        added = 0
        with self._transaction() as connection:
            for tensor in tensors:
                connection.execute(INSERT_ARRAY.replace("INSERT", "INSERT OR IGNORE"), tensor)
            for row in rows:
                there = connection.execute(
                    "SELECT kind, body FROM records WHERE key = ? AND ordinal = ?", (row.key, row.ordinal)
                ).fetchone()
                if there is None:
                    connection.execute(INSERT_RECORD, row)
                    added += 1
                elif not say_the_same(there, row):
                    raise StoreMismatch(
                        f"{self._name} has another result for input {row.input_index} under the same key "
                        f"{row.key.hex()}: the measurement is not reproducible here, nothing was written"
                    )
        return added

    def done(self) -> set[str]:
        """Read the keys of the tasks that are stored.

        Returns:
            The keys.
        """
        with self._errors(writing=False):
            rows = self._connection.execute("SELECT key FROM records WHERE ordinal = 0")
            return {key.hex() for (key,) in rows}

    def progress(self) -> tuple[int, int | None]:
        """Say how far the run is.

        Returns:
            The inputs that are done, and how many there will be; None where that is not known.
        """
        totals = [sitting.body["total"] for sitting in self.sittings() if "total" in sitting.body]
        return len(self.done()), totals[-1] if totals else None

    def records(self, kind: str | None = None) -> Iterator[AnyRecord]:
        """Read the records, ordered by input, whatever the order in which they were stored.

        Args:
            kind: read only this kind of record.

        Yields:
            The records.

        Raises:
            StoreCorrupt: if a record does not match its check sum.
        """
        with self._errors(writing=False):
            rows = self._connection.execute(
                "SELECT key, ordinal, kind, input_index, body, check_sum FROM records "
                "WHERE ?1 IS NULL OR kind = ?1 ORDER BY input_index, key, ordinal",
                (kind,),
            )
            for row in rows:
                yield record_of(RecordRow(*row), self._name)

    def tensors(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Read the arrays of one name, ordered by input.

        Args:
            name: such as ``adversarial``.

        Yields:
            The index of the input, and the array.

        Raises:
            StoreCorrupt: if an array does not match its check sum.
        """
        with self._errors(writing=False):
            rows = self._connection.execute(
                "SELECT key, name, input_index, shape, body, check_sum FROM tensors WHERE name = ? "
                "ORDER BY input_index, key",
                (name,),
            )
            for row in map(ArrayRow._make, rows):
                yield row.input_index, array_of(row, self._name)

    def attempts(self) -> list[Attempt]:
        """Read the attempts of attacks, ordered by input.

        Returns:
            The attempts; other kinds of record are left out.
        """
        return [record for record in self.records(Attempt.kind) if isinstance(record, Attempt)]

    def certificates(self) -> list[Certificate]:
        """Read the certificates, ordered by input.

        Returns:
            The certificates; other kinds of record are left out.
        """
        found = self.records(Certificate.kind)
        return [record for record in found if isinstance(record, Certificate)]

    def predictions(self) -> list[Prediction]:
        """Read the predictions, ordered by input.

        Returns:
            The predictions; other kinds of record are left out.
        """
        found = self.records(Prediction.kind)
        return [record for record in found if isinstance(record, Prediction)]

    def __len__(self) -> int:
        with self._errors(writing=False):
            return int(self._connection.execute("SELECT count(*) FROM records").fetchone()[0])

    def note(self, event: str, body: Mapping[str, Any]) -> None:
        """Write an event in the life of the run: it started, went on, or stopped.

        Args:
            event: what happened.
            body: what is worth knowing about it, as plain values.
        """
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO sittings (unix_time, event, body) VALUES (?, ?, ?)",
                (time.time(), event, json.dumps(dict(body), sort_keys=True)),
            )

    def sittings(self) -> list[Sitting]:
        """Read the events in the life of the run, oldest first.

        Returns:
            The events.
        """
        with self._errors(writing=False):
            rows = self._connection.execute("SELECT unix_time, event, body FROM sittings ORDER BY id")
            return [Sitting(moment, event, json.loads(body)) for moment, event, body in rows]

    def close(self) -> None:
        """Close the file; what was appended is there already."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return "the run in memory" if self.path is None else str(self.path)

    def _errors(self, *, writing: bool) -> contextlib.AbstractContextManager[None]:
        return translated(self.path or Path(":memory:"), writing=writing)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if not self._writable:
            raise UsageError(f"{self._name} was opened for reading: open it with RunStore.open to append")
        with self._errors(writing=True):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _initialize(connection: sqlite3.Connection, spec: RunSpec) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    migrate(connection)
    connection.execute("INSERT INTO spec VALUES (1, ?, ?)", (spec.hash, spec.to_json()))
    connection.execute("COMMIT")
