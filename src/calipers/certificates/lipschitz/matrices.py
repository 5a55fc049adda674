"""Upper bounds on the l1, l2 and linf norms of explicit matrices, in float64 and rounded up."""

from __future__ import annotations

import math
import sys

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.csgraph
from numpy.typing import NDArray

from calipers.certificates.lipschitz.cholesky import UNIT, lanczos, prove_banded, prove_dense
from calipers.errors import UsageError
from calipers.threat.threat_model import Norm

__all__ = [
    "BAND_ENTRIES",
    "DENSE_SIDE",
    "EIGENVALUE_SIDE",
    "OPERATIONS",
    "SVD_SIDE",
    "gram_iteration",
    "matrix_norm",
    "operator_norm",
    "power_of_two",
    "unscaled",
]

SVD_SIDE = 600
"""Smaller side up to which a dense matrix is given to the singular value decomposition."""

EIGENVALUE_SIDE = 2000
"""Smaller side up to which the factorization starts from the largest eigenvalue itself."""

DENSE_SIDE = 4096
"""Smaller side up to which an operator is made dense where its band is too wide."""

OPERATIONS = 2e11
"""Floating-point operations of a factorization that is still tried."""

BAND_ENTRIES = 1e8
"""Most entries of a band that is held in memory."""


def power_of_two(array: NDArray[np.float64]) -> float:
    """Find a power of two near the largest magnitude: dividing by it is exact and keeps squares in range.

    Args:
        array: weights, of any shape.

    Returns:
        The power, between half the largest magnitude and twice it; 1 where all are 0.

    Raises:
        UsageError: if a weight is not finite.
    """
    largest = float(np.abs(array).max(initial=0.0))
    if not math.isfinite(largest):
        raise UsageError(f"largest weight is {largest}: no bound can be given of NaN or infinite weights")
    return math.ldexp(1.0, min(math.frexp(largest)[1], 1023)) if largest else 1.0


def unscaled(value: float, scale: float) -> float:
    """Multiply a bound by the power of two that was divided out, which rounds where the product is no normal float.

    Args:
        value: 0 or more.
        scale: from :func:`power_of_two`.

    Returns:
        At least the product.
    """
    found = value * scale
    return math.nextafter(found, math.inf) if value > 0.0 and found < sys.float_info.min else found


def matrix_norm(matrix: NDArray[np.float64], norm: Norm) -> float:
    """Bound the operator norm of a dense matrix, from one norm to the same norm.

    l2: the singular value decomposition, which is backward stable; for large matrices an estimate that a Cholesky
    factorization of the Gram matrix proves, within 0.1 %. l1: the largest sum of a column,
    linf: of a row.

    Args:
        matrix: ``(outputs, inputs)``.
        norm: l1, l2 or linf.

    Returns:
        The norm, rounded up.

    Raises:
        UsageError: if the norm is l0, or an entry is not finite.

    Example:
        >>> print(f"{matrix_norm(np.array([[3.0, 0.0], [4.0, 0.0]]), Norm.L2):.6f}")
        5.000000
    """
    if matrix.size == 0:
        return 0.0
    scale = power_of_two(matrix)
    scaled = np.asarray(matrix, dtype=np.float64) / scale
    match norm:
        case Norm.L1 | Norm.LINF:
            axis = 0 if norm is Norm.L1 else 1
            return unscaled(_raised(np.abs(scaled).sum(axis=axis).max(), matrix.shape[axis]), scale)
        case Norm.L2:
            return unscaled(_dense_l2(scaled), scale)
        case Norm.L0:
            raise UsageError("norm is l0: operator norms are given in l1, l2 and linf")


def _raised(value: float, operations: int) -> float:
    """Raise a sum of non-negative numbers above the rounding errors of that many operations."""
    return float(value) * (1 + 2 * UNIT * (operations + 4))


def _dense_l2(matrix: NDArray[np.float64]) -> float:
    rows, columns = matrix.shape
    side, long = min(rows, columns), max(rows, columns)
    if not np.any(matrix):
        return 0.0
    if side <= SVD_SIDE and rows * columns <= 4 * SVD_SIDE**2:
        # The computed values are those of a matrix within a small multiple of (rows + columns) units.
        return _raised(np.linalg.svd(matrix, compute_uv=False)[0], 8 * (rows + columns))
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    gram = (gram + gram.T) / 2
    spread = float(np.square(matrix).sum())
    formed = 4 * UNIT * (long + 8) * spread
    if side <= EIGENVALUE_SIDE:
        top = float(scipy.linalg.eigvalsh(gram, subset_by_index=(side - 1, side - 1))[0])
        return prove_dense(gram, top, formed=formed, first=1e-8)
    return prove_dense(gram, lanczos(lambda v: gram @ v, side), formed=formed)


def gram_iteration(matrix: NDArray[np.float64], *, iterations: int = 8) -> float:
    r"""Bound the l2 norm of a dense matrix by squaring its Gram matrix.

    With :math:`G_1 = W^T W` and :math:`G_{t+1} = G_t^T G_t`, :math:`\|W\|_2 \le \|G_t\|_F^{2^{-t}}`,
    falling to the norm as :math:`t` grows. Each :math:`G_t` is divided by its Frobenius norm, and the
    rounding error of each product is added on the way back.

    Args:
        matrix: ``(outputs, inputs)``.
        iterations: number of products.

    Returns:
        The bound, rounded up.

    Reference:
        Delattre et al. 2023 (arXiv:2305.16173), Algorithm 1.
    """
    if matrix.size == 0 or not np.any(matrix):
        return 0.0
    scale = power_of_two(matrix)
    current = np.asarray(matrix, dtype=np.float64) / scale
    if current.shape[0] < current.shape[1]:
        current = current.T
    steps: list[tuple[float, float]] = []
    for _ in range(max(1, iterations)):
        mass = float(np.square(current).sum())
        error = 4 * UNIT * (current.shape[0] + 8) * mass
        current = current.T @ current
        size = float(np.sqrt(np.square(current).sum()))
        steps.append((size, error + 4 * UNIT * size))
        current = current / size
    bound = 1.0 + 4 * UNIT * current.size
    for size, error in reversed(steps):
        bound = math.sqrt((size * bound + error) * (1 + 8 * UNIT))
    return unscaled(bound * (1 + 2 * UNIT), scale)


def operator_norm(matrix: scipy.sparse.csr_array | NDArray[np.float64], norm: Norm) -> float:
    """Bound the operator norm of an explicit linear operator, sparse or dense.

    Args:
        matrix: ``(outputs, inputs)``.
        norm: l1, l2 or linf.

    Returns:
        The norm, rounded up: within 0.1 % for l2 where a factorization is possible, else a looser bound.

    Raises:
        UsageError: if the norm is l0, or an entry is not finite.
    """
    if isinstance(matrix, np.ndarray):
        return matrix_norm(matrix, norm)
    sparse = matrix.astype(np.float64).copy()
    sparse.sum_duplicates()
    if sparse.nnz == 0:
        return 0.0
    scale = power_of_two(sparse.data)
    sparse.data /= scale
    magnitude = abs(sparse)
    one, infinity = (_raised(magnitude.sum(axis=axis).max(), sparse.shape[axis]) for axis in (0, 1))
    match norm:
        case Norm.L1:
            return unscaled(one, scale)
        case Norm.LINF:
            return unscaled(infinity, scale)
        case Norm.L2:
            return unscaled(_sparse_l2(sparse, one, infinity), scale)
        case Norm.L0:
            raise UsageError("norm is l0: operator norms are given in l1, l2 and linf")


def _sparse_l2(matrix: scipy.sparse.csr_array, one: float, infinity: float) -> float:
    """Bound the l2 norm of a sparse matrix whose l1 and linf norms are known."""
    side = min(matrix.shape)
    if side <= SVD_SIDE and max(matrix.shape) * side <= BAND_ENTRIES:
        return _dense_l2(matrix.toarray())
    gram = scipy.sparse.csr_array(matrix @ matrix.T if matrix.shape[0] == side else matrix.T @ matrix)
    order = scipy.sparse.csgraph.reverse_cuthill_mckee(gram, symmetric_mode=True)
    sorted_gram = scipy.sparse.coo_array(scipy.sparse.tril(scipy.sparse.csr_array(gram[order][:, order])))
    row, column = sorted_gram.coords
    width = int((row - column).max(initial=0))
    estimate = lanczos(lambda v: gram @ v, side)
    longest = int(np.diff(matrix.indptr).max()) + int(np.bincount(matrix.indices).max())
    formed = 4 * UNIT * (longest + 8) * one * infinity
    if side * (width + 1) <= BAND_ENTRIES and side * (width + 1.0) ** 2 <= OPERATIONS:

        def form() -> NDArray[np.float64]:
            band = np.zeros((side, width + 1)).T
            band[row - column, column] = sorted_gram.data
            return band

        proved = prove_banded(form, estimate, formed=formed)
    elif side <= DENSE_SIDE:
        proved = prove_dense(gram.toarray(), estimate, formed=formed)
    else:
        proved = math.inf
    return min(proved, math.sqrt(one * infinity) * (1 + 4 * UNIT))
