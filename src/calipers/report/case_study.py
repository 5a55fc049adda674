"""The table of a case study: each defense's accuracy under each attack, beside what its paper printed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, final

from calipers.errors import UsageError
from calipers.evidence.bracket import judge_alpha_of
from calipers.evidence.records import Attempt
from calipers.report.counts import counted
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
        upper: upper end of that of the share that was not shown to fall: the two are one where nothing is undetermined.
        confidence: the probability with which each of the two intervals holds its share.
        undetermined: inputs of which neither was shown; they count as not robust.
        flips: mean share of draws that fail with no attack, for a randomized classifier.
        rate: mean share of draws that fail under attack.
        no_gradient: searches that saw a gradient of 0 at every step.
        distance: median distance of the adversarial examples; infinite where there is none.
        seconds: time of the search and the judge, summed.
        clean_undetermined: inputs whose answer with no attack was shown to be neither right nor wrong, for a randomized
            classifier; they count as not right.
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
    clean_undetermined: int = 0

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
    clean_wrong: Collection[int] | None = None,
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
        clean_wrong: the indices of clean inputs that a detector answers wrongly or rejects, which never stand; what it
            rejects under attack alone does. None for another classifier, of which the attempts say it.
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
    # what a detector rejects under attack is no success of it, and stands; what it rejects with none stands for nothing
    rejects, wrong = clean_wrong is not None, frozenset(clean_wrong or ())
    fallen = [row for row in rows if (row.success and row.distance <= reach) or row.index in wrong]
    down = {row.index for row in fallen}
    # of a detector that draws, the draws may not have said so
    unsure = [_is_open_when_clean(row) for row in rows]
    undetermined = sum(
        row.index not in down
        and (open_ or (row.undetermined and row.distance <= reach and (row.draws > 1 or not rejects)))
        for row, open_ in zip(rows, unsure, strict=True)
    )
    robust = len(rows) - len(fallen) - undetermined
    # both readings: what is undetermined fell, or it stands
    least = clopper_pearson_interval(robust, len(rows), confidence=confidence)
    most = clopper_pearson_interval(robust + undetermined, len(rows), confidence=confidence)
    right = sum(row.reason != "already wrong" for row in rows) - sum(unsure)
    random = any(row.draws > 1 for row in rows)
    moved = sorted(row.distance for row in fallen if row.success and row.reason != "already wrong")
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
        clean=(len(rows) - len(wrong)) / len(rows) if rejects else right / len(rows),
        robust=robust / len(rows),
        lower=float(least.lower),
        upper=float(most.upper),
        confidence=confidence,
        undetermined=undetermined,
        flips=sum(row.flips / row.draws for row in rows) / len(rows) if random else None,
        rate=sum(row.rate for row in rows) / len(rows) if random else None,
        no_gradient=sum(row.reason == "no gradient" for row in rows),
        distance=moved[len(moved) // 2] if moved else math.inf,
        seconds=sum(row.seconds for row in rows),
        clean_undetermined=0 if rejects else sum(unsure),
    )


def _is_open_when_clean(row: Attempt) -> bool:
    # with no attack, by the majority rule: the interval of the rate of failure holds one half
    if row.draws == 1 or row.reason == "already wrong" or "rule='majority'" not in row.judge:
        return False
    confidence = 1 - judge_alpha_of(row)
    return float(clopper_pearson_interval(row.flips, row.draws, confidence=confidence).upper) >= 0.5


def case_tables(lines: Sequence[CaseLine]) -> tuple[Table, ...]:
    """Give each defense as a table, a row a measurement.

    Args:
        lines: the measurements, those of a defense together.

    Returns:
        A table a defense.
    """
    return tuple(_table(name, tuple(group)) for name, group in groupby(lines, key=lambda line: line.defense))


def _printed(found: Sequence[CaseLine]) -> str:
    """Give the published adaptive figure, where what was measured has the norm that it is printed for."""
    norms = {line.size.split()[0] for line in found if line.role == "adaptive"}
    published = found[0].published
    norm = published["threat"].replace(",", " ").split()[0]
    return published["adaptive"] if not norms or norm in norms else "-"


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
        size = next((_size(line) for line in found if line.role == "adaptive"), None)
        cells = [_strongest([line for line in found if line.role == role], size) for role in _COLUMNS]
        judged = [line for line in found if line.role != "undefended"]
        clean = _clean(judged[0]) if judged else "-"
        rows.append((name + (f", {family}" if family else ""), clean, *cells, _printed(found)))
    inputs = sorted({line.inputs for line in lines})
    spoken = " or ".join(counted(count, "image") for count in inputs)
    return Table(
        "",
        ("accuracy, %", "clean", *_COLUMNS, "adaptive, in the literature"),
        tuple(rows),
        (
            f"{spoken}; half the width of a 95 % interval of one reading is at most "
            f"{_half_width(min(inputs))} points. naive: the paper's own attack, at another",
            "size where one is given. matched: the adaptive attack's size, steps and loss, with autograd's gradient.",
            "Every figure is judged on the defense itself.",
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
            _clean(line),
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
        f"{line.role}, {line.what}: {line.no_gradient} of {counted(line.inputs, 'search', 'searches')} saw a gradient "
        "of 0 at every step"
        for line in flat
    ]
    notes += [
        "a range: of some images neither was shown; they fell, or they stand (the interval is of both readings)"
        for _ in range(any(line.undetermined or line.clean_undetermined for line in lines))
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
        f"{name}  {first.authors}, {first.source}, {counted(first.inputs, 'image')}",
        columns,
        _left(rows),
        tuple(notes),
    )


def _left(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    # words to the left, figures to the right
    width = max(len(row[1]) for row in rows)
    return tuple((row[0], row[1].ljust(width), *row[2:]) for row in rows)


def _size(line: CaseLine) -> str:
    # without its other unit
    return line.size.partition(" (")[0]


def _strongest(lines: Sequence[CaseLine], size: str | None) -> str:
    # of the attacks at the size of the adaptive one, or where there is none, of the others, with their size
    if not lines:
        return "-"
    alike = [line for line in lines if size in (None, _size(line))]
    found = min(alike or lines, key=lambda line: line.robust)
    return _accuracy(found) + ("" if alike else f" ({_size(found)})")


def _accuracy(line: CaseLine) -> str:
    return _readings(line.robust, line.undetermined, line.inputs)


def _clean(line: CaseLine) -> str:
    return _readings(line.clean, line.clean_undetermined, line.inputs)


def _readings(share: float, undetermined: int, inputs: int) -> str:
    # where of some neither was shown, both readings: without them, and with them
    least = ceiled_percent(share, places=1)
    if not undetermined:
        return least
    # counted, and not added as shares, whose sum may be a hair above
    return f"{least} to {ceiled_percent((round(share * inputs) + undetermined) / inputs, places=1)}"


def _half_width(inputs: int) -> str:
    interval = clopper_pearson_interval(inputs // 2, inputs, confidence=0.95)
    return ceiled_percent((float(interval.upper) - float(interval.lower)) / 2, places=1)
