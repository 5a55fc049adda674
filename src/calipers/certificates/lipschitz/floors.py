"""Floors: the norm of one linear layer from below, printed beside its bound from above."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from calipers.certificates.lipschitz.operators import Convolved, Dense, Monomial, Operator
from calipers.threat.threat_model import Norm

__all__ = ["operator_floor"]

_STEPS = 60
_SMALLEST = 3
_DOWN = 1 - 1e-9


def operator_floor(operator: Operator, norm: Norm) -> float:
    """Bound the norm of a linear layer from below, by an input that it stretches so.

    For l2 the input comes of the Lanczos process, and of power iteration after it; for l1 and linf it is a unit vector or a
    vector of signs, which the largest column or row names, and the norm is met.

    Args:
        operator: the layer's map.
        norm: the norm of inputs and outputs.

    Returns:
        A lower bound, rounded down by a billionth.
    """
    match operator:
        case Monomial():
            return operator.norm(norm).value * _DOWN
        case Dense():
            return _stretch(sparse.csr_array(operator.matrix), norm)
        case Convolved():
            return _stretch(operator.convolution.matrix(operator.size), norm)


def _stretch(matrix: sparse.csr_array, norm: Norm) -> float:
    if not matrix.nnz:
        return 0.0
    if norm is Norm.L2:
        return _power(matrix) * _DOWN
    size = abs(matrix)
    sums = size.sum(0) if norm is Norm.L1 else size.sum(1)
    return float(np.max(np.asarray(sums))) * _DOWN


def _power(matrix: sparse.csr_array) -> float:
    vector = np.random.default_rng(0).normal(size=matrix.shape[1])
    if min(matrix.shape) > _SMALLEST:
        # the Lanczos process names the input; its stretch is what is returned
        vector = linalg.svds(matrix, k=1, tol=1e-6, v0=vector[: min(matrix.shape)], random_state=0)[2][0]
    adjoint = matrix.T.tocsr()
    best = 0.0
    for _ in range(_STEPS):
        size = float(np.linalg.norm(vector))
        if size == 0.0:
            break
        image = matrix @ (vector / size)
        found = float(np.linalg.norm(image))
        done = found < best * (1 + 1e-7)
        best = max(best, found)
        if done:
            break
        vector = adjoint @ image
    return best
