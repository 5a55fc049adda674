"""The summary of a run: what was asked, and what its certificates say together, as data and as plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from calipers.errors import UsageError
from calipers.evidence.curves import QUANTILES, CertifiedCurve, certified_curve
from calipers.evidence.records import Certificate, Prediction
from calipers.report.tables import (
    Table,
    ceiled_percent,
    columns_of,
    floored,
    floored_percent,
    floored_places,
    floored_short,
)
from calipers.runs.spec import RunSpec

__all__ = [
    "Costs",
    "Summary",
    "compare",
    "default_radii",
    "summarize",
    "summarize_predictions",
]

_GRID = 0.25
_MOST_POINTS = 12


@final
@dataclass(frozen=True, slots=True)
class Costs:
    """What the certificates cost.

    Args:
        samples: estimation samples, all inputs together; None where it is unknown.
        mean_samples: the mean of an input; None likewise.
        median_samples: the median of an input; None likewise.
        seconds: measuring time, all inputs together.
    """

    samples: int | None
    mean_samples: float | None
    median_samples: float | None
    seconds: float


@final
@dataclass(frozen=True, slots=True)
class Summary:
    """What the certificates of a run say together.

    Args:
        asked: pairs of a word and its value: model, data, method, noise and so on.
        curve: certified accuracy and what goes with it.
        costs: what the certificates cost.
        norm: the norm of the radii.
        notes: what a reader must know to read the numbers rightly.
    """

    asked: tuple[tuple[str, str], ...]
    curve: CertifiedCurve
    costs: Costs
    norm: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the summary as plain values for JSON; what is unknown is None.

        Returns:
            A mapping of texts, numbers, lists and mappings.
        """
        curve = asdict(self.curve)
        points = [
            {name: value for name, value in point.items() if name not in ("lower", "upper")}
            | {"interval": None if point["accuracy"] is None else [point["lower"], point["upper"]]}
            for point in curve.pop("points")
        ]
        quantiles = dict(zip((f"{level:g}" for level in QUANTILES), curve.pop("p_lower"), strict=False))
        return {
            "asked": dict(self.asked),
            "norm": self.norm,
            "certified_accuracy": points,
            **curve,
            "p_lower_quantiles": quantiles,
            "costs": asdict(self.costs),
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """Give certified accuracy as a table.

        Returns:
            One row a radius.
        """
        curve = self.curve
        if not curve.labelled:
            shares = tuple((floored_short(point.radius), str(point.proved)) for point in curve.points)
            return Table("", (f"{self.norm} radius", "inputs certified"), shares)
        sure = f"{_share(1 - curve.rho)} % sure"
        rows = tuple(
            (
                floored_short(point.radius),
                floored_percent(point.accuracy),
                f"{floored_percent(point.lower)} to {ceiled_percent(point.upper)}",
                floored_percent(point.guaranteed),
                str(point.certified),
            )
            for point in curve.points
        )
        interval = f"{_share(curve.confidence)} % interval"
        return Table("", (f"{self.norm} radius", "certified %", interval, sure, "inputs"), rows)

    def text(self) -> str:
        """Write the summary in plain text.

        Returns:
            Lines without a final newline.
        """
        lines = [columns_of(self.asked), "", self.table().text(), "", columns_of(self.findings())]
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines)

    def findings(self) -> tuple[tuple[str, str], ...]:
        """Give what stands beside the table.

        Returns:
            Pairs of a word and its value.
        """
        curve = self.curve
        found = [("inputs", _inputs(curve)), ("abstentions", _at_most(curve.abstentions, curve.inputs))]
        if curve.alpha is None:
            found.append(("failures", "unknown, since alpha is"))
        elif curve.alpha > 0:
            expected = f"{curve.inputs} x {curve.alpha:g} = {curve.expected_failures:g} expected"
            allowed = curve.failures_allowed
            more = "" if allowed is None else f", at most {allowed} with probability {1 - curve.rho:g}"
            found.append(("failures", expected + more))
        if curve.p_lower:
            told = "  ".join(
                f"{level:g}: {floored_places(value)}"
                for level, value in zip(QUANTILES, curve.p_lower, strict=True)
            )
            found.append(("p_A quantiles", told))
        if curve.average_radius is not None:
            found.append(
                ("average radius", f"{floored(curve.average_radius)} (certified correct radius, 0 else)")
            )
        if self.costs.samples is not None:
            mean, median = self.costs.mean_samples, self.costs.median_samples
            found.append(
                ("samples", f"{self.costs.samples:,} (mean {mean:,.0f}, median {median:,.0f} an input)")
            )
        return tuple(found)


def summarize(
    certificates: Sequence[Certificate],
    *,
    radii: Sequence[float] | None = None,
    spec: RunSpec | None = None,
    confidence: float = 0.95,
    rho: float = 1e-3,
) -> Summary:
    """Summarize certificates of one classifier.

    Args:
        certificates: one an input.
        radii: the radii at which certified accuracy is told; chosen if None.
        spec: the specification of their run, for what was asked.
        confidence: probability that an interval holds the population's certified accuracy.
        rho: probability that the guaranteed accuracy is too high.

    Returns:
        The summary.
    """
    chosen = default_radii(certificates) if radii is None else tuple(sorted(set(radii)))
    curve = certified_curve(certificates, chosen, confidence=confidence, rho=rho)
    return Summary(
        asked=_asked(certificates[0], spec),
        curve=curve,
        costs=_costs(certificates),
        norm=certificates[0].norm,
        notes=_notes(certificates[0], curve),
    )


def default_radii(certificates: Sequence[Certificate]) -> tuple[float, ...]:
    """Choose radii for a curve: 0, .25, .5, .75 and on in steps of .25 where the radii are that large.

    Args:
        certificates: the certificates.

    Returns:
        Radii from 0 on in equal steps of 1, 2, 2.5 or 5 times a power of ten, at most twelve.
    """
    largest = max((row.radius for row in certificates if math.isfinite(row.radius)), default=0.0)
    step = _GRID
    if 0 < largest < _GRID:
        step = _round_step(largest / 4)
    elif largest / _GRID > _MOST_POINTS - 1:
        step = max(_GRID, _round_step(largest / (_MOST_POINTS - 2)))
    count = max(3, min(math.floor(largest / step), _MOST_POINTS - 1))
    return tuple(float(f"{index * step:.12g}") for index in range(count + 1))


def compare(
    curves: Mapping[str, CertifiedCurve], *, beside: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """Set several curves side by side, such as one-sided against two-sided, or two noises.

    Args:
        curves: the curves by name, all at the same radii.
        beside: further columns by heading, each with its text by name, such as the clean accuracy.

    Returns:
        One row a curve, in percent: certified accuracy at each radius, abstentions, then the average radius.

    Raises:
        UsageError: if there are no curves, or their radii differ.
    """
    if not curves:
        raise UsageError("there are no curves to compare: give at least one")
    radii = {tuple(point.radius for point in curve.points) for curve in curves.values()}
    if len(radii) > 1:
        raise UsageError("these curves are at different radii: compute them at the same ones")
    (shared,) = radii
    more = dict(beside or {})
    rows = tuple(
        (
            name,
            *(column.get(name, "-") for column in more.values()),
            *(floored_percent(point.accuracy) for point in curve.points),
            ceiled_percent(curve.abstentions / curve.inputs),
            "-" if curve.average_radius is None else floored(curve.average_radius),
        )
        for name, curve in curves.items()
    )
    headings = ("", *more, *(floored_short(radius) for radius in shared), "abstained", "average radius")
    return Table("certified %, by radius", headings, rows)


def summarize_predictions(predictions: Sequence[Prediction]) -> tuple[tuple[str, str], ...]:
    """Summarize what a smoothed classifier answered.

    Args:
        predictions: one an input.

    Returns:
        Pairs of a word and its value.

    Raises:
        UsageError: if there are none.
    """
    if not predictions:
        raise UsageError("there are no predictions: run `calipers predict` first")
    labelled = [row for row in predictions if row.label >= 0]
    found = [
        ("inputs", str(len(predictions))),
        ("abstentions", _at_most(sum(row.abstained for row in predictions), len(predictions))),
    ]
    if labelled:
        found.append(("correct", _of(sum(row.correct for row in labelled), len(labelled))))
        wrong = sum(not row.correct and not row.abstained for row in labelled)
        found.append(("wrong", _at_most(wrong, len(labelled))))
    return tuple(found)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * (1 - 1e-9))


def _asked(first: Certificate, spec: RunSpec | None) -> tuple[tuple[str, str], ...]:
    where: tuple[tuple[str, str], ...] = ()
    if spec is not None:
        where = (("model", spec.model), ("data", spec.data))
        where += () if spec.kind == "import" else (("precision", spec.precision), ("seed", str(spec.seed)))
    found = (
        *where,
        ("method", first.method),
        *_proof(first),
    )
    return tuple((word, value) for word, value in found if value)


def _proof(first: Certificate) -> tuple[tuple[str, str], ...]:
    if first.constant is not None:
        return (
            ("alpha", "0: nothing is left to chance"),
            ("constant", f"bounded by {first.bound}, in real arithmetic of the weights"),
        )
    return (
        ("noise", first.noise or "unknown"),
        ("alpha", "unknown" if math.isnan(first.alpha) else f"{first.alpha:g}"),
        ("theorem", first.theorem),
    )


def _costs(rows: Sequence[Certificate]) -> Costs:
    seconds = math.fsum(row.seconds for row in rows if math.isfinite(row.seconds))
    drawn = sorted(row.samples for row in rows)
    if not all(drawn):
        return Costs(None, None, None, seconds)
    middle = (drawn[(len(drawn) - 1) // 2] + drawn[len(drawn) // 2]) / 2
    return Costs(sum(drawn), sum(drawn) / len(drawn), middle, seconds)


def _notes(first: Certificate, curve: CertifiedCurve) -> tuple[str, ...]:
    found = []
    if curve.labelled:
        found.append(
            "certified: the class is the label and the radius is at least this; perturbations smaller than it are "
            "covered (open ball)."
        )
        found.append(
            "interval: of the population these inputs were drawn from. "
            f"{_share(1 - curve.rho)} % sure: of these inputs, failed certificates subtracted."
        )
    if first.votes == "hard" and not first.counts:
        found.append(
            "these certificates were imported: radii are as the log gives them, rounded to three digits there."
        )
    return tuple(found)


def _inputs(curve: CertifiedCurve) -> str:
    missing = curve.inputs - curve.labelled
    return f"{curve.inputs}" if not missing else f"{curve.inputs}, {missing} of them without a label"


def _of(count: int, total: int) -> str:
    return f"{count} of {total} ({floored_percent(count / total)} %)"


def _at_most(count: int, total: int) -> str:
    return f"{count} of {total} ({ceiled_percent(count / total)} %)"


def _share(share: float) -> str:
    return f"{100 * share:g}"
