"""The summary of an attack: robust accuracy, distances, what it cost; as data and as plain text."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from calipers.errors import UsageError
from calipers.evidence.records import Attempt
from calipers.report.counts import counted
from calipers.report.tables import Table, ceiled, ceiled_percent, columns_of, floored_percent
from calipers.statistics.intervals import clopper_pearson_interval

__all__ = ["AttackSummary", "attempt_rows", "readings", "summarize_attempts"]


@final
@dataclass(frozen=True)
class AttackSummary:
    """What an attack found, over a data set.

    Args:
        inputs: attempts.
        already_wrong: inputs that are answered wrongly, or by majority so, with no attack at all.
        found: inputs with an adversarial example, those included.
        undetermined: inputs of which neither success nor failure was shown.
        robust_accuracy: the share of inputs that stand.
        lower: lower end of the exact interval of that share for the population.
        upper: upper end of that of the share that was not shown to fall: the two are one where nothing is undetermined.
        confidence: probability with which each of the two intervals holds its share.
        norm: the norm of distances.
        eps: the size that was allowed, in input units; None where the least was looked for.
        median_distance: median distance of all inputs, 0 where one is wrong already and infinite where none was found.
        quartiles: lower and upper quartile of the same.
        flips: mean share of draws that fail with no attack, for a randomized classifier; None for another.
        rate: mean share of draws that fail under it; None likewise.
        queries: mean number of inputs answered for each.
        forwards: mean number passed forward.
        backwards: mean number passed backward.
        reasons: how often a search ended for each reason.
    """

    inputs: int
    already_wrong: int
    found: int
    undetermined: int
    robust_accuracy: float
    lower: float
    upper: float
    confidence: float
    norm: str
    eps: float | None
    median_distance: float
    quartiles: tuple[float, float]
    flips: float | None
    rate: float | None
    queries: float
    forwards: float
    backwards: float
    reasons: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Give the summary as plain values for JSON.

        Returns:
            A mapping; an infinite distance is None there.
        """
        return asdict(self)

    def findings(self) -> tuple[tuple[str, str], ...]:
        """Give the summary in words.

        Returns:
            Pairs of a word and its value.
        """
        interval = f"{floored_percent(self.lower)} to {ceiled_percent(self.upper)}"
        found = [
            ("inputs", str(self.inputs)),
            ("wrong already", f"{self.already_wrong}"),
            ("fooled", f"{self.found} of {self.inputs}" + (", those included" if self.already_wrong else "")),
        ]
        if self.undetermined:
            found.append(("undetermined", f"{self.undetermined}: they fall, or they stand"))
        word = "" if self.eps is None else f" at {self.norm} {self.eps:g}"
        if self.eps is not None:
            found.append(
                (
                    "robust accuracy",
                    f"{readings(self.robust_accuracy, self.undetermined, self.inputs)}{word} "
                    f"({100 * self.confidence:g} % interval {interval})",
                )
            )
        middle = "no adversarial example for half of them" if math.isinf(self.median_distance) else ""
        low, high = self.quartiles
        found.append(
            (
                f"{self.norm} distance",
                middle
                or f"median {ceiled(self.median_distance)}, quartiles {ceiled(low)} and {_or_more(high)}",
            )
        )
        if self.rate is not None and self.flips is not None:
            found.append(
                ("draws that fail", f"{100 * self.rate:.2f} %; with no attack {100 * self.flips:.2f} %")
            )
        passes = "1 backward pass" if round(self.backwards) == 1 else f"{self.backwards:,.0f} backward passes"
        queries = "1 query" if round(self.queries) == 1 else f"{self.queries:,.0f} queries"
        found.append(("cost an input", f"{queries}, {passes}"))
        if self.reasons.get("no gradient"):
            found.append(
                (
                    "no gradient",
                    f"{counted(self.reasons['no gradient'], 'search', 'searches')} saw a gradient of 0 at every step: "
                    "the classifier hides it, and its robustness here means nothing",
                )
            )
        return tuple(found)

    def text(self) -> str:
        """Write the summary in plain text.

        Returns:
            Lines without a final newline.
        """
        return columns_of(self.findings())


def summarize_attempts(attempts: Sequence[Attempt], *, confidence: float = 0.95) -> AttackSummary:
    """Summarize the attempts of one attack on one classifier.

    Args:
        attempts: one an input.
        confidence: probability that the interval holds the population's robust accuracy.

    Returns:
        The summary.

    Raises:
        UsageError: if there are none, or they are of several questions.
    """
    rows = list(attempts)
    if not rows:
        raise UsageError("there are no attempts: an attack leaves one an input")
    for name in ("target", "norm", "eps", "method", "judge"):
        if len({str(getattr(row, name)) for row in rows}) > 1:
            raise UsageError(f"these attempts have several values of {name}: summarize one at a time")
    robust = sum(not row.success and not row.undetermined for row in rows)
    unsure = sum(row.undetermined for row in rows)
    least = clopper_pearson_interval(robust, len(rows), confidence=confidence)
    most = clopper_pearson_interval(robust + unsure, len(rows), confidence=confidence)
    distances = sorted(row.distance if row.success else math.inf for row in rows)
    random = any(row.draws > 1 for row in rows)
    return AttackSummary(
        inputs=len(rows),
        already_wrong=sum(row.reason == "already wrong" for row in rows),
        found=sum(row.success for row in rows),
        undetermined=unsure,
        robust_accuracy=robust / len(rows),
        lower=float(least.lower),
        upper=float(most.upper),
        confidence=confidence,
        norm=rows[0].norm,
        eps=rows[0].eps,
        median_distance=statistics.median_high(distances),
        quartiles=(distances[(len(rows) - 1) // 4], distances[(3 * len(rows)) // 4]),
        flips=statistics.fmean(row.flips / row.draws for row in rows) if random else None,
        rate=statistics.fmean(row.rate for row in rows) if random else None,
        queries=statistics.fmean(row.queries for row in rows),
        forwards=statistics.fmean(row.forwards for row in rows),
        backwards=statistics.fmean(row.backwards for row in rows),
        reasons=dict(Counter(row.reason for row in rows)),
    )


def readings(standing: float, undetermined: int, inputs: int) -> str:
    """Say a robust accuracy, which the attack bounds from above: a range where some inputs are undetermined.

    Args:
        standing: the share of inputs that stand.
        undetermined: those of which neither was shown.
        inputs: all.

    Returns:
        The words.

    Example:
        >>> readings(0.25, 0, 8), readings(0.25, 2, 8)
        ('25.00 % at most', '25.00 % to 50.00 % at most')
    """
    least = f"{ceiled_percent(standing)} %"
    if undetermined:
        least += f" to {ceiled_percent((round(standing * inputs) + undetermined) / inputs)} %"
    return f"{least} at most"


def attempt_rows(attempts: Sequence[Attempt]) -> Table:
    """Give attempts as a table, a row an input.

    Args:
        attempts: the attempts.

    Returns:
        The table.
    """
    columns = ("input", "label", "class", "", "distance", "draws", "queries", "why it ended")
    rows = tuple(
        (
            str(row.index),
            str(row.label),
            "-" if row.prediction < 0 else str(row.prediction),
            "fooled" if row.success else ("undetermined" if row.undetermined else "stands"),
            ceiled(row.distance) if row.success else "-",  # of one that failed it would be that of no example
            f"{row.wins} of {row.draws}",
            f"{row.queries:,}",
            row.reason,
        )
        for row in attempts
    )
    return Table("", columns, rows)


def _or_more(distance: float) -> str:
    return "beyond what was found" if math.isinf(distance) else ceiled(distance)
