"""Bounds on a whole chain of linear layers: the layerwise product, and ECLipsE-Fast, which is never above it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calipers.certificates.lipschitz.loewner import (
    SLACK,
    TINY,
    UNIT,
    Matrix,
    bounded_congruence,
    bounded_inverse,
    frobenius,
    proves_positive,
    raise_diagonal,
    rounding,
    scaled_up,
    top_eigenvalue,
    up,
)
from calipers.errors import UsageError

__all__ = ["Composed", "checked_weights", "eclipse_fast", "layerwise_product", "normalized"]

_FLOOR = 0.49  # I - A/(2a) is at least I/2 in exact arithmetic; this much of it is proved


def checked_weights(weights: Sequence[ArrayLike]) -> list[Matrix]:
    """Read weights as float64 matrices that can be multiplied.

    Args:
        weights: the matrix of each layer, the first layer first.

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


def normalized(matrix: Matrix) -> tuple[Matrix, int]:
    """Divide by a power of two, which is exact, so that the largest magnitude lies in [1/2, 1).

    Args:
        matrix: finite, with an entry that is not 0.

    Returns:
        The matrix and the exponent.
    """
    exponent = int(np.frexp(np.abs(matrix).max())[1])
    half = exponent // 2  # in two steps: 2^-1074 would take a factor beyond the largest float
    return np.ldexp(np.ldexp(matrix, -half), half - exponent), exponent


def _remaining(product: Matrix, bound: float) -> Matrix:
    """Bound ``I - A/(2a)`` from below in Loewner's order.

    Returns:
        An exactly symmetric matrix of floats that is at most the true difference.
    """
    scaled = product / (2.0 * bound)
    scaled = raise_diagonal(scaled, SLACK * UNIT * (frobenius(scaled) + 2.0) + TINY)
    return -raise_diagonal(scaled, -1.0)


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
        roots = self._roots(form + (2.0 * rounding(count + 4)) * error + TINY)
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
        form = sums - 2.0 * self.gram + 8.0 * UNIT * (sums + 2.0 * np.abs(self.gram)) + TINY
        found = self._roots(form)
        np.fill_diagonal(found, 0.0)
        return found

    def _roots(self, form: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take square roots of values of the form, with the power of two, rounded up.

        Returns:
            The roots; infinite where no float is large enough.
        """
        with np.errstate(over="ignore", under="ignore"):
            root = np.ldexp(np.sqrt(np.maximum(form, 0.0)) * (1.0 + 8.0 * UNIT), self.exponent)
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
    for matrix in checked_weights(weights):
        if not matrix.any():
            return 0.0
        scaled, shift = normalized(matrix)
        rows, columns = scaled.shape
        top = top_eigenvalue(bounded_congruence(scaled if rows <= columns else scaled.T, None))
        mantissa, more = math.frexp(up(mantissa * up(math.sqrt(top))))
        exponent += shift + more
    return scaled_up(mantissa, exponent)


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
    matrices = checked_weights(weights)
    outputs = matrices[-1].shape[0]
    if not all(matrix.any() for matrix in matrices):
        return Composed(np.zeros((outputs, outputs)), 0, 0.0, ())
    middle: Matrix | None = None  # at least M^-1 / (4^exponent mantissa)
    mantissa, exponent = 1.0, 0
    multipliers: list[float] = []
    for matrix in matrices[:-1]:
        scaled, shift = normalized(matrix)
        product = bounded_congruence(scaled, middle)
        bound = float(np.linalg.eigvalsh(product)[-1])
        remaining = _remaining(product, bound)
        while not proves_positive(raise_diagonal(remaining.copy(), -_FLOOR)):
            bound *= 1.0 + 1e-6  # the estimate was too low
            remaining = _remaining(product, bound)
        middle = bounded_inverse(remaining, _FLOOR)
        mantissa, exponent = _renormalized(up(mantissa * bound) * 0.5, exponent + shift)
        multipliers.append(scaled_up(1.0 / mantissa, -2 * exponent))
    scaled, shift = normalized(matrices[-1])
    gram = bounded_congruence(scaled, middle)
    gram = raise_diagonal(gram * mantissa, 2.0 * UNIT * frobenius(gram * mantissa) + TINY)
    exponent += shift
    value = scaled_up(up(math.sqrt(top_eigenvalue(gram))), exponent)
    return Composed(gram, exponent, value, tuple(multipliers))


def _renormalized(mantissa: float, exponent: int) -> tuple[float, int]:
    """Move powers of four from the factor to its exponent, which is exact.

    Returns:
        A factor in [1/4, 1) and the exponent of four.
    """
    fraction, power = math.frexp(mantissa)
    return math.ldexp(fraction, -(power % 2)), exponent + (power + power % 2) // 2
