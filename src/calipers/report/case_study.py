"""The table of a case study: each defense's accuracy under each attack, beside what its paper printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, final

from calipers.errors import UsageError
from calipers.evidence.records import Attempt
from calipers.report.tables import Table, ceiled_percent, floored_percent
from calipers.statistics.intervals import clopper_pearson_interval

__all__ = ["CaseLine", "case_line", "case_tables", "summary_table"]

_COLUMNS = ("undefended", "naive", "matched", "adaptive", "prescribed")


@final
@dataclass(frozen=True)
class CaseLine:
    """One measurement, as a line.

    Args:
        defense: its name.
        authors: who published it, and when.
        source: where.
        published: data, threat, clean, claimed and adaptive figures as printed, and a note.
        role: what the measurement is for.
        what: the attack in a few words.
        family: the mechanism, where a defense has several.
        size: the size of the perturbation, with its unit.
        inputs: how many were measured.
        clean: the share that is answered rightly with no attack.
        robust: the share that still is under attack.
        lower: lower end of the exact interval of that share for the population.
        upper: its upper end.
        confidence: the probability that the interval holds it.
        undetermined: inputs of which neither was shown; they count as not robust.
        flips: mean share of draws that fail with no attack, for a randomized classifier.
        rate: mean share of draws that fail under attack.
        no_gradient: searches that saw a gradient of 0 at every step.
        distance: median distance of the adversarial examples; infinite where there is none.
        seconds: time of the search and the judge, summed.
    """

    defense: str
    authors: str
    source: str
    published: Mapping[str, str]
    role: str
    what: str
    family: str
    size: str
    inputs: int
    clean: float
    robust: float
    lower: float
    upper: float
    confidence: float
    undetermined: int
    flips: float | None
    rate: float | None
    no_gradient: int
    distance: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Give the line as plain values for JSON.

        Returns:
            A mapping.
        """
        return asdict(self) | {"published": dict(self.published)}


def case_line(
    attempts: Sequence[Attempt],
    *,
    defense: str,
    authors: str,
    source: str,
    published: Mapping[str, str],
    role: str,
    what: str,
    family: str,
    size: str,
    within: float | None,
    clean: float | None = None,
    confidence: float = 0.95,
) -> CaseLine:
    """Summarize the attempts of one measurement.

    Args:
        attempts: one an input.
        defense: as in :class:`CaseLine`, and so the others.
        authors: who published it.
        source: where.
        published: what was printed.
        role: what the measurement is for.
        what: the attack.
        family: the mechanism.
        size: the size, for people.
        within: the largest distance that counts, for an attack that looked for the least; None for any.
        clean: the share of clean inputs that a detector answers rightly and accepts; what it rejects under attack
            stands. None for another classifier, of which the attempts say it.
        confidence: of the interval.

    Returns:
        The line.

    Raises:
        UsageError: if there are no attempts.
    """
    rows = list(attempts)
    if not rows:
        raise UsageError(f"{defense}: {what} has no attempts: a run leaves one an input")
    reach = math.inf if within is None else within
    fallen = [row for row in rows if row.success and row.distance <= reach]
    # what a detector rejects is no success of the attack, and stands; of one that draws, the draws may not have said so
    rejects = clean is not None
    undetermined = sum(
        row.undetermined and row.distance <= reach and (row.draws > 1 or not rejects) for row in rows
    )
    robust = len(rows) - len(fallen) - undetermined
    if clean is not None:  # an image that is rejected with no attack stands for nothing
        robust = min(robust, round(clean * len(rows)))
    interval = clopper_pearson_interval(robust, len(rows), confidence=confidence)
    random = any(row.draws > 1 for row in rows)
    moved = sorted(row.distance for row in fallen if row.reason != "already wrong")
    return CaseLine(
        defense=defense,
        authors=authors,
        source=source,
        published=published,
        role=role,
        what=what,
        family=family,
        size=size,
        inputs=len(rows),
        clean=sum(row.reason != "already wrong" for row in rows) / len(rows) if clean is None else clean,
        robust=robust / len(rows),
        lower=float(interval.lower),
        upper=float(interval.upper),
        confidence=confidence,
        undetermined=undetermined,
        flips=sum(row.flips / row.draws for row in rows) / len(rows) if random else None,
        rate=sum(row.rate for row in rows) / len(rows) if random else None,
        no_gradient=sum(row.reason == "no gradient" for row in rows),
        distance=moved[len(moved) // 2] if moved else math.inf,
        seconds=sum(row.seconds for row in rows),
    )


def case_tables(lines: Sequence[CaseLine]) -> tuple[Table, ...]:
    """Give each defense as a table, a row a measurement.

    Args:
        lines: the measurements, those of a defense together.

    Returns:
        A table a defense.
    """
    return tuple(_table(name, tuple(group)) for name, group in groupby(lines, key=lambda line: line.defense))


def summary_table(lines: Sequence[CaseLine]) -> Table:
    """Give all defenses in one table: accuracy in percent, and what the papers print.

    Args:
        lines: the measurements, those of a defense together.

    Returns:
        The table, a row for each mechanism.
    """
    rows = []
    for (name, family), group in groupby(lines, key=lambda line: (line.defense, line.family)):
        found = tuple(group)
        by_role = {
            role: min(
                (line for line in found if line.role == role), key=lambda line: line.robust, default=None
            )
            for role in _COLUMNS
        }
        cells = [_accuracy(by_role[role]) for role in _COLUMNS]
        judged = [line for line in found if line.role != "undefended"]
        clean = ceiled_percent(judged[0].clean, places=1) if judged else "-"
        rows.append((name + (f", {family}" if family else ""), clean, *cells, found[0].published["adaptive"]))
    inputs = sorted({line.inputs for line in lines})
    spoken = " or ".join(str(count) for count in inputs)
    return Table(
        "",
        ("accuracy, %", "clean", *_COLUMNS, "adaptive, in the literature"),
        tuple(rows),
        (
            f"{spoken} images; half the width of a 95 % interval is at most {_half_width(min(inputs)):.0f} points. "
            "naive: the paper's own attack. matched: the adaptive",
            "attack's size, steps and loss, with autograd's gradient. Every figure is judged on the defense itself.",
        )
        if lines
        else (),
    )


def _table(name: str, lines: tuple[CaseLine, ...]) -> Table:
    first = lines[0]
    rows: tuple[tuple[str, ...], ...] = tuple(
        (
            line.role,
            (f"{line.family}: " if line.family else "") + line.what,
            line.size,
            ceiled_percent(line.clean, places=1),
            _accuracy(line),
            f"{floored_percent(line.lower, places=1)} to {ceiled_percent(line.upper, places=1)}",
            "-" if line.rate is None else f"{100 * line.rate:.1f} ({100 * line.flips:.1f})",  # type: ignore[operator]
        )
        for line in lines
    )
    notes = [
        f"the paper, {first.published['data']}, {first.published['threat']}: clean {first.published['clean'] or '-'}, "
        f"claimed {first.published['claimed']}, adaptive {first.published['adaptive']}"
    ]
    if first.published.get("note"):
        notes.append(first.published["note"])
    flat = [line for line in lines if line.no_gradient]
    notes += [
        f"{line.role}, {line.what}: {line.no_gradient} of {line.inputs} searches saw a gradient of 0 at every step"
        for line in flat
    ]
    notes += [
        "a range: of some images neither was shown; they fell, or they stand (the interval is of the former)"
        for _ in range(any(line.undetermined for line in lines))
    ]
    columns: tuple[str, ...] = (
        "role",
        "attack",
        "size",
        "clean %",
        "accuracy %",
        "95 % interval",
        "draws that fail % (no attack)",
    )
    if all(line.rate is None for line in lines):
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return Table(
        f"{name}  {first.authors}, {first.source}, {first.inputs} images", columns, _left(rows), tuple(notes)
    )


def _left(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    # words to the left, figures to the right
    width = max(len(row[1]) for row in rows)
    return tuple((row[0], row[1].ljust(width), *row[2:]) for row in rows)


def _accuracy(line: CaseLine | None) -> str:
    # where some were neither shown to stand nor to fall, both readings: they fell, or they stand
    if line is None:
        return "-"
    least = ceiled_percent(line.robust, places=1)
    if not line.undetermined:
        return least
    return f"{least} to {ceiled_percent(line.robust + line.undetermined / line.inputs, places=1)}"


def _half_width(inputs: int) -> float:
    interval = clopper_pearson_interval(inputs // 2, inputs, confidence=0.95)
    return 100 * (float(interval.upper) - float(interval.lower)) / 2
