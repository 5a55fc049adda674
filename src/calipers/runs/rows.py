"""Rows: what a store keeps of a record and of an array, each with a check sum, and back from it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calipers.errors import StoreCorrupt, UsageError
from calipers.evidence.records import AnyRecord, Record, record_from_json

__all__ = [
    "INSERT_ARRAY",
    "INSERT_RECORD",
    "ArrayRow",
    "RecordRow",
    "array_of",
    "array_rows",
    "record_of",
    "record_rows",
    "say_the_same",
]

INSERT_RECORD = (
    "INSERT INTO records (key, ordinal, kind, input_index, body, check_sum) VALUES (?, ?, ?, ?, ?, ?)"
)
INSERT_ARRAY = (
    "INSERT INTO tensors (key, name, input_index, shape, body, check_sum) VALUES (?, ?, ?, ?, ?, ?)"
)


class RecordRow(NamedTuple):
    """A row of the table ``records``.

    Args:
        key: the key of the task.
        ordinal: the place of the record among those of its task.
        kind: the kind of record.
        input_index: the index of the input.
        body: the record as JSON.
        check_sum: of all of these.
    """

    key: bytes
    ordinal: int
    kind: str
    input_index: int
    body: str
    check_sum: bytes


class ArrayRow(NamedTuple):
    """A row of the table ``tensors``.

    Args:
        key: the key of the task.
        name: the name of the array.
        input_index: the index of the input.
        shape: the shape as JSON.
        body: the float32 values, little end first, compressed by zlib.
        check_sum: of all of these.
    """

    key: bytes
    name: str
    input_index: int
    shape: str
    body: bytes
    check_sum: bytes


def record_rows(key: str, records: Sequence[Record]) -> Iterator[RecordRow]:
    """Write the records of a task as rows.

    Args:
        key: the key of the task.
        records: its records.

    Yields:
        A row each.

    Raises:
        UsageError: if there is none.
    """
    if not records:
        raise UsageError(f"task {key} has no records: a finished task has at least one")
    raw = bytes.fromhex(key)
    for ordinal, record in enumerate(records):
        body = record.to_json()
        check_sum = _record_sum(raw, ordinal, record.kind, record.index, body)
        yield RecordRow(raw, ordinal, record.kind, record.index, body, check_sum)


def record_of(row: RecordRow, store: str) -> AnyRecord:
    """Read the record of a row.

    Args:
        row: the row.
        store: the name of the store, for the message.

    Returns:
        The record.

    Raises:
        StoreCorrupt: if it does not match its check sum.
    """
    if _record_sum(*row[:5]) != row.check_sum:
        raise StoreCorrupt(
            f"{store} is damaged: the record of input {row.input_index} does not match its check sum; restore a copy"
        )
    return record_from_json(row.kind, row.body)


def say_the_same(stored: tuple[str, str], row: RecordRow) -> bool:
    """Tell whether a stored record says what a row says, the time that it took aside.

    Args:
        stored: the kind and the body of the stored one.
        row: the other one.

    Returns:
        Whether they say the same.
    """
    return (stored[0], _timeless(stored[1])) == (row.kind, _timeless(row.body))


def array_rows(key: str, index: int, arrays: Mapping[str, NDArray[np.float32]]) -> Iterator[ArrayRow]:
    """Write the arrays of a task as rows.

    Args:
        key: the key of the task.
        index: the index of the input.
        arrays: its arrays by name, float32.

    Yields:
        A row each.
    """
    raw = bytes.fromhex(key)
    for name, array in arrays.items():
        shape = json.dumps(list(array.shape))
        body = zlib.compress(np.ascontiguousarray(array, dtype="<f4").tobytes(), 1)
        yield ArrayRow(raw, name, index, shape, body, _array_sum(raw, name, index, shape, body))


def array_of(row: ArrayRow, store: str) -> NDArray[np.float32]:
    """Read the array of a row.

    Args:
        row: the row.
        store: the name of the store, for the message.

    Returns:
        The array, float32, read-only.

    Raises:
        StoreCorrupt: if it does not match its check sum.
    """
    if _array_sum(*row[:5]) != row.check_sum:
        raise StoreCorrupt(
            f"{store} is damaged: an array of input {row.input_index} does not match its check sum; restore a copy"
        )
    return np.frombuffer(zlib.decompress(row.body), dtype="<f4").reshape(json.loads(row.shape))


def _record_sum(key: bytes, ordinal: int, kind: str, index: int, body: str) -> bytes:
    text = f"{key.hex()} {ordinal} {kind} {index} {body}"
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _array_sum(key: bytes, name: str, index: int, shape: str, body: bytes) -> bytes:
    text = f"{key.hex()} {name} {index} {shape} "
    return hashlib.blake2b(text.encode() + body, digest_size=8).digest()


def _timeless(body: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(body)
    row.pop("seconds", None)
    return row
