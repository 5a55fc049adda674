"""Attacks side by side: what each found, and what stands under all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from calipers.errors import UsageError
from calipers.evidence.records import Attempt
from calipers.report.attempts import AttackSummary, readings, summarize_attempts
from calipers.report.tables import Table, ceiled, ceiled_percent, floored_percent

__all__ = ["compare_attacks", "together"]

_ALL = "all together"


def together(runs: Mapping[str, Sequence[Attempt]]) -> AttackSummary | None:
    """Take of each input what the strongest of several attacks found.

    An input has fallen where one attack brought it down, and stands where all failed; a nearer example counts before a
    farther one. What an input cost is the sum over the attacks.

    Args:
        runs: the attempts of each attack, by name.

    Returns:
        The summary; None unless there are several attacks with the same classifier, norm, size, judge and inputs.
    """
    every = [list(rows) for rows in runs.values()]
    if len(every) < 2 or len({_question(rows) for rows in every}) > 1:
        return None
    best = []
    for rows in zip(*(sorted(rows, key=lambda row: row.index) for rows in every), strict=True):
        strongest = min(rows, key=lambda row: (not row.success, not row.undetermined, row.distance))
        best.append(
            replace(
                strongest,
                method=_ALL,
                queries=sum(row.queries for row in rows),
                forwards=sum(row.forwards for row in rows),
                backwards=sum(row.backwards for row in rows),
            )
        )
    return summarize_attempts(best)


def compare_attacks(runs: Mapping[str, Sequence[Attempt]]) -> Table:
    """Set several attacks side by side, and all of them together where that means something.

    Args:
        runs: the attempts of each attack, by name.

    Returns:
        One row an attack: the size allowed, inputs, those wrong already, fallen ones, robust accuracy at most with its
        interval, median distance rounded up, and queries an input.

    Raises:
        UsageError: if there are none.
    """
    if not runs:
        raise UsageError("there are no attacks to compare: give at least one")
    rows = [_row(name, summarize_attempts(attempts)) for name, attempts in runs.items()]
    joined = together(runs)
    if joined is not None:
        rows.append(_row(_ALL, joined))
    notes: tuple[str, ...] = ()
    if len({_inputs(attempts) for attempts in runs.values()}) > 1:
        notes = ("these attacks are of different inputs, so that their shares differ by that too",)
    elif len({attempts[0].target for attempts in runs.values()}) > 1:
        notes = ("these attacks are of different classifiers",)
    headings = (
        "",
        "size",
        "inputs",
        "wrong already",
        "fooled",
        "robust accuracy",
        "95 % interval",
        "median distance",
        "queries",
    )
    return Table("", headings, tuple(rows), notes)


def _row(name: str, found: AttackSummary) -> tuple[str, ...]:
    standing, interval = "-", "-"
    if found.eps is not None:
        standing = readings(found.robust_accuracy, found.undetermined, found.inputs)
        interval = f"{floored_percent(found.lower)} to {ceiled_percent(found.upper)}"
    return (
        name,
        f"{found.norm} least" if found.eps is None else f"{found.norm} {found.eps:g}",
        str(found.inputs),
        str(found.already_wrong),
        str(found.found),
        standing,
        interval,
        "-" if math.isinf(found.median_distance) else ceiled(found.median_distance),
        f"{found.queries:,.0f}",
    )


def _inputs(rows: Sequence[Attempt]) -> tuple[tuple[int, str], ...]:
    return tuple(sorted((row.index, row.input_digest) for row in rows))


def _question(rows: Sequence[Attempt]) -> tuple[object, ...]:
    first = rows[0]
    return first.target, first.norm, first.eps, first.goal, first.judge, _inputs(rows)
