"""Bounds on a whole chain of linear layers: the layerwise product, and ECLipsE-Fast, which is never above it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calipers.errors import UsageError

__all__ = ["Composed", "eclipse_fast", "layerwise_product", "proves_positive", "top_eigenvalue"]

Matrix = NDArray[np.float64]

_UNIT = 2.0**-53  # the relative error of one float64 operation
_TINY = 1e-290  # more than all that underflow loses in matrices whose largest entry is about 1
_SLACK = 1.01  # covers the rounding of the error bounds themselves: sums of up to 10^13 terms
_FLOOR = 0.49  # I - A/(2a) is at least I/2 in exact arithmetic; this much of it is proved


def _gamma(count: int) -> float:
    """Bound the relative error of a sum of ``count`` products, added in any order, fused or not.

    Returns:
        n u / (1 - n u), rounded up.
    """
    return _SLACK * count * _UNIT / (1.0 - count * _UNIT)


def _size(matrix: Matrix) -> float:
    """Bound the spectral norm by the Frobenius norm.

    Returns:
        The Frobenius norm, rounded up.
    """
    return _SLACK * float(np.linalg.norm(matrix)) + _TINY


def _raise_diagonal(matrix: Matrix, by: float) -> Matrix:
    """Add ``by`` to the diagonal in place, rounded up: the result is at least ``matrix + by I``.

    Returns:
        The matrix.
    """
    index = np.arange(len(matrix))
    matrix[index, index] = np.nextafter(matrix[index, index] + by, np.inf)
    return matrix


def _up(value: float) -> float:
    """Round up by one more float than needed, which covers one operation rounded to nearest.

    Returns:
        The next larger float.
    """
    return math.nextafter(value, math.inf)


def _scaled_up(value: float, exponent: int) -> float:
    """Multiply by a power of two.

    Returns:
        The product, rounded up; infinite where no float is large enough.
    """
    if value == 0.0:
        return 0.0
    try:
        return _up(math.ldexp(value, exponent))
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
    shifted = _raise_diagonal(-matrix, 4.0 * _gamma(count + 4) * _SLACK * float(diagonal.sum()) + _TINY)
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
    row_sum = float(np.abs(matrix).sum(1).max()) * (1.0 + _gamma(count)) + _TINY
    estimate = max(float(np.linalg.eigvalsh(matrix)[-1]), 0.0)
    step = 8.0 * _gamma(count + 4) * count * max(estimate, 1e-12 * row_sum)
    for _ in range(8):
        bound = estimate + step
        if bound >= row_sum:
            break
        if proves_positive(-_raise_diagonal(matrix.copy(), -bound)):
            return _up(bound)
        step *= 4.0
    return row_sum


def _checked(weights: Sequence[ArrayLike]) -> list[Matrix]:
    """Read weights as float64 matrices that can be multiplied.

    Returns:
        The matrices.

    Raises:
        UsageError: if there are none, one is no finite matrix, or two neighbours do not fit.
    """
    matrices = [np.asarray(weight, dtype=np.float64) for weight in weights]
    if not matrices:
        raise UsageError("weights is empty: give the matrix of each linear layer, the first one first")
    for place, matrix in enumerate(matrices, 1):
        if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
            raise UsageError(
                f"weight {place} has shape {matrix.shape}: give finite matrices (outputs, inputs) with entries"
            )
    for place, (before, after) in enumerate(itertools.pairwise(matrices), 1):
        if after.shape[1] != before.shape[0]:
            raise UsageError(
                f"weight {place + 1} takes {after.shape[1]} inputs, weight {place} gives {before.shape[0]}: "
                "give the layers in the order in which they are applied"
            )
    return matrices


def _normalized(matrix: Matrix) -> tuple[Matrix, int]:
    """Divide by a power of two, which is exact, so that the largest magnitude lies in [1/2, 1).

    Returns:
        The matrix and the exponent.
    """
    exponent = int(np.frexp(np.abs(matrix).max())[1])
    half = exponent // 2  # in two steps: 2^-1074 would take a factor beyond the largest float
    return np.ldexp(np.ldexp(matrix, -half), half - exponent), exponent


def _congruence(weight: Matrix, middle: Matrix | None) -> Matrix:
    """Bound ``W X W^T`` from above in Loewner's order (``X = I`` where it is None).

    With ``|fl(AB) - AB| <= gamma |A| |B|`` entry by entry, the error of the two products is at most ``gamma (||T|| +
    ||X|| ||W||) ||W||`` in Frobenius norms, ``T = fl(WX)``; that much is added to the diagonal.

    Returns:
        An exactly symmetric matrix of floats that is at least the true product.
    """
    gamma = _gamma(weight.shape[1])
    if middle is None:
        product = weight @ weight.T
        error = gamma * _size(weight) ** 2
    else:
        half = weight @ middle
        product = half @ weight.T
        error = gamma * (_size(half) + _size(middle) * _size(weight)) * _size(weight)
    symmetric = 0.5 * (product + product.T)
    return _raise_diagonal(symmetric, _SLACK * (error + _UNIT * 2.0 * _size(product)) + _TINY)


def _inverse(matrix: Matrix) -> Matrix:
    """Bound the inverse of a matrix that is at least ``_FLOOR I`` from above in Loewner's order.

    For any ``X``, ``N^-1 - X = (I - X N) N^-1``, so ``||N^-1 - X|| <= ||I - X N|| / _FLOOR``; that much is added.

    Returns:
        An exactly symmetric matrix of floats that is at least the true inverse.
    """
    inverse = np.linalg.inv(matrix).astype(np.float64, copy=False)
    residual = np.eye(len(matrix)) - inverse @ matrix
    error = _size(residual) * (1.0 + 2.0 * _UNIT) + _gamma(len(matrix) + 1) * _size(inverse) * _size(matrix)
    symmetric = 0.5 * (inverse + inverse.T)
    return _raise_diagonal(symmetric, _SLACK * (error / _FLOOR + _UNIT * 2.0 * _size(inverse)) + _TINY)


def _remaining(product: Matrix, bound: float) -> Matrix:
    """Bound ``I - A/(2a)`` from below in Loewner's order.

    Returns:
        An exactly symmetric matrix of floats that is at most the true difference.
    """
    scaled = product / (2.0 * bound)
    scaled = _raise_diagonal(scaled, _SLACK * _UNIT * (_size(scaled) + 2.0) + _TINY)
    return -_raise_diagonal(scaled, -1.0)


@final
@dataclass(frozen=True, eq=False)
class Composed:
    """What is proved of a chain of linear layers with activations of slope in [0, 1] between them.

    For every pair of inputs with difference ``u`` the outputs differ by a ``d`` with ``(r . d)^2 <= r^T G r ||u||^2``
    for all ``r``, where ``G = 4^exponent gram``.

    Args:
        gram: the matrix of that form, (outputs, outputs), exactly symmetric.
        exponent: the power of four that multiplies it.
        value: an upper bound on the l2 Lipschitz constant of the chain, rounded up.
        multipliers: the ``lambda_i`` used, one a hidden layer: any positive ones that keep every ``M_i`` positive
            definite prove a bound.
    """

    gram: Matrix
    exponent: int
    value: float
    multipliers: tuple[float, ...]

    def row(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Bound the Lipschitz constants of the scalars ``r . f``, such as a difference of two logits.

        Args:
            rows: one vector or many, (..., outputs).

        Returns:
            An upper bound a row, (...), rounded up, in units of output by unit of input.

        Raises:
            UsageError: if the rows have another length than the outputs, or a value that is not finite.
        """
        vectors = np.asarray(rows, dtype=np.float64)
        count = len(self.gram)
        if vectors.ndim == 0 or vectors.shape[-1] != count or not np.isfinite(vectors).all():
            raise UsageError(
                f"rows have shape {vectors.shape}: give finite rows of {count} numbers, one an output"
            )
        largest = np.abs(vectors).max(-1, keepdims=True)
        unit = vectors / np.where(largest > 0.0, largest, 1.0)  # so that squares neither overflow nor vanish
        form = ((unit @ self.gram) * unit).sum(-1)
        error = ((np.abs(unit) @ np.abs(self.gram)) * np.abs(unit)).sum(-1)
        roots = self._roots(form + (2.0 * _gamma(count + 4)) * error + _TINY)
        with np.errstate(over="ignore", under="ignore"):
            bounds: NDArray[np.float64] = np.nextafter(roots * np.nextafter(largest[..., 0], np.inf), np.inf)
        return bounds

    def differences(self) -> NDArray[np.float64]:
        """Bound the Lipschitz constants of all differences ``f_i - f_j``.

        Returns:
            An upper bound a pair, (outputs, outputs), symmetric, rounded up; 0 on the diagonal.
        """
        diagonal = np.diagonal(self.gram)
        sums = diagonal[:, None] + diagonal[None, :]
        form = sums - 2.0 * self.gram + 8.0 * _UNIT * (sums + 2.0 * np.abs(self.gram)) + _TINY
        found = self._roots(form)
        np.fill_diagonal(found, 0.0)
        return found

    def _roots(self, form: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take square roots of values of the form, with the power of two, rounded up.

        Returns:
            The roots; infinite where no float is large enough.
        """
        with np.errstate(over="ignore", under="ignore"):
            root = np.ldexp(np.sqrt(np.maximum(form, 0.0)) * (1.0 + 8.0 * _UNIT), self.exponent)
        return np.nextafter(root, np.inf)


def layerwise_product(weights: Sequence[ArrayLike]) -> float:
    """Multiply the spectral norms of linear layers: the bound for any activations of slope in [-1, 1] between them.

    Each norm is the root of the largest eigenvalue of ``W W^T`` or ``W^T W``, bounded from above.

    Args:
        weights: the matrix of each layer, (outputs, inputs), the first layer first.

    Returns:
        An upper bound on the l2 Lipschitz constant, rounded up.

    Example:
        >>> f"{layerwise_product([[[3.0, 0.0]], [[2.0]]]):.6f}"
        '6.000000'
    """
    mantissa, exponent = 1.0, 0
    for matrix in _checked(weights):
        if not matrix.any():
            return 0.0
        scaled, shift = _normalized(matrix)
        rows, columns = scaled.shape
        top = top_eigenvalue(_congruence(scaled if rows <= columns else scaled.T, None))
        mantissa, more = math.frexp(_up(mantissa * _up(math.sqrt(top))))
        exponent += shift + more
    return _scaled_up(mantissa, exponent)


def eclipse_fast(weights: Sequence[ArrayLike]) -> Composed:
    r"""Bound a chain of linear layers with elementwise activations of **slope in [0, 1]** between them.

    .. math:: M_0 = I, \quad A_i = W_i M_{i-1}^{-1} W_i^T, \quad \lambda_i = 2 / \|A_i\|, \quad
              M_i = \lambda_i I - \tfrac{1}{4} \lambda_i^2 A_i, \quad L = \|W_l M_{l-1}^{-1} W_l^T\|^{1/2}

    Slopes in [0, 1] are those of ReLU, LeakyReLU, tanh, sigmoid, softplus and ELU(1). The bound is **not** one for
    abs, GroupSort, GELU, SiLU or pooling; a layer after an activation of slope in [0, b] is to be multiplied by b.
    It is never above the layerwise product: :math:`M_i \ge I / \|A_i\|`, so :math:`\|A_{i+1}\| \le \|W_{i+1}\|^2
    \|A_i\|`. ``docs/theory/lipschitz.md`` has the proof.

    Every step rounds towards a larger bound: products and inverses are raised in Loewner's order by a bound on their
    error, and :math:`M_i > 0` is proved by Cholesky's method with a margin, so the :math:`\lambda_i` may be estimates.

    Args:
        weights: the matrix of each layer, (outputs, inputs), the first layer first. Biases do not matter.

    Returns:
        What is proved: the constant of the chain, and of every combination of its outputs.

    Raises:
        UsageError: if the weights are not finite or their shapes do not fit.

    Reference:
        Xu and Sivaranjani 2024 (arXiv:2404.04375), ECLipsE-Fast. It is LipSDP-Layer (Fazlyab et al. 2019) with
        multipliers chosen one after the other.

    Example:
        >>> bound = eclipse_fast([[[1.0], [1.0]], [[1.0, -1.0]]])
        >>> print(f"{bound.value:.3f}, where the product is {layerwise_product([[[1.0], [1.0]], [[1.0, -1.0]]]):.3f}")
        1.414, where the product is 2.000
    """
    matrices = _checked(weights)
    outputs = matrices[-1].shape[0]
    if not all(matrix.any() for matrix in matrices):
        return Composed(np.zeros((outputs, outputs)), 0, 0.0, ())
    middle: Matrix | None = None  # at least M^-1 / (4^exponent mantissa)
    mantissa, exponent = 1.0, 0
    multipliers: list[float] = []
    for matrix in matrices[:-1]:
        scaled, shift = _normalized(matrix)
        product = _congruence(scaled, middle)
        bound = float(np.linalg.eigvalsh(product)[-1])
        remaining = _remaining(product, bound)
        while not proves_positive(_raise_diagonal(remaining.copy(), -_FLOOR)):
            bound *= 1.0 + 1e-6  # the estimate was too low
            remaining = _remaining(product, bound)
        middle = _inverse(remaining)
        mantissa, exponent = _renormalized(_up(mantissa * bound) * 0.5, exponent + shift)
        multipliers.append(_scaled_up(1.0 / mantissa, -2 * exponent))
    scaled, shift = _normalized(matrices[-1])
    gram = _congruence(scaled, middle)
    gram = _raise_diagonal(gram * mantissa, 2.0 * _UNIT * _size(gram * mantissa) + _TINY)
    exponent += shift
    value = _scaled_up(_up(math.sqrt(top_eigenvalue(gram))), exponent)
    return Composed(gram, exponent, value, tuple(multipliers))


def _renormalized(mantissa: float, exponent: int) -> tuple[float, int]:
    """Move powers of four from the factor to its exponent, which is exact.

    Returns:
        A factor in [1/4, 1) and the exponent of four.
    """
    fraction, power = math.frexp(mantissa)
    return math.ldexp(fraction, -(power % 2)), exponent + (power + power % 2) // 2
