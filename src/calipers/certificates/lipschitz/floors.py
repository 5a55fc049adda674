"""Floors: the norm of one linear layer from below, printed beside its bound from above."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from calipers.certificates.lipschitz.operators import Convolved, Dense, Monomial, Operator
from calipers.threat.threat_model import Norm

__all__ = ["operator_floor"]

_STEPS = 40
_DOWN = 1 - 1e-9


def operator_floor(operator: Operator, norm: Norm) -> float:
    """Bound the norm of a linear layer from below, by an input that it stretches so.

    For l2 the input comes of forty steps of the Lanczos process; for l1 and linf it is a unit vector or a
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
            found = _stretch(sparse.csr_array(operator.matrix), norm)
        case Convolved():
            found = _stretch(operator.convolution.matrix(operator.size), norm)
    return max(found - (1.0 + 1e-9) * operator.slack, 0.0)  # what merging may have added to the map


def _stretch(matrix: sparse.csr_array, norm: Norm) -> float:
    if not matrix.nnz:
        return 0.0
    if norm is Norm.L2:
        return _lanczos(matrix) * _DOWN
    size = abs(matrix)
    sums = size.sum(0) if norm is Norm.L1 else size.sum(1)
    return float(np.max(np.asarray(sums))) * _DOWN


def _lanczos(matrix: sparse.csr_array) -> float:
    # The best combination of v, A^T A v, (A^T A)^2 v, ...; its stretch is computed anew, so that nothing is taken on
    # trust, and a process that has not converged gives a lower floor.
    adjoint = matrix.T.tocsr()
    start = np.random.default_rng(0).normal(size=matrix.shape[1])
    basis = [start / np.linalg.norm(start)]
    images = [matrix @ basis[0]]
    for _ in range(min(_STEPS, matrix.shape[1]) - 1):
        following = adjoint @ images[-1]
        for _ in range(2):
            known = np.stack(basis)
            following = following - known.T @ (known @ following)
        size = float(np.linalg.norm(following))
        if size <= 1e-10 * float(np.linalg.norm(images[-1])):
            break
        basis.append(following / size)
        images.append(matrix @ basis[-1])
    weights = np.linalg.svd(np.stack(images, axis=1), full_matrices=False)[2][0]
    best = np.stack(basis, axis=1) @ weights
    return float(np.linalg.norm(matrix @ best) / np.linalg.norm(best))
