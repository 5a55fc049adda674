"""Norms proved by a factorization: an estimate from below, raised a little, that Cholesky then certifies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = ["lanczos", "prove_banded", "prove_dense"]

UNIT = float(np.finfo(np.float64).eps) / 2
"""Unit roundoff of float64."""

_RAISES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Shares by which the estimate is raised, one after the other, until a factorization succeeds."""

Vector = NDArray[np.float64]


def lanczos(gram: Callable[[Vector], Vector], length: int, *, steps: int = 150) -> float:
    """Estimate the largest eigenvalue of a positive semidefinite operator, from below.

    An estimate only: it proves nothing, and it chooses what is tried.

    Args:
        gram: the operator on vectors.
        length: their length.
        steps: most applications of it.

    Returns:
        The largest Ritz value.
    """
    generator = np.random.default_rng(0)
    vector = generator.standard_normal(length)
    vector /= np.linalg.norm(vector)
    before = np.zeros(length)
    diagonal: list[float] = []
    beside: list[float] = []
    best = 0.0
    for step in range(1, min(steps, length) + 1):
        image = gram(vector)
        diagonal.append(float(vector @ image))
        image -= diagonal[-1] * vector
        if beside:
            image -= beside[-1] * before
        size = float(np.linalg.norm(image))
        if step % 10 == 0 or step == min(steps, length) or size <= 1e-12 * diagonal[0]:
            ritz = float(scipy.linalg.eigvalsh_tridiagonal(diagonal, beside)[-1]) if beside else diagonal[0]
            if ritz - best <= 2e-5 * ritz or size <= 1e-12 * ritz:
                return max(ritz, best)
            best = ritz
        beside.append(size)
        before, vector = vector, image / size
    return best


def _proved(square: float, largest: float, terms: int, row: int, formed: float) -> float:
    r"""Give what a completed factorization of ``square * I - G`` proves about the norm.

    Args:
        square: the number on the diagonal before subtraction.
        largest: a bound on the diagonal of ``square * I - G``.
        terms: most terms in one sum of the factorization.
        row: most nonzero entries in one row of ``G``.
        formed: bound on the norm of the error with which ``G`` was formed.

    Returns:
        An upper bound on the square root of the largest eigenvalue of ``G``, rounded up.
    """
    gamma = 4 * (terms + 8) * UNIT
    rounding = gamma / (1 - 2 * gamma) * row * largest + 4 * UNIT * (square + largest)
    return math.sqrt((square + rounding + formed) * (1 + 8 * UNIT)) * (1 + 2 * UNIT)


def prove_dense(
    gram: NDArray[np.float64], estimate: float, *, formed: float, first: float = _RAISES[0]
) -> float:
    """Prove a norm from its dense Gram matrix.

    Args:
        gram: a symmetric positive semidefinite matrix (n, n).
        estimate: an estimate of its largest eigenvalue.
        formed: bound on the norm of the error with which the matrix was formed.
        first: share by which the estimate is raised at first; smaller where the estimate is better.

    Returns:
        An upper bound on the square root of its largest eigenvalue; infinity if no attempt succeeded.
    """
    n = len(gram)
    for share in (first, *_RAISES):
        square = estimate * (1 + share) ** 2
        shifted = -gram
        shifted[np.diag_indices(n)] += square
        try:
            factor = scipy.linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=True)
        except (scipy.linalg.LinAlgError, ValueError):
            continue
        if np.all(np.diag(factor) > 0) and np.all(np.isfinite(np.diag(factor))):
            return _proved(square, square + float(np.abs(np.diag(gram)).max()), n, n, formed)
    return math.inf


def prove_banded(form: Callable[[], NDArray[np.float64]], estimate: float, *, formed: float) -> float:
    """Prove a norm from its banded Gram matrix.

    Args:
        form: writes the lower band of a symmetric positive semidefinite matrix, ``(width + 1, n)``, in Fortran
            order: row ``r`` holds the entries ``(i + r, i)``. It is called anew for each attempt, and what it
            gives is overwritten.
        estimate: an estimate of its largest eigenvalue.
        formed: bound on the norm of the error with which the matrix was formed.

    Returns:
        An upper bound on the square root of its largest eigenvalue; infinity if no attempt succeeded.
    """
    for share in _RAISES:
        square = estimate * (1 + share) ** 2
        band = form()
        width, largest = len(band) - 1, square + float(np.abs(band[0]).max())
        np.negative(band, out=band)
        band[0] += square
        try:
            factor = scipy.linalg.cholesky_banded(band, lower=True, overwrite_ab=True, check_finite=True)
        except (scipy.linalg.LinAlgError, ValueError):
            continue
        if np.all(factor[0] > 0) and np.all(np.isfinite(factor[0])):
            return _proved(square, largest, width + 1, 2 * width + 1, formed)
    return math.inf
