"""Two runs joined, one that proves and one that attacks: robust accuracy between them, on the inputs of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, final

from calipers.errors import UsageError
from calipers.evidence.bracket import Estimated
from calipers.evidence.records import AnyRecord, Attempt, Certificate
from calipers.report.attempts import readings
from calipers.report.jaws import Jaws, close_jaws
from calipers.report.tables import ceiled_percent, columns_of, floored_percent
from calipers.statistics.intervals import clopper_pearson_interval

__all__ = ["Joined", "join_runs"]


@final
@dataclass(frozen=True)
class Joined:
    """What certificates and attempts say together of the inputs that have both.

    Args:
        jaws: the brackets of those inputs.
        inputs: how many they are.
        labelled: those of them with a label, which the shares are of.
        only_certified: inputs with certificates alone, left out.
        only_attacked: inputs with attempts alone, left out.
        eps: the size that the attacks were allowed; None where it was not one and the same, and what follows is None.
        certified: the share of inputs whose label is proved up to that size.
        standing: the share of inputs at which no attempt succeeded; an undetermined one counts as a success, but for
            the upper end of the interval.
        undetermined: inputs that count as fallen for an undetermined attempt alone.
    """

    jaws: Jaws
    inputs: int
    labelled: int
    only_certified: int
    only_attacked: int
    eps: float | None
    certified: Estimated | None
    standing: Estimated | None
    undetermined: int | None

    def to_dict(self) -> dict[str, Any]:
        """Give the same as plain values for JSON.

        Returns:
            A mapping.
        """
        told: dict[str, Any] = {
            "inputs": self.inputs,
            "labelled": self.labelled,
            "only_certified": self.only_certified,
            "only_attacked": self.only_attacked,
            "eps": self.eps,
            "certified": None if self.certified is None else asdict(self.certified),
            "standing": None if self.standing is None else asdict(self.standing),
            "undetermined": self.undetermined,
        }
        return told | {"brackets": self.jaws.to_dict()}

    def text(self, *, most: int = 40) -> str:
        """Draw the brackets and write what they say.

        Args:
            most: lines of bars at most.

        Returns:
            Lines without a final newline.
        """
        found = [("inputs of both", str(self.inputs))]
        if self.only_certified or self.only_attacked:
            left = f"{self.only_certified} only certified, {self.only_attacked} only attacked"
            found.append(("left out", left))
        if self.eps is not None and self.certified is not None and self.standing is not None:
            at = f"at {self.jaws.summary.norm} {self.eps:g}"
            low, high = self.certified, self.standing
            found += [
                (f"certified {at}", f"{floored_percent(low.value)} % at least {_interval(low)}"),
                (
                    f"attacked {at}",
                    f"{readings(high.value, self.undetermined or 0, self.labelled)} {_interval(high)}",
                ),
            ]
        if self.undetermined:
            found.append(("undetermined", f"{self.undetermined}: they fall, or they stand"))
        return self.jaws.text(most=most) + "\n\n" + columns_of(found)


def join_runs(records: Iterable[AnyRecord]) -> Joined:
    """Join records of several runs on the inputs that have a certificate and an attempt.

    Args:
        records: certificates and attempts of one classifier and norm.

    Returns:
        What they say together.

    Raises:
        UsageError: if no input has both, or the records are of several questions (see
            :func:`calipers.evidence.bracket.bracket`).
    """
    rows = [row for row in records if isinstance(row, Certificate | Attempt)]
    proved = {row.index for row in rows if isinstance(row, Certificate)}
    tried = {row.index for row in rows if isinstance(row, Attempt)}
    both = proved & tried
    if not both:
        raise UsageError(
            f"no input has a certificate and an attempt ({len(proved)} have the one, {len(tried)} the other): join "
            "runs of the same data"
        )
    kept = [row for row in rows if row.index in both]
    jaws = close_jaws(kept)
    sizes = {row.eps for row in kept if isinstance(row, Attempt)}
    size = sizes.pop() if len(sizes) == 1 else None
    left = (len(proved - both), len(tried - both))
    labelled = [row for row in jaws.brackets if row.label >= 0]
    if size is None:
        return Joined(jaws, len(both), len(labelled), *left, None, None, None, None)
    fallen, unsure = set[int](), set[int]()
    for row in kept:
        if isinstance(row, Attempt):
            fallen |= {row.index} if row.success else set()
            unsure |= {row.index} if row.undetermined else set()
    unsure = {row.index for row in labelled} & (unsure - fallen)
    standing = sum(row.index not in fallen | unsure for row in labelled)
    least, most = (_share(count, len(labelled)) for count in (standing, standing + len(unsure)))
    return Joined(
        jaws,
        len(both),
        len(labelled),
        *left,
        size,
        _share(sum(row.lower_radius >= size for row in labelled), len(labelled)),
        replace(least, upper=most.upper),
        len(unsure),
    )


def _share(count: int, inputs: int) -> Estimated:
    interval = clopper_pearson_interval(count, inputs, confidence=0.95)
    return Estimated(count / inputs, float(interval.lower), float(interval.upper))


def _interval(figure: Estimated) -> str:
    return f"(95 % interval {floored_percent(figure.lower)} to {ceiled_percent(figure.upper)})"
