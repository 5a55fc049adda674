"""Loewner's order: every bound is checked in 40 digits, from both sides."""

import mpmath
import numpy as np
import pytest

from calipers.certificates.lipschitz.composed import _remaining
from calipers.certificates.lipschitz.loewner import (
    bounded_congruence,
    bounded_inverse,
    proves_positive,
    top_eigenvalue,
)


def test_the_top_eigenvalue_is_bounded_from_above_and_tightly() -> None:
    with mpmath.workdps(40):
        for seed in range(20):
            factor = np.random.default_rng(seed).normal(size=(6, 4 + seed % 3))
            matrix = factor @ factor.T
            matrix = 0.5 * (matrix + matrix.T)
            exact = max(mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True))
            assert exact <= mpmath.mpf(top_eigenvalue(matrix)) <= exact * (1 + mpmath.mpf(10) ** -11)
    assert top_eigenvalue(np.ones((300, 300))) == pytest.approx(300.0, rel=1e-9)


def least_excess(above: np.ndarray, exact: mpmath.matrix) -> mpmath.mpf:
    """The least eigenvalue of ``above - exact``."""
    return min(mpmath.eigsy(mpmath.matrix(above.tolist()) - exact, eigvals_only=True))


def test_each_step_of_the_recursion_rounds_upwards_in_the_order_of_loewner() -> None:
    with mpmath.workdps(40):
        for seed in range(15):
            rng = np.random.default_rng(seed)
            weight, factor = rng.normal(size=(4, 7)), rng.normal(size=(7, 7))
            middle = 0.5 * (np.eye(7) + np.cov(factor) / np.linalg.norm(np.cov(factor), 2))
            middle = 0.5 * (middle + middle.T)
            w, x = mpmath.matrix(weight.tolist()), mpmath.matrix(middle.tolist())
            product = bounded_congruence(weight, middle)
            assert 0 <= least_excess(product, w * x * w.T) < 1e-12
            assert 0 <= least_excess(bounded_congruence(weight, None), w * w.T) < 1e-12
            assert 0 <= least_excess(bounded_inverse(middle, 0.45), x**-1) < 1e-12
            bound = float(np.linalg.eigvalsh(product)[-1])
            exact = mpmath.matrix(product.tolist()) / (2 * mpmath.mpf(bound)) - mpmath.eye(4)
            assert 0 <= least_excess(-_remaining(product, bound), exact) < 1e-13


def test_a_singular_matrix_is_never_proved_positive() -> None:
    for seed in range(60):
        factor = np.random.default_rng(seed).integers(-9, 10, (8, 7)).astype(float)
        assert not proves_positive(factor @ factor.T / 256.0)


def test_only_a_positive_definite_matrix_is_proved_so() -> None:
    rotation = np.linalg.qr(np.random.default_rng(9).normal(size=(30, 30)))[0]

    def proved(smallest: float) -> bool:
        matrix = rotation * np.linspace(smallest, 1.0, 30) @ rotation.T
        return proves_positive(0.5 * (matrix + matrix.T))

    assert proved(1e-10)
    assert not proved(0.0)
    assert not proved(-1e-15)
    assert not proves_positive(np.full((2, 2), np.nan))
