"""Contradictions: what was proved and what was found cannot both be right; how often chance makes it so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from calipers.errors import CheckFailed, UsageError
from calipers.evidence.bracket import contradict, joined, judge_alpha_of
from calipers.evidence.records import AnyRecord, Attempt, Certificate
from calipers.statistics.tests import binomial_quantile

__all__ = ["Contradiction", "Contradictions", "contradictions"]

_MOST_SHOWN = 3


@final
@dataclass(frozen=True, slots=True)
class Contradiction:
    """A certificate, and an attempt that found another class inside its ball.

    Args:
        certificate: what was proved.
        attempt: what was found.
    """

    certificate: Certificate
    attempt: Attempt

    @property
    def deterministic(self) -> bool:
        """Whether the certificate leaves nothing to chance, so that one of the two is a fault."""
        return self.certificate.alpha == 0

    def text(self) -> str:
        """Show both records.

        Returns:
            Two lines, without a final newline.
        """
        proved, found = self.certificate, self.attempt
        return (
            f"input {proved.index}: class {proved.prediction} proved below {proved.norm} radius {proved.radius!r}"
            f" (alpha {proved.alpha:g}) by {proved.method}, seed {proved.seed}\n"
            f"input {found.index}: class {found.prediction} found at {found.norm} distance {found.distance!r}"
            f" ({found.wins} of {found.draws} draws) by {found.method}, seed {found.seed}"
        )


@final
@dataclass(frozen=True, slots=True)
class Contradictions:
    """The contradictions of a set of records, and how many of them chance may have made.

    Args:
        found: all of them: those of deterministic certificates first.
        inputs: inputs with a deterministic certificate that is contradicted.
        statistical_inputs: inputs with a statistical certificate that is contradicted.
        pairs: inputs with both a statistical certificate and an attempt.
        rate: the probability that chance contradicts one of these: alpha of the certificate, and alpha of the judge
            for each attempt; NaN where it is unknown.
        allowed: so many of them are contradicted at most, except with probability ``rho``; 0 where the rate is unknown,
            since nothing is excused then.
        rho: that probability.
    """

    found: tuple[Contradiction, ...]
    inputs: int
    statistical_inputs: int
    pairs: int
    rate: float
    allowed: int
    rho: float

    @property
    def error(self) -> bool:
        """Whether they are more than chance explains."""
        return self.inputs > 0 or self.statistical_inputs > self.allowed

    def text(self) -> str:
        """Show every contradiction, both records each.

        Returns:
            Two lines a contradiction, without a final newline; empty if there are none.
        """
        return "\n".join(one.text() for one in self.found)

    def check(self) -> None:
        """Stop where there are more contradictions than chance explains.

        Raises:
            CheckFailed: if a deterministic certificate is contradicted, or too many statistical ones are; the message
                shows the records of the first.
        """
        if not self.error:
            return
        if self.inputs:
            several = "1 input contradicts" if self.inputs == 1 else f"{self.inputs} inputs contradict"
            said = f"{several} a deterministic certificate"
        elif math.isnan(self.rate):
            said = (
                f"{self.statistical_inputs} of {self.pairs} inputs contradict their certificate, and chance explains "
                "none while alpha is unknown, that of the certificates or that of the judge"
            )
        else:
            said = (
                f"{self.statistical_inputs} of {self.pairs} inputs contradict their certificate, and chance explains "
                f"{self.allowed} (probability {self.rate:g} each, rho {self.rho:g})"
            )
        shown = " / ".join(one.text().replace("\n", "; ") for one in self.found[:_MOST_SHOWN])
        raise CheckFailed(f"{said}: the certificate, the attack or the record of one is wrong: {shown}")


def contradictions(
    records: Iterable[AnyRecord],
    *,
    method: str | None = None,
    judge_alpha: float | None = None,
    rho: float = 1e-3,
) -> Contradictions:
    """Find every pair of a certificate and an attempt that cannot both be right.

    A certificate proves that its class is the answer in the open ball of its radius. An attempt contradicts it that
    found another class, the label or not, at a smaller distance; an abstention of the judge is no class and contradicts
    nothing. Every pair is looked at, and not the best of each side alone: the failure of a deterministic certificate
    may hide behind a larger statistical radius.

    Of a deterministic certificate (alpha 0) each contradiction is a fault. A statistical one fails with probability
    alpha, and the judge with its own in each attempt, so that the number of inputs contradicted by chance is
    stochastically below Bin(pairs, alpha + attempts * alpha of the judge).

    Args:
        records: certificates and attempts, as :func:`bracket` takes them.
        method: as :func:`bracket` takes it.
        judge_alpha: the probability with which the answer of a smoothed classifier that judged an attempt is not the
            true one; read from the judge of the attempts if None.
        rho: probability that chance alone makes more contradictions than are allowed.

    Returns:
        The contradictions; call :meth:`Contradictions.check` to stop at them.

    Raises:
        UsageError: as :func:`bracket` raises it, or if a probability is none.
    """
    if not 0 < rho < 1:
        raise UsageError(f"rho is {rho}: give a probability inside (0, 1)")
    if judge_alpha is not None and not 0 <= judge_alpha < 1:
        raise UsageError(f"judge_alpha is {judge_alpha}: give a probability inside [0, 1)")
    certificates, attempts = joined(records, method)
    found: list[Contradiction] = []
    rates: list[float] = []
    for index in sorted(certificates):
        tried = attempts.get(index, [])
        for proved in certificates[index]:
            found += [Contradiction(proved, attempt) for attempt in tried if contradict(proved, attempt)]
            if tried and proved.alpha != 0:
                rates.append(proved.alpha + math.fsum(_judged_at(row, judge_alpha) for row in tried))
    rate = max(rates, default=0.0) if not any(math.isnan(one) for one in rates) else math.nan
    allowed = 0 if math.isnan(rate) or not rates else binomial_quantile(rho, len(rates), min(rate, 1.0))
    return Contradictions(
        found=tuple(sorted(found, key=lambda one: (not one.deterministic, one.certificate.index))),
        inputs=len({one.certificate.index for one in found if one.deterministic}),
        statistical_inputs=len({one.certificate.index for one in found if not one.deterministic}),
        pairs=len(rates),
        rate=rate,
        allowed=allowed,
        rho=rho,
    )


def _judged_at(attempt: Attempt, said: float | None) -> float:
    return judge_alpha_of(attempt) if said is None else said
