r"""The radius theorems: from the probabilities of the two top classes under noise to a radius, rounded down.

Throughout, ``p_lower`` bounds the probability of the class :math:`A` from below, ``p_upper`` that of every
other class from above. The prediction is constant in the *open* ball of the radius. A radius that would be
negative, or for which ``p_lower`` does not exceed ``p_upper`` strictly, is 0: the caller abstains. With
``p_upper`` = 0 or ``p_lower`` = 1 the Gaussian and Laplace radii are infinite, which is right and never
comes of a finite sample.

Reference:
    Cohen, Rosenfeld and Kolter 2019 (arXiv:1902.02918) for the Gaussian; Teng, Lee and Yuan 2019 for Laplace;
    Yang et al. 2020 (arXiv:2002.08118) for the uniform noise and for Laplace; Lecuyer et al. 2019
    (arXiv:1802.03471) for the argument by likelihood ratios.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from calipers.errors import Unsound, UsageError
from calipers.threat.threat_model import Norm

__all__ = [
    "convert_radius",
    "gaussian_l2",
    "laplace_l1",
    "laplace_l1_sharp",
    "uniform_l1",
]

_SLACK = 4e-15
"""Relative error allowed to the quantile functions and to each formula (measured: under 1e-15)."""


def _check(
    scale: float, p_lower: ArrayLike, p_upper: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not (math.isfinite(scale) and scale > 0.0):
        raise UsageError(f"scale of the noise is {scale}: it must be a positive number")
    low, high = np.broadcast_arrays(np.asarray(p_lower, np.float64), np.asarray(p_upper, np.float64))
    if not np.all((low >= 0.0) & (low <= 1.0) & (high >= 0.0) & (high <= 1.0)):
        raise UsageError(f"p_lower {p_lower!r}, p_upper {p_upper!r}: probabilities lie in [0, 1]")
    return low, high


def _half_distance(
    scale: float,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    upper_end: NDArray[np.float64],
    lower_end: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return scale/2 (upper_end - lower_end), rounded down, where low > high, and 0 elsewhere."""
    with np.errstate(invalid="ignore"):
        size = np.abs(upper_end) + np.abs(lower_end)
        distance = np.where(np.isfinite(size), upper_end - lower_end - _SLACK * size, upper_end - lower_end)
        return np.where(low > high, np.maximum(0.5 * scale * distance, 0.0), 0.0)


def gaussian_l2(sigma: float, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
    r"""Certify an l2 radius under noise from :math:`N(0, \sigma^2 I)`.

    .. math:: R = \tfrac{\sigma}{2} (\Phi^{-1}(\underline{p_A}) - \Phi^{-1}(\overline{p_B}))

    Args:
        sigma: standard deviation of the noise, in input units.
        p_lower: lower bound on the probability of the class, of any shape.
        p_upper: upper bound on the probability of every other class; broadcast.

    Returns:
        The radii in input units, float64, rounded down; 0 where nothing is certified.

    Reference:
        Cohen, Rosenfeld and Kolter 2019 (arXiv:1902.02918), Theorem 1. Tight: a half-space attains it.

    Example:
        >>> print(f"{gaussian_l2(1.0, 0.99, 0.01):.6f}")
        2.326348
    """
    low, high = _check(sigma, p_lower, p_upper)
    return _half_distance(sigma, low, high, special.ndtri(low), special.ndtri(high))


def laplace_l1(scale: float, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
    r"""Certify an l1 radius under Laplace noise of the given scale, by its likelihood ratio.

    .. math:: R = \max(\tfrac{\lambda}{2} \ln(p_A / p_B),\; -\lambda \ln(1 - p_A + p_B))

    A shift of l1 size :math:`r` changes the density by at most :math:`e^{r/\lambda}`. Applied to
    :math:`p_A` and :math:`p_B` apart it gives the first radius, applied to :math:`E(1 - 1_A + 1_B)/2` the
    second.

    Args:
        scale: scale of the noise (its standard deviation over the square root of 2), in input units.
        p_lower: lower bound on the probability of the class, of any shape.
        p_upper: upper bound on the probability of every other class; broadcast.

    Returns:
        The radii in input units, float64, rounded down; 0 where nothing is certified.

    Reference:
        Teng, Lee and Yuan 2019, l1 adversarial robustness certificates; Yang et al. 2020 (arXiv:2002.08118).
        Tight for two classes; :func:`laplace_l1_sharp` is never smaller, and larger for three.
    """
    low, high = _check(scale, p_lower, p_upper)
    with np.errstate(divide="ignore"):
        apart = _half_distance(scale, low, high, np.log(low), np.log(high))
        both = -2.0 * np.log((1.0 - low) + high)
    return np.maximum(apart, _half_distance(scale, low, high, both, np.full_like(both, _SLACK)))


def _laplace_quantile(p: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.where(p <= 0.5, np.log(2.0 * p), -np.log(2.0 * (1.0 - p)))


def laplace_l1_sharp(scale: float, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
    r"""Certify the largest l1 radius that Laplace noise allows.

    .. math:: R = \tfrac{\lambda}{2} (F^{-1}(p_A) - F^{-1}(p_B)),

    with :math:`F` the distribution function of the noise of scale 1. Derived for this project, for any
    noise whose coordinates are independent with one log-concave density: shift one coordinate by :math:`r`.
    Given the others, the likelihood ratio is monotone, so by Neyman and Pearson a set of probability
    :math:`p` keeps at least :math:`T_r(p) = F(F^{-1}(p) - r)`; and :math:`T_r` is convex, so Jensen's
    inequality carries this to the average over the others. Since :math:`T_r \circ T_s = T_{r+s}`, shifting
    one coordinate after the other gives :math:`T_{\|\delta\|_1}`. With the same for the complement of
    :math:`B`, the class stays on top while :math:`F(F^{-1}(p_A) - r) > F(F^{-1}(p_B) + r)`. Half-lines on
    one coordinate attain it. (For the Gaussian it is the radius of Theorem 1.)

    Args:
        scale: scale of the noise, in input units.
        p_lower: lower bound on the probability of the class, of any shape.
        p_upper: upper bound on the probability of every other class; broadcast.

    Returns:
        The radii in input units, float64, rounded down; 0 where nothing is certified.
    """
    low, high = _check(scale, p_lower, p_upper)
    # Near 1/2 the quantile is small but the error of its logarithm is not: slack that is not relative.
    upper_end = _laplace_quantile(low) - _SLACK
    lower_end = _laplace_quantile(high) + _SLACK
    return _half_distance(scale, low, high, upper_end, lower_end)


def uniform_l1(half_width: float, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
    r"""Certify an l1 radius under noise uniform on :math:`[-\lambda, \lambda]` in each coordinate.

    .. math:: R = \lambda (p_A - p_B)

    A shift of l1 size :math:`r` moves at most :math:`r / (2\lambda)` of the probability.

    Args:
        half_width: the largest noise, in input units.
        p_lower: lower bound on the probability of the class, of any shape.
        p_upper: upper bound on the probability of every other class; broadcast.

    Returns:
        The radii in input units, float64, rounded down; 0 where nothing is certified.

    Reference:
        Yang et al. 2020 (arXiv:2002.08118).
    """
    low, high = _check(half_width, p_lower, p_upper)
    return _half_distance(half_width, low, high, 2.0 * low, 2.0 * high)


def convert_radius(radius: ArrayLike, from_norm: Norm, to_norm: Norm, dimension: int) -> NDArray[np.float64]:
    """Read a radius in one norm as a radius in another, by comparing the norms.

    An l2 ball of radius R holds the l1 ball of radius R and the linf ball of radius R/sqrt(d); an l1 ball
    of radius R holds the l2 ball of radius R/sqrt(d) and the linf ball of radius **R/d**.

    Args:
        radius: radii in ``from_norm``, of any shape.
        from_norm: the norm that was certified.
        to_norm: the norm that is asked for.
        dimension: number of coordinates ``d`` of one input.

    Returns:
        The radii in ``to_norm``, float64, rounded down.

    Raises:
        UsageError: if the dimension is no positive whole number, or a radius is negative.
        Unsound: if the norms allow no such reading.

    Example:
        >>> from calipers.threat.threat_model import Norm
        >>> print(f"{convert_radius(1.0, Norm.L2, Norm.LINF, 3072):.6f}")
        0.018042
    """
    r = np.asarray(radius, dtype=np.float64)
    if dimension < 1:
        raise UsageError(f"dimension is {dimension}: an input has at least one coordinate")
    if not np.all(r >= 0.0):
        raise UsageError(f"radius is {radius!r}: it must be 0 or more")
    if from_norm is to_norm or (from_norm, to_norm) == (Norm.L2, Norm.L1):
        return r.copy()
    if (from_norm, to_norm) in {(Norm.L2, Norm.LINF), (Norm.L1, Norm.L2)}:
        return r / math.sqrt(dimension) * (1.0 - _SLACK)
    if (from_norm, to_norm) == (Norm.L1, Norm.LINF):
        return r / dimension * (1.0 - _SLACK)
    raise Unsound(f"a radius in {from_norm.value} does not give one in {to_norm.value}: certify in l2 or l1")
