r"""Bounds on a proportion that hold at every number of trials at once, so that one may stop when one likes.

For the null hypothesis :math:`p \le p_0`, average the likelihood ratio of :math:`q` against :math:`p_0`
over the Beta(1/2, 1/2) prior cut to :math:`q > p_0`. After :math:`c` successes in :math:`t` trials this is

.. math:: M_t(p_0) = \frac{B(c+\frac12, t-c+\frac12)\,[1 - I_{p_0}(c+\frac12, t-c+\frac12)]}
                     {B(\frac12, \frac12)\,[1 - I_{p_0}(\frac12, \frac12)]\; p_0^c (1-p_0)^{t-c}}.

One trial multiplies the ratio of a fixed :math:`q > p_0` by :math:`pq/p_0 + (1-p)(1-q)/(1-p_0)` on average,
which is 1 at :math:`p = p_0` and less below: :math:`M` is a supermartingale that starts at 1 for every
:math:`p \le p_0`, and by Ville's inequality it ever reaches :math:`1/\alpha` with probability at most
:math:`\alpha`.

The rejected :math:`p_0` are nested: where :math:`M \ge 2`, :math:`M` falls as :math:`p_0` grows, so one
sequence serves all radii and all thresholds without a union bound. For the derivative of :math:`\log M` is
:math:`h(1 - 1/M) - (c - t p_0)/(p_0(1-p_0))` with :math:`h = 1/(2\sqrt{p_0(1-p_0)}\,\arcsin\sqrt{1-p_0})
\le 1/(2(1-p_0)\sqrt{p_0})`, so it can be positive only if :math:`k = c - t p_0 < \sqrt{p_0}/2`. Then
:math:`\log M \le t\,\mathrm{KL}(c/t, p_0) \le k^2/(t p_0(1-p_0))`, which is below :math:`1/(2\sqrt{p_0})`
because :math:`k \le t(1-p_0)`, and below :math:`p_0/(2(1-p_0))` because :math:`t p_0 \ge 1 - k > 1/2`. The
smaller of the two is at most 0.67 < log 2. (For an ``alpha`` above 1/2 the bounds use 1/2.)

Reference:
    Ville 1939; Robbins 1970, Annals of Mathematical Statistics 41(5), for mixtures; Howard et al. 2021
    (arXiv:1810.08240) for confidence sequences. The truncation of the prior and the nesting are derived here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from calipers.errors import UsageError
from calipers.statistics.intervals import check_alpha, check_counts

__all__ = ["anytime_lower", "anytime_upper", "log_evidence_above"]

_ROUNDS = 40
"""Most Newton steps; six or seven are usual, and fewer would only loosen the bound."""


def _rounding(trials: NDArray[np.float64]) -> NDArray[np.float64]:
    # Measured: under 4e-15 a trial, plus 1e-12.
    return 1e-9 + 1e-14 * trials


def _check_proportion(p0: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(p0, dtype=np.float64)
    if not np.all((p >= 0.0) & (p <= 1.0)):
        raise UsageError(f"p0 is {p0!r}: a proportion lies in [0, 1]")
    return p


def log_evidence_above(successes: ArrayLike, trials: ArrayLike, p0: ArrayLike) -> NDArray[np.float64]:
    r"""Weigh the evidence that a proportion lies above ``p0``, at any stopping time.

    Reject :math:`p \le p_0` where the value is at least ``log(1 / alpha)``.

    Args:
        successes: number of successes so far, of any shape.
        trials: number of trials so far; broadcast.
        p0: the proportion of the null hypothesis, in [0, 1]; broadcast.

    Returns:
        The natural logarithm of the e-process, rounded down; minus infinity where it underflows (there is no
        evidence there) and for ``p0`` = 1, plus infinity for ``p0`` = 0 after a success.
    """
    c, t = check_counts(successes, trials)
    p = _check_proportion(p0)
    q, tail = 1.0 - p, special.betaincc(c + 0.5, t - c + 0.5, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = special.xlogy(c, p) + special.xlogy(t - c, q)
        value = (
            special.betaln(c + 0.5, t - c + 0.5) + np.log(tail) - np.log(2.0 * np.arcsin(np.sqrt(q))) - ratio
        )
    return np.where((q > 0.0) & (tail > 0.0), value - _rounding(t), -np.inf)


def _boundary(c: NDArray[np.float64], t: NDArray[np.float64], goal: float) -> NDArray[np.float64]:
    """Return a p0 just below the end of the rejected ones, for 0 < c <= t; 0 where none was found.

    Works on an elementary lower bound of log M, since the incomplete beta function costs as much as
    everything else together: I_x(a, b) is x^a (1-x)^b / (a B(a, b)) times a series whose terms shrink at
    least by x max(1, (a+b)/(a+1)). At the boundary I is about alpha / sqrt(t), so what is lost is nothing.
    In s = logit(x) log M is nearly convex and falling, so Newton's steps converge; they aim at half of the
    tolerance above the goal, and only a point where the goal itself is reached is returned.
    """
    a, b, misses = c + 0.5, t - c + 0.5, t - c
    log_beta = special.betaln(a, b)
    level = goal + _rounding(t)
    tolerance = 1e-6 + _rounding(t)
    log_front = log_beta + np.log(a)
    growth = np.maximum(1.0, (t + 1.0) / (a + 1.0))
    # The root lies between a point from c log x alone, and the maximum of the likelihood.
    log_low = np.minimum(-(level + np.log(2.0 * np.pi) - log_beta) / c, -1e-9)
    low = log_low - np.log(-np.expm1(log_low))
    high = np.log((c + 0.25) / (misses + 0.25))
    # Start where 2 t (difference of arcsine roots)^2, which is t KL nearly, is what must be overcome.
    peak = special.xlogy(c, c / t) + special.xlogy(misses, misses / t)
    depth = np.maximum(level - log_beta + peak, 0.0)
    angle = np.arcsin(np.sqrt(c / t)) - np.sqrt(depth / (2.0 * t))
    start = np.log(np.tan(np.maximum(angle, 1e-9))) * 2.0
    s = np.clip(start, low, high)
    best: NDArray[np.float64] = np.zeros_like(t)
    for _ in range(_ROUNDS):
        log_q = -np.logaddexp(0.0, s)
        log_p = s + log_q
        x = np.exp(log_p)
        root = np.exp(0.5 * log_q)
        arc = np.arcsin(root)
        beyond = np.exp(np.minimum(a * log_p + b * log_q - log_front, 0.0)) / np.maximum(
            1.0 - growth * x, 1e-300
        )
        value = log_beta - c * log_p - misses * log_q - np.log(2.0 * arc) - level
        value += np.log1p(-np.minimum(beyond, 1.0 - 1e-12))
        sound = value >= 0.0
        best = np.maximum(best, np.where(sound, x, 0.0))
        settled = sound & (value <= tolerance)
        if settled.all():
            break
        low, high = np.where(sound, s, low), np.where(sound, high, s)
        slope = np.sqrt(x) * root / (2.0 * arc) * (-np.expm1(-(value + level))) - (c - t * x)
        trial = s - (value - 0.5 * tolerance) / np.minimum(slope, -1e-9)
        inside = (trial > low) & (trial < high)
        s = np.where(settled, s, np.where(inside, trial, 0.5 * (low + high)))
    return best


def anytime_lower(successes: ArrayLike, trials: ArrayLike, *, alpha: float) -> NDArray[np.float64]:
    """Bound a proportion from below at every number of trials at once.

    Args:
        successes: number of successes so far, of any shape.
        trials: number of trials so far; broadcast. They may have been stopped for any reason.
        alpha: probability that the bound ever lies above the true proportion.

    Returns:
        The bounds, float64, rounded down: the end of the ``p0`` that :func:`log_evidence_above` rejects. It
        grows with the successes. 0 where there is none.

    Example:
        >>> print(f"{anytime_lower(100_000, 100_000, alpha=0.001):.8f}")
        0.99991927
    """
    c, t = check_counts(successes, trials)
    goal = -np.log(min(check_alpha(alpha), 0.5))
    return np.where(c > 0, _boundary(np.maximum(c, 1.0), np.maximum(t, 1.0), goal), 0.0)


def anytime_upper(successes: ArrayLike, trials: ArrayLike, *, alpha: float) -> NDArray[np.float64]:
    """Bound a proportion from above at every number of trials at once.

    Args:
        successes: number of successes so far, of any shape.
        trials: number of trials so far; broadcast. They may have been stopped for any reason.
        alpha: probability that the bound ever lies below the true proportion.

    Returns:
        The bounds, float64, rounded up; they grow with the successes. 1 where every trial is a success.
    """
    c, t = check_counts(successes, trials)
    below = anytime_lower(t - c, t, alpha=alpha)
    return np.where(below > 0.0, np.nextafter(1.0 - below, 1.0), 1.0)
