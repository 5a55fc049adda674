"""Brackets in plain text: a line an input with its bar on a common scale, and a table of what they say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from calipers.errors import UsageError
from calipers.evidence.bracket import Bracket, BracketSummary, Estimated
from calipers.evidence.contradictions import Contradictions
from calipers.evidence.records import Record
from calipers.report.tables import Table, ceiled, ceiled_percent, columns_of, floored, floored_percent

__all__ = ["bracket_bars", "bracket_table", "bracket_text", "bracket_values"]

Order = Literal["index", "radius"]

_PROVED, _OPEN, _BEYOND, _ENDLESS, _UNTRIED, _AGAINST = "#", "-", " ", ">", "?", "!"
_LEGEND = (
    f"{_PROVED} proved: no adversarial example   {_OPEN} open   blank: beyond one that was found   "
    f"{_ENDLESS} none was found"
)


def bracket_bars(
    brackets: Sequence[Bracket],
    *,
    cells: int = 40,
    most: int = 40,
    order: Order = "index",
    scale: float | None = None,
) -> Table:
    """Draw brackets as bars, in characters that any terminal has.

    A bar shows no more than was proved and no less than was left open: the end of the proved part is rounded down to a
    cell, that of the open part up.

    Args:
        brackets: brackets of one classifier and norm.
        cells: characters of a bar.
        most: lines at most; of more brackets, some are chosen at equal steps.
        order: by index, or by lower and then upper radius.
        scale: the size at the right end, in input units; that of the largest finite jaw if None.

    Returns:
        One row an input: index, label, lower radius rounded down, bar, upper radius rounded up.

    Raises:
        UsageError: if there is no room to draw in, or the scale is not positive.

    Example:
        >>> print(bracket_bars([Bracket(0, 3, None, None, attempts=1)], cells=10, scale=1.0).text())
        robust radius: proved from below, found from above
        input  label  lower  0         1   upper
        0          3      0  |--------->|    inf
        # proved: no adversarial example   - open   blank: beyond one that was found   > none was found
    """
    if cells < 10 or most < 1:
        raise UsageError(f"cells is {cells} and most {most}: give at least 10 cells and 1 line")
    if scale is not None and not 0 < scale < math.inf:
        raise UsageError(f"scale is {scale}: give a finite size above 0, in input units")
    if order not in ("index", "radius"):
        raise UsageError(f"order is {order!r}: use index or radius")
    jaws = [size for row in brackets for size in (row.lower_radius, row.upper_radius) if math.isfinite(size)]
    right = scale or max(jaws, default=0.0) or 1.0
    ordered = sorted(
        brackets,
        key=lambda row: (row.index,) if order == "index" else (row.lower_radius, row.upper_radius, row.index),
    )
    shown = _spread(ordered, most)
    end = ceiled(right, digits=3) if scale is None else f"{scale:g}"
    notes = [_LEGEND]
    if any(row.contradiction for row in shown):
        notes.append(f"{_AGAINST} found inside what was proved: one of the two is wrong, or chance")
    if any(_untried(row) for row in shown):
        notes.append(f"{_UNTRIED} not attacked")
    if len(shown) < len(brackets):
        notes.append(f"{len(shown)} of {len(brackets)} inputs are drawn, at equal steps by {order}")
    norm = next((side.norm for row in brackets for side in (row.lower, row.upper) if side is not None), "")
    return Table(
        title=f"{norm} robust radius: proved from below, found from above".strip(),
        columns=("input", "label", "lower", f"0{end.rjust(cells)} ", "upper"),
        rows=tuple(
            (
                str(row.index),
                str(row.label) if row.label >= 0 else "-",
                floored(row.lower_radius),
                f"|{_bar(row, right, cells)}|",
                ceiled(row.upper_radius),
            )
            for row in shown
        ),
        notes=tuple(notes),
    )


def bracket_table(summary: BracketSummary) -> Table:
    """Give what brackets say together as a table.

    Args:
        summary: the summary.

    Returns:
        One row a figure, with its interval for the population.
    """

    def row(name: str, figure: Estimated, value: str) -> tuple[str, str, str]:
        least = "0" if math.isinf(figure.lower) and figure.lower < 0 else floored(figure.lower)
        return name, value, f"{least} to {ceiled(figure.upper)}"

    narrow = summary.narrow
    interval = f"{floored_percent(narrow.lower)} to {ceiled_percent(narrow.upper)}"
    return Table(
        title="",
        columns=(f"{summary.norm} radius".strip(), "", f"{100 * summary.confidence:g} % interval"),
        rows=(
            row("median lower", summary.lower, floored(summary.lower.value)),
            row("median upper", summary.upper, ceiled(summary.upper.value)),
            row("median gap", summary.gap, ceiled(summary.gap.value)),
            (f"gap at most {summary.width:g}, % of inputs", floored_percent(narrow.value), interval),
        ),
    )


def bracket_text(
    brackets: Sequence[Bracket],
    summary: BracketSummary,
    contradictions: Contradictions,
    *,
    cells: int = 40,
    most: int = 40,
    order: Order = "index",
) -> str:
    """Write brackets, what they say together, and every contradiction.

    Args:
        brackets: the brackets.
        summary: their summary.
        contradictions: the contradictions of the same records.
        cells: characters of a bar.
        most: lines of bars at most.
        order: by index, or by radius.

    Returns:
        Lines without a final newline.
    """
    counted = columns_of(
        (
            ("inputs", f"{summary.inputs}{_unlabelled(summary)}"),
            ("wrong", f"{summary.wrong} without any attack: radius 0"),
            ("proved", f"{summary.proved} with a lower radius above 0"),
            ("found", f"{summary.found} with an upper radius"),
            ("contradictions", _told(contradictions)),
        )
    )
    parts = [
        bracket_bars(brackets, cells=cells, most=most, order=order).text(),
        bracket_table(summary).text(),
        counted,
        contradictions.text(),
    ]
    return "\n\n".join(part for part in parts if part)


def bracket_values(summary: BracketSummary, contradictions: Contradictions) -> dict[str, Any]:
    """Give what brackets say together as plain values for JSON; what is infinite or unknown is None.

    Args:
        summary: the summary.
        contradictions: the contradictions of the same records.

    Returns:
        A mapping of texts, numbers, lists and mappings.
    """
    told = asdict(summary)
    del told["contradictions"]
    for name in ("lower", "upper", "gap", "narrow"):
        figure = told[name]
        told[name] = {
            "value": _finite(figure["value"]),
            "interval": [_finite(figure["lower"]), _finite(figure["upper"])],
        }
    told["contradictions"] = {
        "deterministic": contradictions.inputs,
        "statistical": contradictions.statistical_inputs,
        "allowed": contradictions.allowed,
        "pairs": contradictions.pairs,
        "rate": _finite(contradictions.rate),
        "rho": contradictions.rho,
        "error": contradictions.error,
        "records": [
            {"certificate": _plain(one.certificate), "attempt": _plain(one.attempt)}
            for one in contradictions.found
        ],
    }
    return told


def _bar(row: Bracket, right: float, cells: int) -> str:
    lower = min(math.floor(row.lower_radius / right * cells), cells)
    upper = min(row.upper_radius / right * cells, cells)
    if row.contradiction:
        low = min(math.floor(upper), cells - 1)
        high = max(min(math.ceil(row.lower_radius / right * cells), cells), low + 1)
        return (_PROVED * low + _AGAINST * (high - low)).ljust(cells, _BEYOND)
    drawn = (_PROVED * lower).ljust(math.ceil(upper), _OPEN).ljust(cells, _BEYOND)
    if not math.isinf(row.upper_radius):
        return drawn
    return drawn[:-1] + (_UNTRIED if _untried(row) else _ENDLESS)


def _untried(row: Bracket) -> bool:
    return math.isinf(row.upper_radius) and not row.attempts


def _spread(rows: Sequence[Bracket], most: int) -> list[Bracket]:
    if len(rows) <= most:
        return list(rows)
    last = len(rows) - 1
    return [rows[round(place * last / max(most - 1, 1))] for place in range(most)]


def _unlabelled(summary: BracketSummary) -> str:
    return f", and {summary.unlabelled} without a label" if summary.unlabelled else ""


def _told(found: Contradictions) -> str:
    told = f"{found.inputs + found.statistical_inputs}"
    if found.pairs and not math.isnan(found.rate):
        told += f" (chance explains {found.allowed} of {found.pairs})"
    return told


def _plain(record: Record) -> dict[str, Any]:
    return {
        name: _finite(value) if isinstance(value, float) else value for name, value in asdict(record).items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
