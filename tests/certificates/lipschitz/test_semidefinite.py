"""LipSDP: published digits, known constants, and a solver that may answer what it likes."""

import itertools
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.io

from calipers.certificates.lipschitz import semidefinite
from calipers.certificates.lipschitz.composed import eclipse_fast, layerwise_product
from calipers.certificates.lipschitz.loewner import bounded_congruence
from calipers.certificates.lipschitz.semidefinite import lipsdp_layer, lipsdp_neuron
from calipers.errors import MissingExtra, UsageError


@pytest.fixture
def solver() -> None:
    pytest.importorskip("cvxpy", reason="needs the extra lipsdp")


def drawn(widths: tuple[int, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(m, n)) / n**0.5 for n, m in itertools.pairwise(widths)]


def jacobians(weights: list[np.ndarray], seed: int, count: int = 200) -> np.ndarray:
    """Jacobians with slopes drawn from {0, 1}, or from [0, 1]: all that the activations allow."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        product = weights[0]
        for weight in weights[1:]:
            slopes = rng.random(len(product))
            product = weight @ ((slopes if number % 2 else slopes.round())[:, None] * product)
        found.append(product)
    return np.array(found)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("name", ["CLARABEL", "SCS"])
def test_the_published_digits_of_the_random_network(data_folder: Path, name: semidefinite.Solver) -> None:
    path = data_folder / "lipsdp" / "random_weights.mat"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    weights = [np.asarray(weight, dtype=np.float64) for weight in scipy.io.loadmat(path)["weights"].ravel()]
    true = np.linalg.norm(weights[3] @ weights[2] @ weights[1] @ weights[0], 2)
    neuron = lipsdp_neuron(weights, solver=name)
    assert neuron == pytest.approx(36.482, abs=5e-4)
    assert true <= neuron <= true * (1.0 + 1e-6)
    assert lipsdp_layer(weights, solver=name) == pytest.approx(39.839, abs=5e-4)


@pytest.mark.usefixtures("solver")
def test_the_constant_of_the_absolute_value_is_found_where_the_others_miss_it() -> None:
    """relu(x) + relu(-x) = |x|: the product says 2, ECLipsE-Fast the root of 2, one multiplier a layer too."""
    weights = [np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0]])]
    assert 1.0 <= lipsdp_neuron(weights) <= 1.0 + 1e-6
    assert eclipse_fast(weights).value == pytest.approx(np.sqrt(2.0))
    assert layerwise_product(weights) == pytest.approx(2.0)


@pytest.mark.usefixtures("solver")
def test_non_negative_weights_give_the_norm_of_their_product() -> None:
    for seed in range(5):
        weights = [np.abs(weight) for weight in drawn((3, 6, 5, 2), seed)]
        true = float(np.linalg.norm(weights[2] @ weights[1] @ weights[0], 2))
        assert true * (1.0 - 1e-14) <= lipsdp_neuron(weights) <= true * (1.0 + 1e-4)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("widths", [(2, 4), (4, 10, 3), (5, 8, 6, 3), (30, 6, 2), (6, 6, 6, 6, 6)])
def test_bounds_are_ordered_as_the_theory_says(widths: tuple[int, ...]) -> None:
    for seed in range(3):
        weights = drawn(widths, seed)
        below = np.linalg.norm(jacobians(weights, seed), 2, axis=(1, 2)).max()
        neuron, layer = lipsdp_neuron(weights), lipsdp_layer(weights)
        assert below * (1.0 - 1e-14) <= neuron <= layer * (1.0 + 1e-5)
        assert layer <= eclipse_fast(weights).value <= layerwise_product(weights) * (1.0 + 1e-9)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("activation", ["relu", "leaky", "tanh"])
def test_no_pair_of_inputs_is_further_apart_than_the_bound(activation: str) -> None:
    function = {
        "relu": lambda z: np.maximum(z, 0.0),
        "leaky": lambda z: np.maximum(z, 0.1 * z),
        "tanh": np.tanh,
    }[activation]
    rng = np.random.default_rng(11)
    first, last = drawn((3, 8, 3), 12)
    pairs = np.array([(0, 1), (1, 2), (0, 2)])
    rows = np.eye(3)[pairs[:, 0]] - np.eye(3)[pairs[:, 1]]
    bias = rng.normal(size=8)
    x = rng.normal(size=(20_000, 3))
    y = x + rng.normal(size=x.shape) * 10.0 ** rng.uniform(-3, 1, size=(len(x), 1))
    moved = (function(x @ first.T + bias) - function(y @ first.T + bias)) @ last.T
    length = np.linalg.norm(x - y, axis=1)
    whole, single = lipsdp_neuron([first, last]), lipsdp_neuron([first, last], rows=rows)
    assert 0.5 * whole < (np.linalg.norm(moved, axis=1) / length).max() <= whole
    assert np.all((np.abs(moved @ rows.T) / length[:, None]).max(0) <= single)


@pytest.mark.usefixtures("solver")
def test_a_row_is_the_bound_of_the_network_with_that_row_as_last_layer() -> None:
    weights = drawn((4, 6, 5, 4), 13)
    rows = np.random.default_rng(14).normal(size=(2, 4))
    found = lipsdp_neuron(weights, rows=rows)
    alone = [lipsdp_neuron([*weights[:-1], row[None] @ weights[-1]]) for row in rows]
    np.testing.assert_allclose(found, alone, rtol=1e-9)
    assert np.all(found < eclipse_fast(weights).row(rows))
    assert lipsdp_neuron(weights, rows=rows[0]).shape == ()
    assert np.all(lipsdp_neuron(weights, rows=np.zeros((1, 4))) < 1e-300)


def test_a_solver_that_answers_nonsense_cannot_lower_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(15)
    for seed, size in enumerate((0.0, 1e-30, 1e-3, 0.3, 1.0, 3.0, 1e12)):
        weights = drawn((4, 7, 6, 3), seed)
        monkeypatch.setattr(
            semidefinite,
            "_solve",
            lambda matrices, *_, size=size, **__: [
                size * rng.normal(0.5, 0.5, len(m)) for m in matrices[:-1]
            ],
        )
        below = np.linalg.norm(jacobians(weights, seed), 2, axis=(1, 2)).max()
        assert below <= lipsdp_neuron(weights) <= eclipse_fast(weights).value


def test_an_estimate_that_is_too_low_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = drawn((4, 7, 6, 3), 17)
    monkeypatch.setattr(semidefinite, "_solve", lambda matrices, *_, **__: [np.ones(7), np.ones(6)])
    monkeypatch.setattr(semidefinite, "_estimate", lambda *_: 1e-3)
    assert lipsdp_neuron(weights) == eclipse_fast(weights).value


def test_a_square_is_proved_exactly_where_it_is_true() -> None:
    """The border of what is proved is the largest eigenvalue of the Schur complement, from 40 digits."""
    for seed in range(5):
        weights = drawn((3, 5, 4, 2), seed)
        multipliers = [np.full(5, 3.0) + drawn((5, 1), seed)[0][0], np.full(4, 3.0)]
        inner, outer = bounded_congruence(weights[0], None), bounded_congruence(0.3 * weights[2].T, None)
        with mpmath.workdps(40):
            w1, w2, w3 = (mpmath.matrix(w.tolist()) for w in (weights[0], weights[1], 0.3 * weights[2]))
            t1, t2 = (mpmath.diag(m.tolist()) for m in multipliers)
            form = mpmath.zeros(9)
            form[:5, :5], form[5:, 5:] = 2 * t1, 2 * t2 - w3.T * w3
            form[5:, :5] = -t2 * w2
            form[:5, 5:] = form[5:, :5].T
            reach = mpmath.zeros(9, 3)
            reach[:5, :] = t1 * w1
            assert min(mpmath.eigsy(form, eigvals_only=True)) > 0
            exact = float(max(mpmath.eigsy(reach.T * form**-1 * reach, eigvals_only=True)))
        matrices = [weights[0], weights[1], 0.3 * weights[2]]
        assert semidefinite._estimate(matrices, multipliers, inner, outer) == pytest.approx(exact, rel=1e-11)
        assert semidefinite._proves(matrices, multipliers, inner, outer, exact * (1.0 + 1e-10))
        for shortfall in (1e-2, 1e-6, 1e-10, 1e-13, 1e-15):
            assert not semidefinite._proves(matrices, multipliers, inner, outer, exact * (1.0 - shortfall))


@pytest.mark.usefixtures("solver")
def test_scale_does_not_matter() -> None:
    weights = drawn((3, 5, 4, 2), 16)
    scaled = [1e-40 * weights[0], 1e90 * weights[1], 1e-30 * weights[2]]
    assert lipsdp_neuron(scaled) == pytest.approx(1e20 * lipsdp_neuron(weights), rel=1e-5)
    assert lipsdp_neuron([weights[0], 0.0 * weights[1], weights[2]]) == 0.0


def test_a_network_too_large_for_the_solver_is_refused_with_its_size() -> None:
    with pytest.raises(UsageError, match=r"310 neurons.*method eclipse"):
        lipsdp_neuron(drawn((784, 155, 10), 0), solver="SCS")
    with pytest.raises(UsageError, match=r"120 neurons.*100.*solver SCS"):
        lipsdp_neuron(drawn((784, 60, 10), 0), solver="CLARABEL")
    with pytest.raises(UsageError, match="write auto, CLARABEL or SCS"):
        lipsdp_neuron(drawn((2, 3, 2), 0), solver="MOSEK")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="rows of 2 numbers"):
        lipsdp_neuron(drawn((2, 3, 2), 0), rows=[1.0])


def test_without_the_extra_its_name_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(MissingExtra, match="calipers\\[lipsdp\\]"):
        lipsdp_neuron(drawn((2, 3, 2), 0))
