"""Rows: records and arrays come back as they were, and nothing that was changed by a bit does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from calipers.errors import StoreCorrupt, UsageError
from calipers.evidence.records import Certificate
from calipers.runs.rows import array_of, array_rows, record_of, record_rows, say_the_same

KEY = "ab" * 16
Make = Callable[..., Certificate]


def test_records_come_back_in_their_order(certificate: Make) -> None:
    rows = list(record_rows(KEY, [certificate(3), certificate(4)]))
    assert [(row.key.hex(), row.ordinal, row.input_index) for row in rows] == [(KEY, 0, 3), (KEY, 1, 4)]
    assert [record_of(row, "a.run") for row in rows] == [certificate(3), certificate(4)]


def test_a_task_without_a_record_is_refused() -> None:
    with pytest.raises(UsageError, match="has no records"):
        list(record_rows(KEY, []))


@pytest.mark.parametrize(
    "change",
    [{"key": b"\0"}, {"ordinal": 1}, {"kind": "attempt"}, {"input_index": 4}, {"body": "{}"}],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_row_of_a_record_is_refused(certificate: Make, change: dict[str, object]) -> None:
    (row,) = record_rows(KEY, [certificate(3)])
    with pytest.raises(StoreCorrupt, match=r"a\.run is damaged: the record of input . does not match"):
        record_of(row._replace(**change), "a.run")  # type: ignore[arg-type]


def test_the_time_alone_may_differ_in_records_that_say_the_same(certificate: Make) -> None:
    (row,) = record_rows(KEY, [certificate(3)])
    (slower,) = record_rows(KEY, [certificate(3, seconds=9.0)])
    (other,) = record_rows(KEY, [certificate(3, radius=0.2)])
    assert say_the_same((slower.kind, slower.body), row)
    assert not say_the_same((other.kind, other.body), row)


def test_arrays_come_back_to_the_bit() -> None:
    array = np.random.default_rng(0).standard_normal((1, 4, 3)).astype(np.float32)
    (row,) = array_rows(KEY, 7, {"adversarial": array})
    assert (row.name, row.input_index) == ("adversarial", 7)
    found = array_of(row, "a.run")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "change",
    [{"key": b"\0"}, {"name": "clean"}, {"input_index": 8}, {"shape": "[12]"}, {"body": b"x"}],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_row_of_an_array_is_refused(change: dict[str, object]) -> None:
    (row,) = array_rows(KEY, 7, {"adversarial": np.ones((3, 4), dtype=np.float32)})
    with pytest.raises(StoreCorrupt, match=r"a\.run is damaged: an array of input . does not match"):
        array_of(row._replace(**change), "a.run")  # type: ignore[arg-type]
