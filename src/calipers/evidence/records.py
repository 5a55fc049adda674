"""Records: what one method found on one input, as plain values with the raw evidence beside the conclusion."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, final

from calipers.errors import StoreCorrupt
from calipers.threat.threat_model import ABSTAIN

__all__ = [
    "Answer",
    "AnyRecord",
    "Attempt",
    "Certificate",
    "Finding",
    "Prediction",
    "Record",
    "record_from_json",
]

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a run.

    Args:
        index: the index of the input in its data set.
        label: its class, -1 where none is known.
        prediction: the class that the method speaks about, or ABSTAIN.
        method: the repr of the method, from which it can be rebuilt.
        target: the fingerprint of the classifier that was measured.
        input_digest: the digest of the input's pixels.
        seed: the seed of the run.
        seconds: the share of the run's time that this input took.
    """

    kind: ClassVar[str] = "record"

    index: int
    label: int
    prediction: int
    method: str
    target: str
    input_digest: str
    seed: int
    seconds: float

    def to_json(self) -> str:
        """Write the record as one line of JSON.

        Returns:
            The text; :func:`record_from_json` reads it back.
        """
        return _encode({field.name: getattr(self, field.name) for field in fields(self)})


@final
@dataclass(frozen=True, slots=True)
class Certificate(Record):
    """A lower bound on the robust radius of one input, with the counts it was made of.

    Args:
        radius: what is proved, in input units, rounded down; 0 where the method abstains. The prediction is
            constant in the open ball of this radius.
        norm: the norm of the ball: l1, l2 or linf.
        alpha: the probability, before the run, that the radius is too large; 0 for a deterministic certificate.
        bound: the kind of bound, such as ``two-sided`` or ``one-sided``.
        theorem: the theorem that gave the radius.
        selected: the class that the selection sample chose.
        counts: votes of the estimation sample for each class, and the failed draws last.
        selection: votes of the selection sample, in the same order.
        p_lower: lower confidence bound on the probability of the selected class.
        p_upper: upper confidence bound on the probability of any other class.
        samples: the number of estimation samples, the sum of ``counts``.
        budget: the largest number of estimation samples that the rule allowed.
        stopping: the stopping rule.
        noise: the noise, with its scale in input units.
        votes: ``hard`` (votes are counted), ``soft`` (scores are averaged), or empty where nothing votes.
        means: mean score of each class (soft votes only).
        variances: sample variance of the scores of each class (soft votes only).
        rival: the other class whose margin gave the radius (Lipschitz certificates only; -1 where none did).
        margin: score of the class minus that of the rival (likewise).
        constant: the bound on the Lipschitz constant of that difference, in the norm of the radius or in l2
            where the theorem says so (likewise).
    """

    kind: ClassVar[str] = "certificate"

    radius: float
    norm: str
    alpha: float
    bound: str
    theorem: str
    selected: int
    counts: tuple[int, ...]
    selection: tuple[int, ...]
    p_lower: float
    p_upper: float
    samples: int
    budget: int
    stopping: str
    noise: str
    votes: str = "hard"
    means: tuple[float, ...] | None = None
    variances: tuple[float, ...] | None = None
    rival: int | None = None
    margin: float | None = None
    constant: float | None = None

    @property
    def abstained(self) -> bool:
        """Whether the method gave no class."""
        return self.prediction == ABSTAIN

    @property
    def correct(self) -> bool:
        """Whether the class is the label; an abstention is not correct."""
        return self.prediction == self.label and self.prediction != ABSTAIN


@final
@dataclass(frozen=True, slots=True)
class Prediction(Record):
    """What a smoothed classifier answers for one input, with the counts behind it.

    Args:
        alpha: the probability, before the run, that the class is not the smoothed classifier's.
        counts: votes for each class, and the failed draws last.
        samples: the sum of ``counts``.
        noise: the noise, with its scale in input units.
    """

    kind: ClassVar[str] = "prediction"

    alpha: float
    counts: tuple[int, ...]
    samples: int
    noise: str

    @property
    def abstained(self) -> bool:
        """Whether the votes did not decide."""
        return self.prediction == ABSTAIN

    @property
    def correct(self) -> bool:
        """Whether the class is the label; an abstention is not correct."""
        return self.prediction == self.label and self.prediction != ABSTAIN


@final
@dataclass(frozen=True, slots=True)
class Attempt(Record):
    """An upper bound on the robust radius of one input, or a search that found none.

    Args:
        success: the goal was reached by the real classifier, inside the box and the ball; for a randomized one, by
            the judge's rule.
        undetermined: neither success nor failure was shown: the classifier abstained where that counts as neither,
            or the interval of a randomized classifier's rate holds one half; or so at the clean input already.
        distance: the size of the perturbation, in input units, rounded up; that of the candidate where there was no
            success.
        norm: the norm of the distance.
        eps: the size that was allowed, in input units; None where the least was looked for.
        goal: the repr of what the adversary wanted.
        judge: the repr of the judge.
        wins: the draws in which the goal was reached.
        draws: the draws made; 1 for a deterministic classifier.
        flips: the draws in which the goal was reached at the clean input, with no attack at all.
        queries: inputs that were answered for this one, the judge's own left out.
        forwards: inputs that were passed forward for it.
        backwards: inputs that were passed backward for it.
        reason: why the search ended.
    """

    kind: ClassVar[str] = "attempt"

    success: bool
    undetermined: bool
    distance: float
    norm: str
    eps: float | None
    goal: str
    judge: str
    wins: int
    draws: int
    flips: int
    queries: int
    forwards: int
    backwards: int
    reason: str

    @property
    def rate(self) -> float:
        """The share of draws in which the goal was reached."""
        return self.wins / self.draws


Answer = Literal["green", "red", "open"]
"""Nothing speaks against the gradient; something does; or the check could not be made."""


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of a diagnosis says, of a classifier as a whole or of one of its modules.

    A red finding is a reason to distrust an attack. Green ones, however many, prove nothing.

    Args:
        check: the name of the check, which is that of its page in the documentation.
        statistic: what was measured; NaN where the check could not be made.
        threshold: where red begins.
        verdict: ``green``, ``red``, or ``open`` where the check could not be made.
        measured: the statistic in words, with its unit and its interval where it has one.
        explanation: what the verdict means.
        remedy: what to do about it; empty where nothing is to be done.
        module: the path of the module that it speaks of; empty for the whole classifier.
        power: what the check could have seen with the inputs and the time that it had.
        seconds: the time it took.
    """

    check: str
    statistic: float
    threshold: float
    verdict: Answer
    measured: str
    explanation: str
    remedy: str
    module: str = ""
    power: str = ""
    seconds: float = 0.0

    @property
    def page(self) -> str:
        """The page of the documentation that explains the check."""
        return f"diagnosis/{self.check}"

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON.

        Returns:
            A mapping.
        """
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "page": self.page}


AnyRecord = Certificate | Prediction | Attempt
_KINDS: dict[str, type[Certificate] | type[Prediction] | type[Attempt]] = {
    Certificate.kind: Certificate,
    Prediction.kind: Prediction,
    Attempt.kind: Attempt,
}
_ROWS = ("counts", "selection", "means", "variances")


def record_from_json(kind: str, text: str) -> AnyRecord:
    """Read a record that :meth:`Record.to_json` wrote.

    Args:
        kind: the kind of the record, as stored beside it.
        text: the JSON.

    Returns:
        The record.

    Raises:
        StoreCorrupt: if the kind is unknown, or the text is damaged or of another version.
    """
    if kind not in _KINDS:
        raise StoreCorrupt(f"a record is of the unknown kind {kind!r}: known are {sorted(_KINDS)}")
    try:
        row: dict[str, Any] = json.loads(text)
    except ValueError as problem:
        raise StoreCorrupt(f"a record is not JSON: {problem}") from None
    for name in _ROWS:
        if row.get(name) is not None:
            row[name] = tuple(row[name])
    try:
        return _KINDS[kind](**row)
    except TypeError as problem:
        raise StoreCorrupt(f"a record of kind {kind!r} has other fields: {problem}") from None
