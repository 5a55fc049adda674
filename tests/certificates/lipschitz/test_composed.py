"""Composed bounds: known constants, the published digits, and every rounding on the safe side."""

import itertools
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.io

from calipers.certificates.lipschitz import composed
from calipers.certificates.lipschitz.composed import (
    eclipse_fast,
    layerwise_product,
)
from calipers.errors import UsageError


def drawn(widths: tuple[int, ...], seed: int, *, positive: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=(m, n)) / n**0.5 for n, m in itertools.pairwise(widths)]
    return [np.abs(weight) for weight in made] if positive else made


def chain(weights: list[np.ndarray]) -> np.ndarray:
    product = weights[0]
    for weight in weights[1:]:
        product = weight @ product
    return product


def exact_bound(weights: list[np.ndarray], multipliers: tuple[float, ...]) -> mpmath.mpf:
    """The recursion with these multipliers, in 40 digits and without any care for rounding."""
    with mpmath.workdps(40):
        inverse = mpmath.eye(weights[0].shape[1])
        for weight, value in zip(weights[:-1], multipliers, strict=True):
            w = mpmath.matrix(weight.tolist())
            multiplier = mpmath.mpf(value)
            product = w * inverse * w.T
            inverse = (multiplier * mpmath.eye(w.rows) - multiplier**2 / 4 * product) ** -1
        last = mpmath.matrix(weights[-1].tolist())
        return mpmath.sqrt(max(mpmath.eigsy(last * inverse * last.T, eigvals_only=True)))


def lipsdp_weights(folder: Path, name: str) -> list[np.ndarray]:
    path = folder / "lipsdp" / f"{name}.mat"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return [np.asarray(weight, dtype=np.float64) for weight in scipy.io.loadmat(path)["weights"].ravel()]


def test_the_published_digits_of_the_random_network(data_folder: Path) -> None:
    weights = lipsdp_weights(data_folder, "random_weights")
    assert layerwise_product(weights) == pytest.approx(43.3056, abs=5e-5)
    assert eclipse_fast(weights).value == pytest.approx(39.90, abs=5e-3)
    assert np.linalg.norm(chain(weights), 2) == pytest.approx(36.482, abs=5e-4)


def test_the_published_product_of_the_mnist_network(data_folder: Path) -> None:
    weights = lipsdp_weights(data_folder, "mnist_weights")
    assert layerwise_product(weights) == pytest.approx(31.5035, abs=5e-5)
    assert eclipse_fast(weights).value < 26.81


@pytest.mark.parametrize("widths", [(4, 3), (7, 7, 7), (2, 10, 30, 20, 2), (9, 1, 5)])
def test_a_bound_lies_between_the_known_constant_and_the_product(widths: tuple[int, ...]) -> None:
    """With weights of one sign all units are active where x is positive, so the constant is that of the product."""
    for seed in range(20):
        weights = drawn(widths, seed, positive=True)
        true = float(np.linalg.norm(chain(weights), 2))
        value = eclipse_fast(weights).value
        assert true * (1.0 - 1e-13) <= value <= layerwise_product(weights) * (1.0 + 1e-9)


def test_one_layer_is_its_spectral_norm() -> None:
    for shape in [(5, 5), (40, 3), (3, 200)]:
        weight = np.random.default_rng(1).normal(size=shape)
        true = np.linalg.norm(weight, 2)
        assert eclipse_fast([weight]).value == pytest.approx(true, rel=1e-10)
        assert layerwise_product([weight]) == pytest.approx(true, rel=1e-10)


def test_every_pattern_of_slopes_lies_below_the_bound() -> None:
    rng = np.random.default_rng(2)
    for seed in range(30):
        first, second, last = drawn((3, 4, 4, 3), seed)
        bound = eclipse_fast([first, second, last])
        differences = bound.differences()
        slopes = [np.array(p) for p in itertools.product((0.0, 1.0), repeat=4)] + [*rng.random((20, 4))]
        jacobians = np.array([last * b @ second * a @ first for a in slopes for b in slopes])
        assert np.linalg.norm(jacobians, 2, axis=(1, 2)).max() <= bound.value
        for i, j in itertools.combinations(range(3), 2):
            assert np.linalg.norm(jacobians[:, i] - jacobians[:, j], axis=1).max() <= differences[i, j]


def test_one_hidden_unit_is_tight() -> None:
    """One unit has no choice of sign: the bound is the constant, to rounding."""
    for seed in range(10):
        first, last = drawn((6, 1, 4), seed)
        true = np.linalg.norm(first) * np.linalg.norm(last)
        assert eclipse_fast([first, last]).value == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("widths", [(3, 5, 4), (6, 12, 9, 2), (10, 4, 8, 8, 3)])
def test_the_float64_bound_is_never_below_exact_arithmetic(widths: tuple[int, ...]) -> None:
    for seed in range(6):
        weights = drawn(widths, seed)
        bound = eclipse_fast(weights)
        exact = exact_bound(weights, bound.multipliers)
        assert exact <= mpmath.mpf(bound.value) <= exact * (1 + mpmath.mpf(10) ** -9)


def test_the_multipliers_are_those_of_the_closed_form() -> None:
    first, second, last = drawn((3, 5, 4, 2), 3)
    inverse = np.eye(3)
    for weight, multiplier in zip(
        (first, second), eclipse_fast([first, second, last]).multipliers, strict=True
    ):
        product = weight @ inverse @ weight.T
        assert multiplier == pytest.approx(2.0 / np.linalg.norm(product, 2), rel=1e-9)
        inverse = np.linalg.inv(multiplier * np.eye(len(product)) - multiplier**2 / 4 * product)


def test_a_row_is_the_bound_of_the_network_with_that_row_as_last_layer() -> None:
    weights = drawn((8, 12, 9, 10), 4)
    pairs = list(itertools.combinations(range(10), 2))
    rows = np.array([np.eye(10)[i] - np.eye(10)[j] for i, j in pairs])
    bound = eclipse_fast(weights)
    alone = [eclipse_fast([*weights[:-1], row[None] @ weights[-1]]).value for row in rows]
    np.testing.assert_allclose(bound.row(rows), alone, rtol=1e-9)
    np.testing.assert_allclose([bound.differences()[pair] for pair in pairs], alone, rtol=1e-9)
    assert bound.row(rows[0]).shape == ()
    assert bound.row(1e200 * rows[0]) == pytest.approx(1e200 * alone[0], rel=1e-9)
    assert bound.row(rows).max() < 0.98 * np.sqrt(2.0) * bound.value


def test_a_row_is_never_below_exact_arithmetic() -> None:
    weights = drawn((5, 9, 7, 4), 5)
    bound = eclipse_fast(weights)
    for row in np.random.default_rng(6).integers(-3, 4, (6, 4)).astype(float):
        with mpmath.workdps(40):
            merged = mpmath.matrix(row[None].tolist()) * mpmath.matrix(weights[-1].tolist())
            inverse = mpmath.eye(5)
            for weight, value in zip(weights[:-1], bound.multipliers, strict=True):
                w = mpmath.matrix(weight.tolist())
                inverse = (
                    value * mpmath.eye(w.rows) - mpmath.mpf(value) ** 2 / 4 * (w * inverse * w.T)
                ) ** -1
            exact = mpmath.sqrt((merged * inverse * merged.T)[0])
        assert exact <= mpmath.mpf(float(bound.row(row))) <= exact * (1 + mpmath.mpf(10) ** -9)


@pytest.mark.parametrize("power", [-300, -30, 30, 300])
def test_powers_of_two_come_out_exactly(power: int) -> None:
    weights = drawn((4, 6, 5, 3), 7)
    scaled = [np.ldexp(weights[0], power), *weights[1:]]
    assert eclipse_fast(scaled).value == np.ldexp(eclipse_fast(weights).value, power)
    assert layerwise_product(scaled) == np.ldexp(layerwise_product(weights), power)


def test_what_no_float_can_hold_becomes_infinite_and_never_zero() -> None:
    weights = drawn((4, 4, 4, 4), 8)
    large = [1e150 * weight for weight in weights]
    small = [1e-150 * weight for weight in weights]
    assert eclipse_fast(large).value == layerwise_product(large) == np.inf
    assert np.all(np.isinf(eclipse_fast(large).row(np.eye(4))))
    assert eclipse_fast(small).value > 0.0 and layerwise_product(small) > 0.0
    assert eclipse_fast([weights[0], 0.0 * weights[1]]).value == 0.0


def test_weights_that_do_not_fit_are_refused_by_place() -> None:
    a, b = np.ones((3, 2)), np.ones((4, 3))
    with pytest.raises(UsageError, match="weight 2 takes 2 inputs, weight 1 gives 4"):
        eclipse_fast([b, a])
    with pytest.raises(UsageError, match="weight 1 has shape"):
        layerwise_product([np.full((2, 2), np.nan)])
    with pytest.raises(UsageError, match="empty"):
        eclipse_fast([])
    with pytest.raises(UsageError, match="rows of 4 numbers"):
        eclipse_fast([a, b]).row(np.ones(3))


def test_all_pairs_of_a_wide_network_come_of_one_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    made = eclipse_fast(drawn((784, 512, 512, 256, 10), 10))

    def costly(*_: object) -> None:
        raise AssertionError("a pair was composed again")

    for name in ("bounded_congruence", "bounded_inverse", "proves_positive", "top_eigenvalue"):
        monkeypatch.setattr(composed, name, costly)
    pairs = made.differences()
    unit = np.eye(10)
    assert pairs == pytest.approx(made.row(unit[:, None] - unit[None, :]), rel=1e-9, abs=1e-300)
