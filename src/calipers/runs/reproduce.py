"""Reproducing a case study: what is not in the files yet is measured, several measurements at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from calipers.runs.case_rows import CaseRow, Question, is_complete
from calipers.runs.prescribed import prescribed_row
from calipers.runs.side_by_side import side_by_side
from calipers.runs.store import RunStore

__all__ = ["clean_wrong", "in_order", "measure_case"]

_CLEAN = "wrong when clean"


def measure_case(
    rows: Sequence[CaseRow],
    question: Question,
    *,
    prescribe: bool = False,
    budget: float = 20.0,
    jobs: int = 1,
    deadline: float | None = None,
) -> Iterator[CaseRow]:
    """Measure what is not in the files yet, several measurements at a time.

    Args:
        rows: the measurements.
        question: what is asked.
        prescribe: whether each mechanism is also attacked as a diagnosis of it prescribes.
        budget: seconds for each diagnosis, and as many again for the choice of the attack.
        jobs: processes, of one thread each; 1 measures in this one.
        deadline: the value of ``time.monotonic()`` at which to stop.

    Yields:
        Each measurement whose file is complete, as they are finished.
    """
    parcels = [_Parcel(row, question, None, deadline) for row in rows]
    if prescribe:
        recipes: dict[tuple[str, str], CaseRow] = {}
        for row in rows:
            if row.role == "adaptive":
                recipes.setdefault((row.defense, row.family), row)
        parcels += [_Parcel(row, question, budget, deadline) for row in recipes.values()]
    for done in side_by_side(_measure, parcels, jobs=jobs):
        if done is not None:
            yield done


def in_order(rows: Sequence[CaseRow], measured: Sequence[CaseRow]) -> list[CaseRow]:
    """Put measurements into the order of the table: what was prescribed comes after its mechanism's own rows.

    Args:
        rows: the measurements as they were asked for.
        measured: those that are finished.

    Returns:
        The finished ones.
    """
    mechanisms = list(dict.fromkeys((row.defense, row.family) for row in rows))
    places = {row.path: place for place, row in enumerate(rows)}
    return sorted(
        measured,
        key=lambda row: (
            mechanisms.index((row.defense, row.family)),
            row.role == "prescribed",
            places.get(row.path, 0),
        ),
    )


class _Parcel(NamedTuple):
    """One measurement, or with a budget the one that a diagnosis of its classifier prescribes."""

    row: CaseRow
    question: Question
    budget: float | None
    deadline: float | None


def _measure(parcel: _Parcel) -> CaseRow | None:
    # In whichever process it is; a deadline is told by a clock that all processes of a machine share.
    from calipers.runs.bench import Bench
    from calipers.runs.measure import measure, prepare
    from calipers.runs.run import carry_out

    row: CaseRow | None = parcel.row
    late = parcel.deadline is not None and time.monotonic() >= parcel.deadline
    if late and (parcel.budget is not None or not _is_finished(parcel.row)):
        return None
    if parcel.budget is not None:
        row = prescribed_row(parcel.row, parcel.question, budget=parcel.budget)
    if row is None:
        return None
    device = parcel.question.device
    bench = Bench(row.spec, device=device, trust_code=False)
    target = bench.subject().target  # before there is a file, so that a part that is missing leaves none
    with RunStore.open(row.path, row.spec) as store:
        # parts may have been trained again since: what was measured must be what is there
        complete = is_complete(store)
        if complete:
            store.settle({"target": target.fingerprint, "data": bench.subject().data.fingerprint})
        # one that rejects a clean image errs, and no attempt says so
        if target.detector and clean_wrong(store) is None:
            store.settle({_CLEAN: ",".join(map(str, bench.clean_wrong()))})
        if complete:
            return row
        prepared = prepare(row.spec, store, device=device, bench=bench, compile_allowed=False)
        carry_out(prepared.tasks, store, measure, prepared.bench, deadline=parcel.deadline)
        if not is_complete(store):
            return None
    return row


def _is_finished(row: CaseRow) -> bool:
    if not row.path.exists():
        return False
    with RunStore.read(row.path) as store:
        return is_complete(store)


def clean_wrong(store: RunStore) -> frozenset[int] | None:
    """Read which clean inputs a detector does not answer rightly, or rejects.

    Args:
        store: a complete run.

    Returns:
        Their indices; None where the classifier rejects nothing.
    """
    told = store.facts().get(_CLEAN)
    return None if told is None else frozenset(int(index) for index in told.split(",") if index)
