"""Norms proved by a factorization: never below, and near."""

import math

import numpy as np
import pytest

from calipers.certificates.lipschitz.cholesky import lanczos, prove_banded, prove_dense


def _gram(seed: int, n: int) -> np.ndarray:
    matrix = np.random.default_rng(seed).standard_normal((n, n))
    return matrix @ matrix.T


def _band(gram: np.ndarray, width: int) -> np.ndarray:
    band = np.zeros((len(gram), width + 1)).T
    for row in range(width + 1):
        band[row, : len(gram) - row] = np.diag(gram, -row)
    return band


def _tridiagonal(n: int) -> np.ndarray:
    """2 on the diagonal and -1 beside it: its largest eigenvalue is 2 + 2 cos(pi / (n + 1))."""
    return 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_lanczos_comes_near_from_below(n: int) -> None:
    gram = _gram(n, n)
    true = np.linalg.eigvalsh(gram)[-1]
    assert 0.999 * true <= lanczos(lambda v: gram @ v, n) <= true * (1 + 1e-12)


def test_a_low_estimate_is_not_proved() -> None:
    """An estimate that is too low costs attempts, never soundness."""
    for share in (0.5, 0.9, 0.99, 0.999, 1.0, 1.2):
        gram = _gram(3, 30)
        true = math.sqrt(np.linalg.eigvalsh(gram)[-1])
        estimate = share * true**2
        for bound in (
            prove_dense(gram, estimate, formed=0.0),
            prove_banded(lambda gram=gram: _band(gram, 29), estimate, formed=0.0),
        ):
            assert true <= bound <= 1.5 * true


def test_an_estimate_that_is_far_too_low_proves_nothing() -> None:
    assert prove_dense(np.eye(3), 1e-3, formed=0.0) == math.inf


@pytest.mark.parametrize("n", [2, 10, 300])
def test_a_good_estimate_is_proved_within_a_thousandth(n: int) -> None:
    true = math.sqrt(2 + 2 * math.cos(math.pi / (n + 1)))
    gram = _tridiagonal(n)
    estimate = lanczos(lambda v: gram @ v, n)
    assert true <= prove_banded(lambda: _band(gram, 1), estimate, formed=0.0) <= 1.001 * true
    assert true <= prove_dense(gram, true**2, formed=0.0, first=1e-8) <= (1 + 2e-8) * true


def test_the_error_of_the_gram_matrix_is_added() -> None:
    assert prove_dense(np.eye(2), 1.0, formed=3.0) >= 2.0


def test_a_diagonal_matrix_is_a_band_of_width_zero() -> None:
    diagonal = np.array([[1.0], [4.0], [2.0]]).T
    assert prove_banded(diagonal.copy, 4.0, formed=0.0) == pytest.approx(2, 1e-3)


def test_a_factorization_with_nan_proves_nothing() -> None:
    gram = np.eye(3)
    gram[2, 1] = gram[1, 2] = np.nan
    assert prove_dense(gram, 1.0, formed=0.0) == math.inf
    assert prove_banded(lambda: _band(gram, 1), 1.0, formed=0.0) == math.inf
