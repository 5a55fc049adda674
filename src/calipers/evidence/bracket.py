"""Bracket: what was proved and what was found of each input, joined: lower <= r* <= upper."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from calipers.errors import CheckFailed, UsageError
from calipers.evidence.records import AnyRecord, Attempt, Certificate
from calipers.statistics.intervals import clopper_pearson_interval, clopper_pearson_lower
from calipers.statistics.tests import binomial_quantile
from calipers.threat.threat_model import ABSTAIN

__all__ = [
    "Bracket",
    "BracketSummary",
    "Estimated",
    "bracket",
    "contradict",
    "is_upper_jaw",
    "joined",
    "judge_alpha_of",
    "summarize_brackets",
]

_ANSWER_ALPHA = 0.001


@final
@dataclass(frozen=True, slots=True)
class Bracket:
    """The robust radius of one input, from both sides: lower <= r* <= upper.

    Args:
        index: the index of the input in its data set.
        label: its class, -1 where none is known.
        lower: the best certificate, or None where there is none.
        upper: the nearest attempt that is an upper jaw, or None where there is none.
        attempts: how many attempts were made, with or without success.
    """

    index: int
    label: int
    lower: Certificate | None
    upper: Attempt | None
    attempts: int = 0

    @property
    def lower_radius(self) -> float:
        """What is proved: the radius where the certificate names the label, else 0."""
        return self.lower.radius if self.lower is not None and self._names_label else 0.0

    @property
    def upper_radius(self) -> float:
        """What was found: the least distance, infinite if none; 0 where the clean input is wrong already."""
        if self.lower is not None and not self.lower.abstained and self.label >= 0 and not self._names_label:
            return 0.0
        return math.inf if self.upper is None else self.upper.distance

    @property
    def gap(self) -> float:
        """What is left open between the two; infinite where nothing was found, negative in a contradiction."""
        return self.upper_radius - self.lower_radius

    @property
    def contradiction(self) -> bool:
        """Whether another class was found inside the ball where the certificate proves that there is none."""
        return self.lower is not None and self.upper is not None and contradict(self.lower, self.upper)

    @property
    def _names_label(self) -> bool:
        return self.lower is not None and self.lower.prediction == self.label and self.label >= 0


@final
@dataclass(frozen=True, slots=True)
class Estimated:
    """A figure of these inputs, with the interval for the population that they were drawn from.

    Args:
        value: the figure, of these inputs.
        lower: lower end of the interval.
        upper: its upper end.
    """

    value: float
    lower: float
    upper: float


@final
@dataclass(frozen=True, slots=True)
class BracketSummary:
    """What the brackets of a data set say together.

    Args:
        inputs: brackets with a label, which the figures are of.
        unlabelled: brackets without one, which are left out.
        wrong: inputs whose clean answer is wrong, so that r* is 0.
        proved: inputs with a lower jaw above 0.
        found: inputs with a finite upper jaw.
        lower: the median of the lower jaws, 0 where nothing is proved.
        upper: the median of the upper jaws, infinite where nothing was found.
        gap: the median of the gaps.
        narrow: the share of inputs whose gap is at most ``width``, contradictions left out.
        width: that gap, in input units.
        contradictions: brackets whose jaws contradict each other.
        confidence: probability that an interval holds the figure of the population.
        norm: the norm of the radii; empty where no bracket says it.
    """

    inputs: int
    unlabelled: int
    wrong: int
    proved: int
    found: int
    lower: Estimated
    upper: Estimated
    gap: Estimated
    narrow: Estimated
    width: float
    contradictions: int
    confidence: float
    norm: str


def bracket(records: Iterable[AnyRecord], *, method: str | None = None) -> list[Bracket]:
    """Join certificates and attempts of one classifier, an input at a time.

    The lower jaw is the largest radius that is proved. Deterministic certificates combine freely, since none of them
    fails; a statistical one combines with them, since then it alone may fail. Of statistical certificates one an input
    is used, all of one method and alpha: the best of several fails with the sum of their probabilities.

    The upper jaw is the nearest attempt whose success was shown: see :func:`is_upper_jaw`. Attempts combine freely.

    Args:
        records: certificates and attempts; predictions are left out.
        method: the statistical method to use where there are several, as its records name it.

    Returns:
        A bracket for each input that has either, by index.

    Raises:
        UsageError: if the records are of several classifiers, norms, inputs under one index or labels of one input, or
            statistical certificates are of several methods, alphas or seeds and ``method`` does not choose.
        CheckFailed: if two certificates of an input name different classes.
    """
    certificates, attempts = joined(records, method)
    found = []
    for index in sorted({*certificates, *attempts}):
        proved, tried = certificates.get(index, []), attempts.get(index, [])
        label = max(row.label for row in (*proved, *tried))
        jaws = [attempt for attempt in tried if is_upper_jaw(attempt)]
        found.append(
            Bracket(
                index=index,
                label=label,
                lower=_best(proved),
                upper=min(jaws, key=lambda attempt: attempt.distance, default=None),
                attempts=len(tried),
            )
        )
    return found


def is_upper_jaw(attempt: Attempt) -> bool:
    """Say whether an attempt bounds the robust radius from above.

    It does where its success was shown, with an answer that is not the label; an abstention is such an answer only
    where the goal counts it as wrong. An undetermined attempt never does. A randomized classifier's does by the
    majority rule alone, whatever rule its judge kept: the lower end of the interval of its rate, at the judge's alpha,
    lies above one half. A single draw of one that was judged by another rule shows nothing.

    Args:
        attempt: the attempt.

    Returns:
        Whether it does.
    """
    if not attempt.success or attempt.undetermined or not math.isfinite(attempt.distance):
        return False
    if attempt.draws > 1:
        alpha = judge_alpha_of(attempt)
        return 0 < alpha < 1 and _rate_above_half(attempt.wins, attempt.draws, alpha)
    by_majority = _judge_field(attempt, "draws") != "1" or _judge_field(attempt, "rule") in (None, "majority")
    return by_majority and attempt.prediction != attempt.label


def _rate_above_half(wins: int, draws: int, alpha: float) -> bool:
    return float(clopper_pearson_lower(wins, draws, alpha=alpha / 2)) > 0.5


def contradict(proved: Certificate, found: Attempt) -> bool:
    """Say whether an attempt shows a class other than the certificate's inside its open ball.

    The answer at a point is what counts, and not whether the goal was reached by it: a certificate of a wrong class is
    contradicted by the label. Of a randomized classifier it is known only that the label's majority is gone.

    Args:
        proved: the certificate.
        found: the attempt, of the same input, classifier and norm.

    Returns:
        Whether they contradict each other; an abstention on either side never does.
    """
    if proved.abstained or found.prediction in (ABSTAIN, proved.prediction):
        return False
    if not found.distance < proved.radius or found.undetermined:
        return False
    return found.draws == 1 or (is_upper_jaw(found) and proved.prediction == found.label)


def joined(
    records: Iterable[AnyRecord], method: str | None
) -> tuple[Mapping[int, list[Certificate]], Mapping[int, list[Attempt]]]:
    """Check that records are of one question, and sort them by side and input.

    Args:
        records: certificates and attempts; predictions are left out.
        method: the statistical method to use where there are several.

    Returns:
        The certificates that may be used of each input, and its attempts.

    Raises:
        UsageError: as :func:`bracket` raises it.
    """
    rows = [row for row in records if isinstance(row, Certificate | Attempt)]
    if not rows:
        raise UsageError("there are no certificates and no attempts: a bracket needs at least one")
    _check_one_question(rows)
    kept = _chosen([row for row in rows if isinstance(row, Certificate)], method)
    certificates: dict[int, list[Certificate]] = {}
    attempts: dict[int, list[Attempt]] = {}
    for certificate in kept:
        certificates.setdefault(certificate.index, []).append(certificate)
    for row in rows:
        if isinstance(row, Attempt):
            attempts.setdefault(row.index, []).append(row)
    return certificates, attempts


def _check_one_question(rows: Sequence[Certificate | Attempt]) -> None:
    remedies = {
        "target": "a bracket is of one classifier: certify and attack the same one, smoothed on both sides or on "
        "neither",
        "norm": "a bracket is in one norm: certify and attack in the same one",
    }
    for name, remedy in remedies.items():
        values = sorted({str(getattr(row, name)) for row in rows})
        if len(values) > 1:
            raise UsageError(f"these records have several values of {name} ({', '.join(values)}): {remedy}")
    for name, unknown in (("label", -1), ("input_digest", "")):
        known: dict[int, object] = {}
        for row in rows:
            value = getattr(row, name)
            if value != unknown and known.setdefault(row.index, value) != value:
                raise UsageError(
                    f"input {row.index} has the {name} {known[row.index]} in one record and {value} in another: "
                    "certify and attack the same data"
                )


def _chosen(certificates: Sequence[Certificate], method: str | None) -> list[Certificate]:
    """Keep the deterministic certificates, and the statistical ones of a single method and alpha."""
    statistical = [row for row in certificates if row.alpha != 0]
    if method is not None:
        named = sorted({row.method for row in certificates})
        if method not in named:
            raise UsageError(f"no certificate is by {method}: there are {', '.join(named) or 'none'}")
        statistical = [row for row in statistical if row.method == method]
    # The text, since an unknown alpha is NaN, which equals nothing.
    kinds = sorted({f"{row.method} at alpha {row.alpha:g}" for row in statistical})
    if len(kinds) > 1:
        raise UsageError(
            f"statistical certificates are by several methods ({'; '.join(kinds)}) and the best of them would fail "
            "with the sum of their probabilities: choose one by method="
        )
    seen: set[int] = set()
    for row in statistical:
        if row.index in seen:
            raise UsageError(
                f"input {row.index} has several statistical certificates by {row.method}: the best of them would fail "
                "with the sum of their probabilities: give one of each input"
            )
        seen.add(row.index)
    return [row for row in certificates if row.alpha == 0] + statistical


def _best(proved: Sequence[Certificate]) -> Certificate | None:
    speaking = [row for row in proved if not row.abstained]
    if not speaking:
        return proved[0] if proved else None
    if len({row.prediction for row in speaking}) > 1:
        one, other = speaking[0], next(row for row in speaking if row.prediction != speaking[0].prediction)
        raise CheckFailed(
            f"input {one.index} is of class {one.prediction} by {one.method} (alpha {one.alpha:g}) and of class "
            f"{other.prediction} by {other.method} (alpha {other.alpha:g}): one of them is wrong"
        )
    return max(speaking, key=lambda row: row.radius)


def judge_alpha_of(attempt: Attempt) -> float:
    """Read with what probability the judge of an attempt may be wrong.

    That is the judge's alpha where many draws were made. An answer that was asked for once is wrong with the
    classifier's own probability, which for a smoothed one is 0.001 unless its maker chose another, and the judge's
    alpha has no part in it: a lenient judge must not excuse what a smoothed classifier said.

    Args:
        attempt: the attempt.

    Returns:
        The probability, 0 where the record does not say it.
    """
    try:
        said = float(_judge_field(attempt, "alpha") or 0.0)
    except ValueError:
        return 0.0
    return said if attempt.draws > 1 else min(said, _ANSWER_ALPHA)


def _judge_field(attempt: Attempt, name: str) -> str | None:
    found = re.search(rf"\b{name}='?([^',)]+)", attempt.judge)
    return found.group(1) if found else None


def summarize_brackets(
    brackets: Sequence[Bracket], *, width: float = 0.25, confidence: float = 0.95
) -> BracketSummary:
    """Say how far the jaws are closed.

    Intervals of medians are by order statistics, those of shares by Clopper and Pearson; both hold for any
    distribution, and are of the population that the inputs were drawn from. They take the brackets at their word.

    Args:
        brackets: brackets of one classifier and norm.
        width: the gap, in input units, up to which a bracket counts as narrow.
        confidence: probability that an interval holds the figure of the population.

    Returns:
        The summary.

    Raises:
        UsageError: if no bracket has a label, or the width is negative or no number.

    Reference:
        David and Nagaraja 2003, Order Statistics, section 7.1 (the intervals of medians).
    """
    if not width >= 0:
        raise UsageError(f"width is {width}: give a gap of at least 0, in input units")
    rows = [row for row in brackets if row.label >= 0]
    if not rows:
        raise UsageError(f"none of {len(brackets)} brackets has a label: give at least one that has")
    narrow = sum(row.gap <= width and not row.contradiction for row in rows)
    share = clopper_pearson_interval(narrow, len(rows), confidence=confidence)
    sides = (side for row in rows for side in (row.lower, row.upper) if side is not None)
    return BracketSummary(
        inputs=len(rows),
        unlabelled=len(brackets) - len(rows),
        wrong=sum(row.upper_radius == 0 for row in rows),
        proved=sum(row.lower_radius > 0 for row in rows),
        found=sum(math.isfinite(row.upper_radius) for row in rows),
        lower=_median([row.lower_radius for row in rows], confidence),
        upper=_median([row.upper_radius for row in rows], confidence),
        gap=_median([row.gap for row in rows], confidence),
        narrow=Estimated(narrow / len(rows), float(share.lower), float(share.upper)),
        width=width,
        contradictions=sum(row.contradiction for row in brackets),
        confidence=confidence,
        norm=next((side.norm for side in sides), ""),
    )


def _median(values: Sequence[float], confidence: float) -> Estimated:
    """The median, and the order statistics around it that hold the population's."""
    ordered = sorted(values)
    count = len(ordered)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    # at most `beyond` of the values lie above the population's median, except with half of the error
    beyond = binomial_quantile((1 - confidence) / 2, count, 0.5)
    if beyond >= count:
        return Estimated(middle, -math.inf, math.inf)
    return Estimated(middle, ordered[count - 1 - beyond], ordered[beyond])
