"""Norms of matrices: exact where known, never below, in every norm."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse

from calipers.certificates.lipschitz import matrices
from calipers.certificates.lipschitz.matrices import gram_iteration, matrix_norm, operator_norm
from calipers.errors import UsageError
from calipers.threat.threat_model import Norm

EXACT = {
    Norm.L1: lambda a: np.abs(a).sum(0).max(),
    Norm.L2: lambda a: np.linalg.norm(a, 2),
    Norm.LINF: lambda a: np.abs(a).sum(1).max(),
}


@pytest.mark.parametrize("norm", list(EXACT))
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (40, 41), (300, 20)])
def test_linear_layers_are_exact_from_above(shape: tuple[int, int], norm: Norm) -> None:
    generator = np.random.default_rng(shape[0])
    for scale in (1.0, 1e-170, 1e170):
        matrix = generator.standard_normal(shape) * scale
        true = EXACT[norm](matrix / scale) * scale
        for bound in (matrix_norm(matrix, norm), operator_norm(scipy.sparse.csr_array(matrix), norm)):
            assert true * (1 - 1e-15) <= bound <= true * (1 + 1e-10)
            assert bound / 1.05 < true


@pytest.mark.parametrize("norm", list(EXACT))
def test_sums_round_up(norm: Norm) -> None:
    """A thousand times 0.1, whose float64 sum falls short of the sum of the floats."""
    matrix = np.full((1000, 1000), 0.1)
    true = 0.1 * 1000 if norm is not Norm.L2 else 100.0
    assert matrix_norm(matrix, norm) >= math.nextafter(true, 0)
    assert matrix_norm(matrix, norm) == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("shape", [(60, 45), (45, 60), (80, 80)])
@pytest.mark.parametrize("eigenvalues", [True, False])
def test_large_matrices_are_proved_by_a_factorization(
    shape: tuple[int, int], eigenvalues: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrices, "SVD_SIDE", 0)
    monkeypatch.setattr(matrices, "EIGENVALUE_SIDE", 2000 if eigenvalues else 0)
    for seed in range(10):
        matrix = np.random.default_rng(seed).standard_normal(shape)
        true = np.linalg.norm(matrix, 2)
        assert true <= matrix_norm(matrix, Norm.L2) <= true * (1 + (2e-8 if eigenvalues else 2e-3))
        sparse = scipy.sparse.csr_array(matrix)
        assert true <= operator_norm(sparse, Norm.L2) <= true * 1.002


def test_a_sparse_operator_is_proved_in_its_band_or_else_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages over windows that stride 2, in a random order of rows and columns."""
    n = 1600
    row = np.repeat(np.arange(n // 2), 2)
    matrix = scipy.sparse.csr_array((np.full(n, 0.5), (row, np.random.default_rng(0).permutation(n))))
    true = math.sqrt(0.5)
    for limit in (1e8, 0):
        monkeypatch.setattr(matrices, "BAND_ENTRIES", limit)
        assert true <= operator_norm(matrix, Norm.L2) <= true * 1.001
    monkeypatch.setattr(matrices, "DENSE_SIDE", 0)
    assert (
        true <= operator_norm(matrix, Norm.L2) == pytest.approx(true, rel=1e-9)
    )  # sqrt(l1 norm * linf norm)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
def test_gram_iteration_falls_to_the_norm_from_above(shape: tuple[int, int]) -> None:
    for seed in range(10):
        matrix = np.random.default_rng(seed).standard_normal(shape)
        true = np.linalg.norm(matrix, 2)
        bounds = [gram_iteration(matrix, iterations=t) for t in (1, 2, 4, 8, 12)]
        assert all(a >= b for a, b in itertools.pairwise(bounds))
        assert true <= bounds[-1] <= true * 1.002


def test_gram_iteration_of_an_orthogonal_matrix_is_one() -> None:
    """The largest sum of equal singular values: the slowest case, known exactly after t products."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))
    for t in (1, 3, 10):
        assert gram_iteration(q, iterations=t) == pytest.approx(16 ** (0.5 ** (t + 1)), rel=1e-10)


def test_power_iteration_would_fall_short() -> None:
    """Why it is in no certificate: ten steps on a 512 x 512 Gaussian matrix."""
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((512, 512))
    vector = generator.standard_normal(512)
    for _ in range(10):
        vector = matrix.T @ (matrix @ vector)
        vector /= np.linalg.norm(vector)
    true = np.linalg.norm(matrix, 2)
    assert np.linalg.norm(matrix @ vector) < 0.985 * true
    assert matrix_norm(matrix, Norm.L2) >= true


def test_no_bound_is_given_of_what_is_not_finite() -> None:
    for bad in (np.nan, np.inf):
        matrix = np.array([[1.0, bad], [0.0, 1.0]])
        for norm in EXACT:
            with pytest.raises(UsageError, match="NaN or infinite"):
                matrix_norm(matrix, norm)
            with pytest.raises(UsageError, match="NaN or infinite"):
                operator_norm(scipy.sparse.csr_array(matrix), norm)
    with pytest.raises(UsageError, match="l0"):
        matrix_norm(np.eye(2), Norm.L0)
    with pytest.raises(UsageError, match="l0"):
        operator_norm(scipy.sparse.csr_array(np.eye(2)), Norm.L0)


def test_nothing_moves_through_zeros() -> None:
    for norm in EXACT:
        assert matrix_norm(np.zeros((3, 2)), norm) == 0.0
        assert operator_norm(scipy.sparse.csr_array((700, 700)), norm) == 0.0
        assert matrix_norm(np.zeros((700, 700)), norm) == 0.0
    assert gram_iteration(np.zeros((3, 2))) == 0.0
