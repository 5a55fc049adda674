"""Recertifying: another failure probability or another bound, answered from the counts that a run stored."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from calipers.errors import UsageError
from calipers.evidence.records import Certificate
from calipers.runs.descriptions import changed
from calipers.runs.reread import reread
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore
from calipers.runs.tasks import Conditions

__all__ = ["Recertified", "recertify"]

_NOT_OF_A_READING = ("plan", "attack plan", "attack revision")


@final
@dataclass(frozen=True)
class Recertified:
    """Another reading of a run.

    Args:
        spec: its specification: that of the run with another method, and the run named as its source.
        facts: what the run's references turned out to be.
        certificates: the new certificates, ordered by input.
        total: how many there will be when the run is finished; None where that is not known.
    """

    spec: RunSpec
    facts: dict[str, str]
    certificates: list[Certificate]
    total: int | None

    def save(self, store: RunStore) -> int:
        """Store the reading as a run of its own.

        Args:
            store: a store that was opened with the specification of this reading.

        Returns:
            The number of certificates that were not there yet.

        Raises:
            UsageError: if the store is of another specification.
        """
        if store.spec != self.spec:
            raise UsageError(
                f"{store.path} was opened with another specification: open it with that of the reading"
            )
        store.settle(self.facts)
        conditions = Conditions(self.facts.get("target", ""), "", 0)
        added = store.append(
            Measured(
                conditions.key(self.spec, index=row.index, label=row.label, digest=row.input_digest), [row]
            )
            for row in self.certificates
        )
        if self.total is not None and store.progress()[1] != self.total:
            store.note("recertified", {"total": self.total})
        return added


def recertify(
    store: RunStore, *, alpha: float | None = None, bound: str | None = None, validity: str | None = None
) -> Recertified:
    """Read the counts of a run again, all of them by the same question.

    A certificate's failure probability is a promise made before its draws were seen. Reading the same
    counts in several ways and keeping the best one for each input spends the failure probabilities of all
    of them together; a reading is therefore of the whole run, and what it asks for should not be chosen by
    what it gives.

    Counts that a run drew until it was decided are read by bounds that hold at any time, whatever the
    question; a bound for a fixed number of samples is refused for them (Unsound).

    Args:
        store: a run with certificates from hard or soft votes.
        alpha: the probability that one new certificate fails; that of the run if None.
        bound: ``two-sided`` or ``one-sided`` (hard votes), ``empirical-bernstein`` or ``hoeffding`` (soft);
            that of the run if None.
        validity: ``fixed`` or ``anytime``; what the run's stopping rule allows if None.

    Returns:
        The reading.

    Raises:
        UsageError: if the run has no certificates, or its certificates have no counts.
    """
    rows = store.certificates()
    if not rows:
        if store.spec.kind == "predict":
            raise UsageError(
                f"{store.path} holds predictions, and only certificates can be read again: use certify"
            )
        raise UsageError(f"{store.path} has no certificates yet: run the command that began it again")
    old = rows[0]
    chosen = old.alpha if alpha is None else alpha
    side = old.bound if bound is None else bound
    facts = {name: text for name, text in store.facts().items() if name not in _NOT_OF_A_READING}
    found = reread(
        rows, alpha=chosen, bound=side, validity=validity, dimension=_dimension(facts.get("input shape"))
    )
    spec = replace(
        store.spec,
        kind="recertify",
        method=changed(old.method, {"alpha": chosen, _bound_field(old): side}),
        source=f"{store.spec.hash} {validity or ''}".strip(),
        attack="",
        judge="",
    )
    total = store.progress()[1]
    if store.spec.kind == "bracket" and total is not None:
        total //= 2
    return Recertified(spec, facts, found, total)


def _bound_field(row: Certificate) -> str:
    return "mean_bound" if row.votes == "soft" else "bound"


def _dimension(shape: str | None) -> int | None:
    return math.prod(int(side) for side in shape.split("x")) if shape else None
