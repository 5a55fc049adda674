"""Reading logs in the format of Cohen et al., and keeping apart what they say and what they leave out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import final

from calipers.errors import InvalidInput, MissingFile, UsageError
from calipers.evidence.records import AnyRecord, Attempt, Certificate, Prediction
from calipers.runs.lattice import Recovered, lattice, recover
from calipers.runs.log_table import LogRow, read_table
from calipers.runs.spec import NormName, RunSpec
from calipers.runs.store import Measured, RunStore
from calipers.runs.tasks import Conditions
from calipers.threat.threat_model import ABSTAIN, Norm, Untargeted
from calipers.threat.units import Size, parse_sized_norm

__all__ = ["ImportedLog", "read_log"]

_WORD = "as the log's author judged it"
_REASON = "imported: the distance is the size that was allowed, an upper bound"


@final
@dataclass(frozen=True)
class ImportedLog:
    """A log, read.

    Args:
        spec: the specification under which it is stored; its source is the hash of the file.
        records: certificates; predictions where the log has no radii; attempts where those were made under attack.
            They have no counts, so that no other question can be asked of them; what the log does not say is
            NaN, 0 or empty, and never filled in.
        recovered: what the largest radii give away; None for predictions and for norms other than l2.
        notes: what was found and what cannot be known, in words.
    """

    spec: RunSpec
    records: tuple[AnyRecord, ...]
    recovered: Recovered | None
    notes: tuple[str, ...]

    def save(self, store: RunStore) -> int:
        """Store the log as a run of its own.

        Args:
            store: a store that was opened with the specification of the log.

        Returns:
            The number of records that were not there yet.

        Raises:
            UsageError: if the store is of another specification.
        """
        if store.spec != self.spec:
            raise UsageError(
                f"{store.path} was opened with another specification: open it with that of the log"
            )
        conditions = Conditions(_target(self.spec), "", 0)
        rows = [
            Measured(conditions.key(self.spec, index=row.index, label=row.label, digest=""), [row])
            for row in self.records
        ]
        added = store.append(rows)
        if added:
            store.note("imported", {"notes": list(self.notes), "total": len(rows)})
        return added


def read_log(
    path: str | Path,
    *,
    sigma: float | None = None,
    n: int | None = None,
    alpha: float | None = None,
    norm: NormName | None = None,
    attacked: str | None = None,
    target: str = "",
    model: str = "",
    data: str = "",
) -> ImportedLog:
    """Read a log of certificates or predictions, plain or compressed by gzip.

    Columns are found by their names (``idx label predict radius correct time``), separated by tabs;
    ``label``, ``correct``, ``time`` and others may be missing or there. Radii are read as they stand: three
    significant digits, so that half of them were rounded up by as much as half a unit of the third.

    Predictions under attack become attempts of the size that was allowed: a success where the class is another
    than the label, undetermined where the classifier abstains. How much of that size was used the log does not
    say, so that the distance of each attempt is the whole of it, rounded up.

    Args:
        path: the file.
        sigma: the standard deviation of the noise, if known; the log does not say it.
        n: the number of samples, if known.
        alpha: the failure probability, if known: of a certificate, or of an answer that was judged.
        norm: the norm of the radii; l2 if None.
        attacked: norm and size of the attack under which the predictions were made, such as ``l2:0.5``.
        target: a name for the classifier, the same for all logs of it: no log identifies what it measured, so that
            records of two are joined by this word alone; empty joins with nothing.
        model: what was certified, for the reader.
        data: on which data, for the reader.

    Returns:
        The records, and what could be recovered from the radii.

    Raises:
        MissingFile: if there is no such file.
        InvalidInput: if a line cannot be read or contradicts itself; the message names it.
        UsageError: if what is said to be known contradicts the radii, or the log is none of an attack.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"there is no log at {path}")
    content = path.read_bytes()
    source = hashlib.sha256(content).hexdigest()
    columns, rows = read_table(path, content)
    size = None if attacked is None else _size(path, attacked, norm=norm, alpha=alpha, columns=columns)
    predictions = "radius" not in columns
    found = None
    if not predictions and norm in (None, "l2"):
        found = recover((row.number("radius") for row in rows), sigma=sigma, n=n, alpha=alpha)
        _check_claims(path, rows, found, sigma=sigma, n=n, alpha=alpha)
    known = found or Recovered(sigma, n, alpha, (), 0, "")
    what = (
        "certificates" if not predictions else ("predictions" if size is None else "predictions under attack")
    )
    spec = RunSpec(
        kind="import",
        model=model or target.strip() or "unknown",
        data=data or "unknown",
        method=f"{what} read from {path.name}",
        norm=(norm or "l2") if size is None else size[0].value,
        noise="" if known.sigma is None else f"Gaussian(sigma={known.sigma!r})",
        votes="hard",
        eps="" if size is None else str(size[1]),
        source=source,
        judge="" if size is None else _judge(known),
        target=target.strip(),
    )
    if size is not None:
        records: tuple[AnyRecord, ...] = tuple(_attempt(row, spec, size[1]) for row in rows)
    else:
        make = _prediction if predictions else _certificate
        records = tuple(make(row, spec, known) for row in rows)
    _check_indices(path, records)
    return ImportedLog(spec, records, found, _notes(spec, known, what, labelled="label" in columns))


def _target(spec: RunSpec) -> str:
    """What the records name as their classifier: never a fingerprint, so that no measured run is joined by a word."""
    return f"named:{spec.target}" if spec.target else f"imported:{spec.source}"


def _size(
    path: Path, attacked: str, *, norm: NormName | None, alpha: float | None, columns: Sequence[str]
) -> tuple[Norm, Size]:
    if "radius" in columns:
        raise UsageError(f"{path} has radii: only a log of predictions is one under attack ({attacked})")
    if "label" not in columns:
        raise UsageError(f"{path} has no labels: which attacks succeeded cannot be told without them")
    found = parse_sized_norm(attacked)
    if norm is not None and norm != found[0].value:
        raise UsageError(
            f"norm is {norm} and the attack is {attacked}: leave --norm out, or correct one of them"
        )
    if alpha is not None and not 0 <= alpha < 1:
        raise UsageError(f"alpha is {alpha}: give a probability inside [0, 1)")
    return found


def _judge(known: Recovered) -> str:
    samples = "" if known.n is None else f"n={known.n}, "
    return f"{_WORD} ({samples}alpha={math.nan if known.alpha is None else known.alpha!r})"


def _certificate(row: LogRow, spec: RunSpec, known: Recovered) -> Certificate:
    index, prediction, label = row.answer()
    radius = row.number("radius")
    if prediction == ABSTAIN and radius > 0:
        raise InvalidInput(f"{row.place}: radius is {radius} for an abstention, which proves none")
    return Certificate(
        index=index,
        label=label,
        prediction=prediction,
        method=spec.method,
        target=_target(spec),
        input_digest="",
        seed=0,
        seconds=row.seconds(),
        radius=radius,
        norm=spec.norm,
        alpha=math.nan if known.alpha is None else known.alpha,
        bound="one-sided" if known.fitting else "unknown",
        theorem="as the log's author computed it",
        selected=prediction,
        counts=(),
        selection=(),
        p_lower=math.nan,
        p_upper=math.nan,
        samples=0,
        budget=known.n or 0,
        stopping="",
        noise=spec.noise,
    )


def _attempt(row: LogRow, spec: RunSpec, size: Size) -> Attempt:
    index, prediction, label = row.answer()
    if label < 0:
        raise InvalidInput(
            f"{row.place}: label is {label}: whether the attack succeeded cannot be told without it"
        )
    success = prediction not in (label, ABSTAIN)
    distance = float(size)
    return Attempt(
        index=index,
        label=label,
        prediction=prediction,
        method=spec.method,
        target=_target(spec),
        input_digest="",
        seed=0,
        seconds=row.seconds(),
        success=success,
        undetermined=prediction == ABSTAIN,
        distance=math.nextafter(distance, math.inf) if Fraction(distance) < size.exact else distance,
        norm=spec.norm,
        eps=distance,
        goal=repr(Untargeted()),
        judge=spec.judge,
        wins=int(success),
        draws=1,
        flips=0,
        queries=0,
        forwards=0,
        backwards=0,
        reason=_REASON,
    )


def _prediction(row: LogRow, spec: RunSpec, known: Recovered) -> Prediction:
    index, prediction, label = row.answer()
    return Prediction(
        index=index,
        label=label,
        prediction=prediction,
        method=spec.method,
        target=_target(spec),
        input_digest="",
        seed=0,
        seconds=row.seconds(),
        alpha=math.nan if known.alpha is None else known.alpha,
        counts=(),
        samples=0,
        noise=spec.noise,
    )


def _check_indices(path: Path, records: Sequence[AnyRecord]) -> None:
    seen: set[int] = set()
    for row in records:
        if row.index in seen:
            raise InvalidInput(f"{path} has input {row.index} twice: keep one line for each")
        seen.add(row.index)


def _check_claims(
    path: Path,
    rows: Sequence[LogRow],
    found: Recovered,
    *,
    sigma: float | None,
    n: int | None,
    alpha: float | None,
) -> None:
    largest = max(row.number("radius") for row in rows)
    if sigma is not None and n is not None and alpha is not None:
        highest = lattice(sigma, n, alpha, least=0.0)[0]
        if largest > highest:
            raise UsageError(
                f"{path} has a radius of {largest}, and sigma = {sigma:g}, N = {n}, alpha = {alpha:g} allow at most "
                f"{highest}: one of them is another"
            )
    if alpha is not None and not found.fitting:
        free = recover((row.number("radius") for row in rows), sigma=sigma, n=n)
        if free.alpha is not None and free.alpha != alpha:
            raise UsageError(
                f"alpha is said to be {alpha:g}, and the radii of {path} lie on the lattice of alpha = {free.alpha:g}: "
                "leave --alpha out, or correct it"
            )


def _notes(spec: RunSpec, known: Recovered, what: str, *, labelled: bool) -> tuple[str, ...]:
    notes = [known.note] if known.note else []
    unknown = [
        name
        for name, value in (("sigma", known.sigma), ("N", known.n), ("alpha", known.alpha))
        if value is None
    ]
    if unknown:
        notes.append(f"unknown: {', '.join(unknown)}")
    notes.append("the log has no counts: it can be shown and compared, and not recertified")
    if what == "certificates":
        notes.append(
            "radii are as the log gives them, rounded to three digits: up to half a unit of the third too large"
        )
    if not labelled:
        notes.append("the log has no labels: certified accuracy cannot be told")
    if spec.eps:
        notes.append(
            f"the distance of each attempt is {spec.eps}, the size that was allowed: how much of it was used, and what "
            "the clean input was answered, the log does not say"
        )
    if spec.target:
        notes.append(
            f"that this is of the classifier {spec.target!r} is your word: the log does not identify it"
        )
    elif what != "predictions":
        notes.append(
            "the log does not identify its classifier: name it by --target to join it with another log"
        )
    return tuple(notes)
