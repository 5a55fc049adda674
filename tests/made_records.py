"""Records made by hand: a certificate and an attempt that fits it, of which a test changes what it is about."""

from __future__ import annotations

from dataclasses import replace

from calipers.evidence.records import Attempt, Certificate

_PROVED = Certificate(
    index=0,
    label=3,
    prediction=3,
    method="VoteCertifier(alpha=0.001)",
    target="t",
    input_digest="",
    seed=0,
    seconds=0.0,
    radius=0.5,
    norm="l2",
    alpha=0.001,
    bound="two-sided",
    theorem="",
    selected=3,
    counts=(),
    selection=(),
    p_lower=0.9,
    p_upper=0.1,
    samples=1000,
    budget=1000,
    stopping="FixedBudget()",
    noise="Gaussian(sigma=0.25)",
)
_FOUND = Attempt(
    index=0,
    label=3,
    prediction=7,
    method="PGD()",
    target="t",
    input_digest="",
    seed=0,
    seconds=0.0,
    success=True,
    undetermined=False,
    distance=0.8,
    norm="l2",
    eps=1.0,
    goal="Untargeted(abstain='neither')",
    judge="Judge(draws=100, alpha=0.001, rule='majority', quantize=False)",
    wins=1,
    draws=1,
    flips=0,
    queries=10,
    forwards=10,
    backwards=10,
    reason="found",
)


def made_certificate(**changes: object) -> Certificate:
    """A radius of 0.5 in l2 around input 0, of class 3, by votes under Gaussian noise."""
    return replace(_PROVED, **changes)  # type: ignore[arg-type]


def made_attempt(**changes: object) -> Attempt:
    """A success at 0.8 in l2 against input 0, of class 3, which is answered 7 there."""
    return replace(_FOUND, **changes)  # type: ignore[arg-type]
