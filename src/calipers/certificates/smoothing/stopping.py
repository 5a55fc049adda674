"""When to stop sampling: after a fixed budget, or as soon as the radii that were asked for are decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from calipers.errors import UsageError
from calipers.statistics.intervals import check_alpha, clopper_pearson_lower, clopper_pearson_upper
from calipers.statistics.sequences import anytime_lower, anytime_upper

__all__ = [
    "CHUNK",
    "FIXED_BUDGET",
    "Bound",
    "DecideRadii",
    "FixedBudget",
    "RadiusFunction",
    "StoppingRule",
    "Validity",
    "check_votes",
    "checkpoints",
    "decide",
    "vote_bounds",
]

CHUNK: Final = 100
"""Samples between two places where a run may stop; also the size of a chunk of noise."""

Bound = Literal["two-sided", "one-sided"]
Validity = Literal["fixed", "anytime"]
RadiusFunction = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""From arrays of p_lower and p_upper to radii, rounded down, 0 where nothing is certified."""

_GROWTH = 1.1
"""Ratio of successive checkpoints once they are more than a chunk apart."""

_HORIZONS = np.array([1.5, 2.0, 3.0, 4.5, 7.0, 12.0, 25.0, 60.0, 200.0, 1e15])
"""Multiples of the samples drawn at which :func:`decide` looks ahead."""

_PATIENCE = 0.03
"""Chance of success, per budget spent, below which a radius is given up (see :func:`decide`)."""


@final
@dataclass(frozen=True)
class FixedBudget:
    """Draw every sample of the budget, whatever the votes say; bounds for a fixed number of samples apply."""


@final
@dataclass(frozen=True)
class DecideRadii:
    """Stop as soon as every radius asked for is certified or given up; only anytime bounds apply afterwards.

    Args:
        radii: radii in input units, 0 or more; kept sorted, each once. Radius 0 asks for no abstention.

    Raises:
        UsageError: if there is no radius, or one is negative or not finite.

    Example:
        >>> DecideRadii((0.5, 0.25))
        DecideRadii(radii=(0.25, 0.5))
    """

    radii: tuple[float, ...]

    def __post_init__(self) -> None:
        radii = tuple(sorted({float(radius) for radius in self.radii}))
        if not radii or not all(math.isfinite(radius) and radius >= 0.0 for radius in radii):
            raise UsageError(
                f"radii is {self.radii}: give one or more numbers, 0 or more, such as (0.25, 0.5)"
            )
        object.__setattr__(self, "radii", radii)


StoppingRule = FixedBudget | DecideRadii

FIXED_BUDGET: Final = FixedBudget()
"""The default stopping rule."""


def checkpoints(stopping: StoppingRule, budget: int) -> tuple[int, ...]:
    """List the numbers of samples at which a run looks at its votes.

    They depend on nothing but the budget, so a run that is resumed or packed differently stops at the same
    place. Looking more often costs a little time and no validity, since the bounds are anytime; the ratio
    of 1.1 lets a run overshoot by 5 % on average.

    Args:
        stopping: the stopping rule.
        budget: the largest number of samples.

    Returns:
        Rising multiples of ``CHUNK``, then the budget itself; the budget alone for a fixed one.

    Raises:
        UsageError: if the budget is not a positive number of samples.

    Example:
        >>> checkpoints(DecideRadii((0.5,)), 1000)
        (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    """
    if budget < 1:
        raise UsageError(f"budget is {budget} samples: it must be 1 or more")
    if isinstance(stopping, FixedBudget):
        return (budget,)
    points: list[int] = []
    point = CHUNK
    while point < budget:
        points.append(point)
        point = max(point + CHUNK, math.ceil(point * _GROWTH / CHUNK) * CHUNK)
    return (*points, budget)


def check_votes(
    counts: NDArray[np.int64], selected: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Read the votes for the selected class and the worst case for its runner-up out of full count vectors.

    A failed draw (NaN, infinite or tied logits) counts against the selected class and for each of the
    others, so that the bounds hold whatever the class would have been.

    Args:
        counts: votes for each class, and the failed draws last, images x (K + 1).
        selected: class chosen by the selection sample (images,); -1 where it chose none.

    Returns:
        Votes for the selected class (0 where there is none), the most votes any other class can have had,
        and the samples drawn: each (images,), float64.

    Raises:
        UsageError: if the shapes do not fit, counts are negative or no whole numbers, or a class is out of
        range.
    """
    if counts.ndim != 2 or counts.shape[1] < 3 or selected.shape != counts.shape[:1]:
        raise UsageError(
            f"counts of shape {counts.shape} and {selected.shape} selected classes: expected images x (K + 1)"
        )
    if not np.issubdtype(counts.dtype, np.integer) or (counts.size and counts.min() < 0):
        raise UsageError(f"counts of type {counts.dtype} must be whole numbers, 0 or more")
    n_classes = counts.shape[1] - 1
    if not np.issubdtype(selected.dtype, np.integer) or not np.all((selected >= -1) & (selected < n_classes)):
        raise UsageError(f"selected classes must lie in 0..{n_classes - 1}, or be -1 for none")
    rows = np.arange(len(counts))
    chosen = np.maximum(selected, 0)
    for_a = np.where(selected >= 0, counts[rows, chosen], 0)
    others = counts[:, :-1].copy()
    others[rows, chosen] = 0
    samples = counts.sum(axis=1)
    for_b = np.where(selected >= 0, others.max(axis=1) + counts[:, -1], samples)
    return for_a.astype(np.float64), for_b.astype(np.float64), samples.astype(np.float64)


def vote_bounds(
    for_a: NDArray[np.float64],
    for_b: NDArray[np.float64],
    samples: NDArray[np.float64],
    *,
    alpha: float,
    bound: Bound,
    validity: Validity,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bound the probability of the selected class from below and that of every other class from above.

    Two-sided, each bound has half of alpha. The bound of the largest other count covers the true runner-up,
    which is one of the others: both kinds of bound grow with the count, so no union over the classes is
    needed. It is capped at 1 - p_lower, which holds whenever p_lower does. One-sided, the cap is all there
    is.

    Args:
        for_a: votes for the selected class (images,).
        for_b: most votes of any other class (images,).
        samples: samples drawn (images,).
        alpha: probability that one of the two bounds fails.
        bound: ``"two-sided"`` or ``"one-sided"``.
        validity: ``"fixed"`` for a number of samples fixed before the run (Clopper and Pearson),
            ``"anytime"`` for a run that may have been stopped for any reason.

    Returns:
        ``p_lower`` and ``p_upper``, each (images,), rounded outward.

    Raises:
        UsageError: if ``alpha``, ``bound`` or ``validity`` is not one that there is.
    """
    if bound not in ("two-sided", "one-sided") or validity not in ("fixed", "anytime"):
        raise UsageError(
            f"bound {bound!r}, validity {validity!r}: choose two-sided or one-sided, fixed or anytime"
        )
    check_alpha(alpha)
    lower = clopper_pearson_lower if validity == "fixed" else anytime_lower
    upper = clopper_pearson_upper if validity == "fixed" else anytime_upper
    p_lower = lower(for_a, samples, alpha=alpha if bound == "one-sided" else alpha / 2.0)
    p_upper = np.minimum(np.where(p_lower > 0.0, np.nextafter(1.0 - p_lower, 2.0), 1.0), 1.0)
    if bound == "two-sided":
        p_upper = np.minimum(p_upper, upper(for_b, samples, alpha=alpha / 2.0))
    return p_lower, p_upper


def _hopeful(
    for_a: NDArray[np.float64],
    for_b: NDArray[np.float64],
    samples: NDArray[np.float64],
    wanted: NDArray[np.float64],
    budget: int,
    radius: RadiusFunction,
    alpha: float,
    bound: Bound,
) -> NDArray[np.bool_]:
    """Guess which images can still reach the wanted radius at a price worth paying.

    Returns:
        One guess an image; nothing rests on it but the number of samples drawn.
    """
    horizons = np.minimum(np.ceil(samples[:, None] * _HORIZONS), budget)
    chance = _PATIENCE * (horizons - samples[:, None]) / budget
    shift = -special.ndtri(chance) * 0.5 * np.sqrt(np.maximum(1.0 / samples[:, None] - 1.0 / horizons, 0.0))
    angle_a = np.arcsin(np.sqrt((for_a[:, None] + 0.375) / (samples[:, None] + 0.75)))
    angle_b = np.arcsin(np.sqrt((for_b[:, None] + 0.375) / (samples[:, None] + 0.75)))
    then_a = np.sin(np.minimum(angle_a + shift, np.pi / 2.0)) ** 2
    then_b = np.minimum(np.sin(np.maximum(angle_b - shift, 0.0)) ** 2, 1.0 - then_a)
    p_lower, p_upper = vote_bounds(
        np.ceil(then_a * horizons),
        np.floor(then_b * horizons),
        horizons,
        alpha=alpha,
        bound=bound,
        validity="anytime",
    )
    reached = radius(p_lower, p_upper)
    hopeful: NDArray[np.bool_] = np.any((reached > 0.0) & (reached >= wanted[:, None]), axis=1)
    return hopeful


def decide(
    counts: NDArray[np.int64],
    *,
    stopping: StoppingRule,
    selected: NDArray[np.int64],
    budget: int,
    radius: RadiusFunction,
    alpha: float,
    bound: Bound = "two-sided",
) -> NDArray[np.bool_]:
    r"""Say for each waiting image whether it is done.

    Under :class:`DecideRadii` an image is done when every radius is certified by the anytime bounds or
    given up. Radii are nested, so the smallest one that is not certified yet decides. It is given up when
    at no later number of samples :math:`n` up to the budget :math:`N` its chance to be certified is above
    :math:`\kappa (n - t) / N`: then sampling on is expected to gain fewer than :math:`\kappa` certificates
    per budget spent. The chance comes of the share of votes at :math:`n` given that at :math:`t`, normal in
    the arcsine scale with variance :math:`(1/t - 1/n)/4`. Giving up is never a matter of validity, only of
    certified accuracy: :math:`\kappa` was set on synthetic vote probabilities, not on the data that the
    benchmarks judge.

    Args:
        counts: votes so far for each class, and the failed draws last, images x (K + 1).
        stopping: the stopping rule.
        selected: class chosen by the selection sample (images,); -1 for none.
        budget: the largest number of samples of one image.
        radius: the theorem, from arrays of p_lower and p_upper to radii.
        alpha: probability that a certificate fails.
        bound: ``"two-sided"`` or ``"one-sided"``.

    Returns:
        Whether to stop (images,).
    """
    for_a, for_b, samples = check_votes(counts, selected)
    spent = samples >= budget
    if isinstance(stopping, FixedBudget):
        return spent
    stop = spent | (selected < 0)
    open_ = ~stop & (samples > 0)
    if not open_.any():
        return stop
    at = np.flatnonzero(open_)
    p_lower, p_upper = vote_bounds(
        for_a[at], for_b[at], samples[at], alpha=alpha, bound=bound, validity="anytime"
    )
    proved = radius(p_lower, p_upper)
    radii = np.array([*stopping.radii, np.inf])
    # With nothing proved the first radius is wanted, radius 0 too; else the first one above what is proved.
    wanted = radii[np.where(proved > 0.0, np.searchsorted(radii, proved, side="right"), 0)]
    stop[at] = np.isinf(wanted)
    at, wanted = at[np.isfinite(wanted)], wanted[np.isfinite(wanted)]
    if at.size:
        stop[at] = ~_hopeful(for_a[at], for_b[at], samples[at], wanted, budget, radius, alpha, bound)
    return stop
