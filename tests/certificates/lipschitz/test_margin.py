"""Theorem 0 and its forms: known radii, the minimum over all classes, dual norms, abstentions, rounding."""

import math

import numpy as np
import pytest

from calipers.certificates.lipschitz.margin import (
    certify_margins,
    dual_norm_of_difference,
    softmax_differences,
    theorem_0,
)
from calipers.errors import UsageError
from calipers.threat.threat_model import ABSTAIN, Norm


def _flat(constant: float, classes: int) -> np.ndarray:
    return constant * (1 - np.eye(classes))


def test_theorem_0_is_half_the_lead_over_the_constant_rounded_down() -> None:
    found = theorem_0(0.7, 0.3, 2.0)
    assert found <= (0.7 - 0.3) / 4
    assert found == pytest.approx(0.1, rel=1e-12)
    assert theorem_0(0.3, 0.3, 2.0) == 0
    assert theorem_0(float("nan"), 0.3, 2.0) == 0
    assert theorem_0(0.5, 0.25, 0.0) == math.inf


@pytest.mark.parametrize("constant", [-1.0, float("nan")])
def test_a_constant_that_is_none_is_refused(constant: float) -> None:
    with pytest.raises(UsageError, match="constant is"):
        theorem_0(0.7, 0.3, constant)


def test_the_radius_is_the_least_over_all_classes_and_not_the_runner_up_s() -> None:
    constants = np.array([[0, 1.0, 10.0], [1.0, 0, 1.0], [10.0, 1.0, 0]])
    found = certify_margins([[3.0, 2.0, 1.0]], {"last-layer": constants})
    assert found.rival.tolist() == [2]
    assert found.radius[0] == pytest.approx(2.0 / 10.0, rel=1e-8)
    assert found.radius[0] <= 2.0 / 10.0


def test_the_smallest_constant_of_each_pair_proves_and_is_named() -> None:
    loose, tight = _flat(4.0, 3), np.array([[0, 9.0, 1.0], [9.0, 0, 9.0], [1.0, 9.0, 0]])
    found = certify_margins([[1.0, 0.0, 0.5]], {"vector": loose, "composed": tight})
    assert found.rival.tolist() == [1]
    assert found.rule == ("vector",)
    assert found.constant.tolist() == [4.0]
    assert found.radius[0] == pytest.approx(0.25, rel=1e-8)


def test_ties_and_numbers_that_are_none_abstain() -> None:
    scores = [[1.0, 1.0], [float("nan"), 0.0], [float("inf"), 0.0], [1.0, 0.0]]
    found = certify_margins(scores, {"vector": _flat(1.0, 2)})
    assert found.prediction.tolist() == [ABSTAIN, ABSTAIN, ABSTAIN, 0]
    assert found.radius[:3].tolist() == [0.0, 0.0, 0.0]


def test_a_lead_within_rounding_of_the_scores_proves_nothing() -> None:
    found = certify_margins([[1e6 + 1e-4, 1e6]], {"vector": _flat(1.0, 2)})
    assert found.prediction.tolist() == [ABSTAIN]
    assert certify_margins([[1 + 1e-4, 1.0]], {"vector": _flat(1.0, 2)}).prediction.tolist() == [0]


def test_an_infinite_constant_proves_nothing() -> None:
    found = certify_margins(
        [[1.0, 0.0]], {"vector": _flat(1.0, 2) * np.float64(1) + np.array([[0, np.inf], [np.inf, 0]])}
    )
    assert found.prediction.tolist() == [ABSTAIN]


def test_radii_are_never_above_the_quotient() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2000, 5))
    constants = rng.uniform(0.5, 3.0, size=(5, 5))
    found = certify_margins(scores, {"vector": constants}, slack=0.0)
    first = scores.argmax(1)
    for row, best in enumerate(first):
        exact = min((scores[row, best] - scores[row, j]) / constants[best, j] for j in range(5) if j != best)
        assert found.radius[row] <= exact
        assert found.radius[row] == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("norm", "dual"), [(Norm.L2, math.sqrt(2)), (Norm.LINF, 2.0), (Norm.L1, 1.0)])
def test_the_dual_norm_of_a_difference_is_attained_and_never_exceeded(norm: Norm, dual: float) -> None:
    order = {Norm.L2: 2, Norm.LINF: np.inf, Norm.L1: 1}[norm]
    rng = np.random.default_rng(1)
    found = dual_norm_of_difference(norm)
    directions = [*rng.normal(size=(3000, 4)), np.array([1.0, -1.0, 0, 0]), np.array([1.0, 0, 0, 0])]
    quotients = [(v[0] - v[1]) / np.linalg.norm(v, order) for v in directions]
    assert max(quotients) <= found
    assert max(quotients) == pytest.approx(found, rel=1e-12)
    assert found == pytest.approx(dual, rel=1e-12)


def test_l0_is_no_norm() -> None:
    with pytest.raises(UsageError, match="l0"):
        dual_norm_of_difference(Norm.L0)


@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_softmax_contracts_by_half_and_no_more(order: float) -> None:
    rng = np.random.default_rng(2)
    worst = 0.0
    for scores in [*rng.normal(scale=3, size=(500, 4)), np.array([0.0, 0.0, -60.0, -60.0])]:
        p = np.exp(scores - scores.max())
        p /= p.sum()
        worst = max(worst, float(np.linalg.norm(np.diag(p) - np.outer(p, p), order)))
    assert worst == pytest.approx(0.5, rel=1e-9)
    assert softmax_differences(_flat(3.0, 2)).tolist() == [[0.0, 1.5], [1.5, 0.0]]


def test_theorem_0_on_softmax_outputs_never_proves_more_than_on_scores() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(scale=4, size=(400, 6))
    constants = _flat(dual_norm_of_difference(Norm.L2), 6)
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    soft = shifted / shifted.sum(1, keepdims=True)
    plain = certify_margins(scores, {"vector": constants})
    softer = certify_margins(soft, {"softmax": softmax_differences(constants)})
    assert (softer.radius <= plain.radius).all()
    assert softer.radius.mean() < 0.9 * plain.radius.mean()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="classes"):
        certify_margins([[1.0, 0.0]], {"vector": _flat(1.0, 3)})
    with pytest.raises(UsageError, match="at least one form"):
        certify_margins([[1.0, 0.0]], {})
