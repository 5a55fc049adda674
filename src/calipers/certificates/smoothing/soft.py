r"""Certificates from mean scores: three readings of the fact that smoothing makes a classifier Lipschitz.

Let :math:`f` have scores in [0, 1] that sum to at most 1 over the classes, such as a softmax, and
:math:`g(x) = E f(x + \varepsilon)` with Gaussian noise. From a lower bound :math:`\underline{p_A}` on
:math:`g_A(x)` and an upper bound :math:`\overline{p_B}` on every other :math:`g_j(x)`:

- ``"lemma-1"``: each :math:`g_j` is :math:`\sqrt{2/(\pi\sigma^2)}`-Lipschitz in l2 (Salman et al. 2019,
  arXiv:1906.04584, Lemma 1), so :math:`R = (\underline{p_A} - \overline{p_B}) / (2L)`, at most 0.627 sigma;
- ``"tight-constant"``: the same with :math:`L = 1/\sqrt{2\pi\sigma^2}`, which a half-space attains, at most
  1.253 sigma. Derived here: the derivative of :math:`g_j` along a unit vector :math:`u` is :math:`E[f_j(x +
  \varepsilon) \langle\varepsilon, u\rangle]/\sigma^2`, and taking 1/2 from :math:`f_j` changes nothing,
  since the mean of the noise is 0. As :math:`|f_j - 1/2| \le 1/2`, it is at most
  :math:`E|\langle\varepsilon, u\rangle| / (2\sigma^2) = 1/\sqrt{2\pi\sigma^2}`;
- ``"lemma-2"``: :math:`\Phi^{-1}(g_j)` is :math:`1/\sigma`-Lipschitz (Lemma 2), so :math:`R =
  \frac{\sigma}{2} (\Phi^{-1}(\underline{p_A}) - \Phi^{-1}(\overline{p_B}))`, which is never below the other
  two and has no ceiling.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calipers.certificates.smoothing.radius import gaussian_l2
from calipers.errors import UsageError
from calipers.statistics.intervals import (
    check_alpha,
    empirical_bernstein_lower,
    empirical_bernstein_upper,
    hoeffding_lower,
    hoeffding_upper,
)
from calipers.threat.threat_model import ABSTAIN

__all__ = [
    "Lemma",
    "MeanBound",
    "SoftCertificate",
    "certify_means",
    "lipschitz_constant",
    "score_variances",
    "soft_radius",
]

Lemma = Literal["lemma-1", "tight-constant", "lemma-2"]
MeanBound = Literal["empirical-bernstein", "hoeffding"]

_THEOREMS: Final[dict[Lemma, str]] = {
    "lemma-1": "Salman et al. 2019, Lemma 1",
    "tight-constant": "Salman et al. 2019, Lemma 1 with the tight constant (docs/theory)",
    "lemma-2": "Salman et al. 2019, Lemma 2",
}

_CANCELLATION = 1e-12
"""Added to a variance of scores in [0, 1]: more than float64 can lose in its difference of two sums."""

_SUM_SLACK = 1e-6
"""How far the float32 scores of one draw may add up to more than 1."""


class SoftCertificate(NamedTuple):
    """A certificate of one input from mean scores.

    Args:
        prediction: the class that is certified, or ABSTAIN (-1).
        radius: the l2 radius in input units, rounded down; 0 on an abstention.
        p_lower: lower bound on the expected score of the selected class.
        p_upper: upper bound on the expected score of any other class.
        theorem: how the bounds and the radius came about.
    """

    prediction: int
    radius: float
    p_lower: float
    p_upper: float
    theorem: str


def lipschitz_constant(sigma: float, *, lemma: Lemma) -> float:
    """Bound the l2 Lipschitz constant of each smoothed score.

    Args:
        sigma: standard deviation of the Gaussian noise, in input units.
        lemma: ``"lemma-1"`` or ``"tight-constant"``.

    Returns:
        The constant per input unit, rounded up.

    Raises:
        UsageError: if ``sigma`` is not positive, or the lemma gives no constant.
    """
    if not (math.isfinite(sigma) and sigma > 0.0):
        raise UsageError(f"sigma is {sigma}: it must be a positive number")
    if lemma == "lemma-1":
        return math.sqrt(2.0 / math.pi) / sigma * (1.0 + 4e-15)
    if lemma == "tight-constant":
        return 1.0 / (math.sqrt(2.0 * math.pi) * sigma) * (1.0 + 4e-15)
    raise UsageError(f"lemma {lemma!r} gives no Lipschitz constant: choose lemma-1 or tight-constant")


def soft_radius(
    sigma: float, p_lower: ArrayLike, p_upper: ArrayLike, *, lemma: Lemma = "lemma-2"
) -> NDArray[np.float64]:
    """Certify an l2 radius from bounds on expected scores.

    Args:
        sigma: standard deviation of the Gaussian noise, in input units.
        p_lower: lower bound on the expected score of the class, of any shape.
        p_upper: upper bound on the expected score of every other class; broadcast.
        lemma: which reading of the smoothness.

    Returns:
        The radii in input units, float64, rounded down; 0 where nothing is certified.

    Reference:
        Salman et al. 2019 (arXiv:1906.04584), Lemma 1 and Lemma 2.

    Example:
        >>> for lemma in ("lemma-1", "tight-constant", "lemma-2"):
        ...     print(f"{soft_radius(1.0, 0.99, 0.01, lemma=lemma):.4f}")
        0.6141
        1.2282
        2.3263
    """
    if lemma == "lemma-2":
        return gaussian_l2(sigma, p_lower, p_upper)
    constant = lipschitz_constant(sigma, lemma=lemma)
    positive = gaussian_l2(1.0, p_lower, p_upper) > 0.0  # also checks the probabilities
    low, high = np.asarray(p_lower, dtype=np.float64), np.asarray(p_upper, dtype=np.float64)
    return np.where(positive, np.maximum((low - high) / (2.0 * constant) * (1.0 - 4e-15), 0.0), 0.0)


def score_variances(
    means: NDArray[np.float64], squares: NDArray[np.float64], *, samples: int
) -> NDArray[np.float64]:
    """Compute sample variances of scores in [0, 1], rounded up.

    Args:
        means: mean scores, of any shape.
        squares: sums of the squares of the scores, of the same shape.
        samples: the number of draws.

    Returns:
        The variances with the divisor ``samples - 1``, of the same shape, float64.
    """
    found: NDArray[np.float64] = np.maximum(squares - samples * means**2, 0.0) / max(samples - 1, 1)
    return found + _CANCELLATION


def certify_means(
    means: ArrayLike,
    variances: ArrayLike,
    *,
    samples: int,
    selected: int,
    sigma: float,
    alpha: float,
    mean_bound: MeanBound = "empirical-bernstein",
    lemma: Lemma = "lemma-2",
    failed: int = 0,
) -> SoftCertificate:
    """Certify one input from the means and variances of its scores under Gaussian noise.

    Half of alpha bounds the selected class from below, half bounds the others from above. The bound on the
    others is the largest of *their upper bounds*: the true runner-up is one of them. The upper bound of the
    largest mean would not do, since an empirical Bernstein bound grows with the variance as well. It is
    capped by what the selected class leaves of a sum of 1.

    Args:
        means: mean score of each class over all samples, a failed draw counting as score 0 for every class.
        variances: sample variance of the same scores, with denominator ``samples - 1``.
        samples: number of samples, fixed before the run.
        selected: class chosen by another sample; -1 for none.
        sigma: standard deviation of the noise, in input units.
        alpha: probability that the certificate fails.
        mean_bound: ``"empirical-bernstein"`` or ``"hoeffding"``. Clopper and Pearson's bound holds for
        votes only.
        lemma: which reading of the smoothness.
        failed: number of failed draws among the samples; each is read as score 0 for the selected class and
            1 for every other one.

    Returns:
        The certificate.

    Raises:
        UsageError: if an argument has no meaning, scores lie outside [0, 1], or a bound for votes is asked
        for.

    Reference:
        Salman et al. 2019 (arXiv:1906.04584); Maurer and Pontil 2009 (arXiv:0907.3740), Theorem 4;
        Hoeffding 1963.
    """
    if mean_bound not in ("empirical-bernstein", "hoeffding"):
        raise UsageError(
            f"mean_bound is {mean_bound!r}: mean scores need empirical-bernstein or hoeffding; "
            "Clopper and Pearson's bound is one for votes"
        )
    half = check_alpha(alpha) / 2.0
    mean, variance = np.array(means, dtype=np.float64), np.array(variances, dtype=np.float64)
    if mean.ndim != 1 or len(mean) < 2 or mean.shape != variance.shape:
        raise UsageError(
            f"means of shape {mean.shape}, variances of {variance.shape}: one of each a class, K >= 2"
        )
    if not -1 <= selected < len(mean):
        raise UsageError(
            f"selected class is {selected}: it must lie in 0..{len(mean) - 1}, or be -1 for none"
        )
    if not 0 <= failed <= samples or samples < 1:
        raise UsageError(
            f"failed is {failed} of {samples} samples: it must lie in 0..samples, samples 1 or more"
        )
    theorem = f"{_THEOREMS[lemma]}; {mean_bound}, p_A and p_B, alpha/2 each" if lemma in _THEOREMS else ""
    if not theorem:
        raise UsageError(f"lemma is {lemma!r}: choose lemma-1, tight-constant or lemma-2")
    if selected < 0:
        return SoftCertificate(ABSTAIN, 0.0, 0.0, 1.0, theorem)
    others = np.arange(len(mean)) != selected
    if failed:
        squares = variance * (samples - 1) + samples * mean**2 + np.where(others, failed, 0)
        mean = mean + np.where(others, failed / samples, 0.0)
        variance = score_variances(mean, squares, samples=samples)
    if mean_bound == "hoeffding":
        p_lower = float(hoeffding_lower(mean[selected], samples, alpha=half))
        uppers = hoeffding_upper(mean[others], samples, alpha=half)
    else:
        p_lower = float(empirical_bernstein_lower(mean[selected], variance[selected], samples, alpha=half))
        uppers = empirical_bernstein_upper(mean[others], variance[others], samples, alpha=half)
    p_upper = min(float(uppers.max()), 1.0 - p_lower + _SUM_SLACK, 1.0)
    radius = float(soft_radius(sigma, p_lower, p_upper, lemma=lemma))
    if not (p_lower > p_upper and radius > 0.0):
        return SoftCertificate(ABSTAIN, 0.0, p_lower, p_upper, theorem)
    return SoftCertificate(selected, radius, p_lower, p_upper, theorem)
