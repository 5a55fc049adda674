"""Symmetric matrices in Loewner's order: products, inverses and eigenvalues with every rounding on the safe side."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SLACK",
    "TINY",
    "UNIT",
    "Matrix",
    "bounded_congruence",
    "bounded_inverse",
    "frobenius",
    "proves_positive",
    "raise_diagonal",
    "rounding",
    "scaled_up",
    "top_eigenvalue",
    "up",
]

Matrix = NDArray[np.float64]

UNIT = 2.0**-53  # the relative error of one float64 operation
TINY = 1e-290  # more than all that underflow loses in matrices whose largest entry is about 1
SLACK = 1.01  # covers the rounding of the error bounds themselves: sums of up to 10^13 terms


def rounding(count: int) -> float:
    """Bound the relative error of a sum of ``count`` products, added in any order, fused or not.

    Args:
        count: the number of products, far below 2^53.

    Returns:
        n u / (1 - n u), rounded up.
    """
    return SLACK * count * UNIT / (1.0 - count * UNIT)


def frobenius(matrix: Matrix) -> float:
    """Bound the spectral norm by the Frobenius norm.

    Args:
        matrix: any matrix.

    Returns:
        The Frobenius norm, rounded up.
    """
    return SLACK * float(np.linalg.norm(matrix)) + TINY


def raise_diagonal(matrix: Matrix, by: float) -> Matrix:
    """Add ``by`` to the diagonal in place, rounded up: the result is at least ``matrix + by I``.

    Args:
        matrix: a square matrix, changed in place.
        by: what is added; less than 0 lowers, and still rounds up.

    Returns:
        The matrix.
    """
    index = np.arange(len(matrix))
    matrix[index, index] = np.nextafter(matrix[index, index] + by, np.inf)
    return matrix


def up(value: float) -> float:
    """Round up by one more float than needed, which covers one operation rounded to nearest.

    Args:
        value: any float.

    Returns:
        The next larger float.
    """
    return math.nextafter(value, math.inf)


def scaled_up(value: float, exponent: int) -> float:
    """Multiply by a power of two.

    Args:
        value: 0 or more.
        exponent: the power of two.

    Returns:
        The product, rounded up; infinite where no float is large enough.
    """
    if value == 0.0:
        return 0.0
    try:
        return up(math.ldexp(value, exponent))
    except OverflowError:
        return math.inf


def proves_positive(matrix: Matrix) -> bool:
    """Try to prove that a symmetric matrix of floats is positive definite.

    When Cholesky's method in floating point runs to its end on ``B``, then ``B`` plus ``c I`` is positive definite
    with ``c = gamma / (1 - gamma) trace B``, ``gamma = (n + 1) u`` (Demmel 1989; Rump 2006, *Verification of
    positive definiteness*, Theorem 2.3). So it is run on the matrix less such a ``c``; ours is four times as
    large, for kernels that multiply by reciprocals.

    Args:
        matrix: a finite and exactly symmetric matrix, of a size near 1 (entries near underflow prove nothing).

    Returns:
        True if it is positive definite; False where that could not be shown.
    """
    count = len(matrix)
    diagonal = np.diagonal(matrix)
    if not (np.isfinite(matrix).all() and np.all(diagonal > 0.0)):
        return False
    shifted = raise_diagonal(-matrix, 4.0 * rounding(count + 4) * SLACK * float(diagonal.sum()) + TINY)
    np.negative(shifted, out=shifted)
    try:
        factor = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(factor).all())


def top_eigenvalue(matrix: Matrix) -> float:
    """Bound the largest eigenvalue of a positive semidefinite matrix from above.

    It is estimated first; then ``t I - A`` is proved positive definite for a ``t`` slightly larger. Where no such
    proof succeeds, the largest sum of magnitudes along a row is returned, which always bounds it.

    Args:
        matrix: a finite and exactly symmetric matrix, of a size near 1.

    Returns:
        An upper bound, about n^2 1e-15 above the eigenvalue in relative terms.
    """
    count = len(matrix)
    row_sum = float(np.abs(matrix).sum(1).max()) * (1.0 + rounding(count)) + TINY
    estimate = max(float(np.linalg.eigvalsh(matrix)[-1]), 0.0)
    step = 8.0 * rounding(count + 4) * count * max(estimate, 1e-12 * row_sum)
    for _ in range(8):
        bound = estimate + step
        if bound >= row_sum:
            break
        if proves_positive(-raise_diagonal(matrix.copy(), -bound)):
            return up(bound)
        step *= 4.0
    return row_sum


def bounded_congruence(weight: Matrix, middle: Matrix | None) -> Matrix:
    """Bound ``W X W^T`` from above in Loewner's order (``X = I`` where it is None).

    With ``|fl(AB) - AB| <= gamma |A| |B|`` entry by entry, the error of the two products is at most ``gamma (||T|| +
    ||X|| ||W||) ||W||`` in Frobenius norms, ``T = fl(WX)``; that much is added to the diagonal.

    Args:
        weight: ``W``, of a size near 1.
        middle: ``X``, exactly symmetric, or None.

    Returns:
        An exactly symmetric matrix of floats that is at least the true product.
    """
    gamma = rounding(weight.shape[1])
    if middle is None:
        product = weight @ weight.T
        error = gamma * frobenius(weight) ** 2
    else:
        half = weight @ middle
        product = half @ weight.T
        error = gamma * (frobenius(half) + frobenius(middle) * frobenius(weight)) * frobenius(weight)
    symmetric = 0.5 * (product + product.T)
    return raise_diagonal(symmetric, SLACK * (error + UNIT * 2.0 * frobenius(product)) + TINY)


def bounded_inverse(matrix: Matrix, floor: float) -> Matrix:
    """Bound the inverse of a matrix from above in Loewner's order.

    For any ``X``, ``N^-1 - X = (I - X N) N^-1``, so ``||N^-1 - X|| <= ||I - X N|| / floor``; that much is added.

    Args:
        matrix: ``N``, exactly symmetric.
        floor: a positive number that its eigenvalues are known to reach.

    Returns:
        An exactly symmetric matrix of floats that is at least the true inverse.
    """
    inverse = np.linalg.inv(matrix).astype(np.float64, copy=False)
    residual = np.eye(len(matrix)) - inverse @ matrix
    error = frobenius(residual) * (1.0 + 2.0 * UNIT) + rounding(len(matrix) + 1) * frobenius(
        inverse
    ) * frobenius(matrix)
    symmetric = 0.5 * (inverse + inverse.T)
    return raise_diagonal(symmetric, SLACK * (error / floor + UNIT * 2.0 * frobenius(inverse)) + TINY)
