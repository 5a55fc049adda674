"""Radius theorems: published digits, rounding down, ties and ends."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipers.certificates.smoothing.radius import (
    convert_radius,
    gaussian_l2,
    laplace_l1,
    laplace_l1_sharp,
    uniform_l1,
)
from calipers.errors import Unsound, UsageError
from calipers.statistics.intervals import clopper_pearson_lower
from calipers.threat.threat_model import Norm

ALL = [gaussian_l2, laplace_l1, laplace_l1_sharp, uniform_l1]
probabilities = st.floats(0, 1)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(100_000, 100_000, "3.811457"), (99_990, 100_000, "3.490208"), (1000, 1000, "2.463263")],
)
def test_theorem_1_has_the_published_digits(successes, trials, expected):
    p = clopper_pearson_lower(successes, trials, alpha=1e-3)
    assert f"{gaussian_l2(1.0, p, 1 - p):.6f}" == expected
    assert f"{4 * gaussian_l2(0.25, p, 1 - p):.6f}" == expected


def exact_radius(theorem, low, high):
    """The formula of the theorem at scale 1, in 60 digits."""
    with mpmath.workdps(60):
        a, b = mpmath.mpf(low), mpmath.mpf(high)
        if theorem is gaussian_l2:

            def quantile(p):
                return mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)

            return (quantile(a) - quantile(b)) / 2
        if theorem is laplace_l1:
            return max(mpmath.log(a / b) / 2, -mpmath.log(1 - a + b))
        if theorem is laplace_l1_sharp:

            def quantile(p):
                return mpmath.log(2 * p) if p <= 0.5 else -mpmath.log(2 * (1 - p))

            return (quantile(a) - quantile(b)) / 2
        return a - b


@pytest.mark.parametrize("theorem", ALL)
@given(low=st.floats(1e-12, 1 - 1e-12), high=st.floats(1e-12, 1 - 1e-12))
def test_a_radius_is_its_formula_rounded_down(theorem, low, high):
    if low <= high:
        assert theorem(1.0, low, high) == 0
        return
    found, exact = float(theorem(1.0, low, high)), exact_radius(theorem, low, high)
    assert 0 <= found <= exact
    assert found >= exact - 1e-13 * (1 + abs(math.log(high)) + abs(math.log1p(-low)))


@pytest.mark.parametrize("theorem", ALL)
@given(probabilities, probabilities, probabilities)
def test_a_radius_grows_with_the_class_and_shrinks_with_the_runner_up(theorem, first, second, third):
    small, middle, large = sorted([first, second, third])
    assert theorem(0.5, middle, small) <= theorem(0.5, large, small)
    assert theorem(0.5, large, middle) <= theorem(0.5, large, small)
    assert theorem(0.5, small, large) == 0


@pytest.mark.parametrize("theorem", ALL)
def test_a_tie_proves_nothing(theorem):
    assert theorem(1.0, 0.4, 0.4) == 0
    assert theorem(1.0, 1.0, 1.0) == 0
    assert theorem(1.0, 0.0, 0.0) == 0


def test_radii_at_the_ends_are_the_mathematical_ones():
    assert gaussian_l2(1.0, 1.0, 0.2) == np.inf
    assert gaussian_l2(1.0, 0.8, 0.0) == np.inf
    assert gaussian_l2(1.0, 1.0, 0.0) == np.inf
    assert laplace_l1(1.0, 0.8, 0.0) == np.inf
    assert laplace_l1_sharp(1.0, 1.0, 0.2) == np.inf
    assert uniform_l1(0.5, 1.0, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize("theorem", ALL)
def test_radii_scale_with_the_noise_and_broadcast(theorem):
    found = theorem(2.0, [[0.6], [0.9]], [0.05, 0.1, 0.3])
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(2 * float(theorem(1.0, 0.9, 0.3)), rel=1e-12)


def test_theorem_1_is_the_distance_to_a_half_space():
    distance, sigma = 0.37, 0.25
    p = 0.5 * math.erfc(-distance / sigma / math.sqrt(2))
    assert gaussian_l2(sigma, p, 1 - p) == pytest.approx(distance, rel=1e-13)


def worst_case_radius(cdf, directions, p_a, p_b, *, cells=40_001, reach=14.0):
    """The largest shift that leaves A on top for every pair of sets, by Neyman and Pearson on a grid of cells.

    The noise has independent coordinates of scale 1; the shift is r times ``directions``, one or two of them.
    """
    edges = np.linspace(-reach, reach, cells if len(directions) == 1 else 241)

    def margin(r):
        before = after = np.ones(1)
        for share in directions:
            before = np.outer(before, np.diff(cdf(edges))).ravel()
            after = np.outer(after, np.diff(cdf(edges - r * share))).ravel()
        order = np.argsort(after / np.maximum(before, 1e-300), kind="stable")
        before, after = before[order], after[order]

        def kept(p):  # what a set of probability p keeps at least
            total = np.cumsum(before)
            last = min(np.searchsorted(total, p), len(total) - 1)
            spent = total[last - 1] if last else 0.0
            return after[:last].sum() + (p - spent) * after[last] / before[last]

        return kept(p_a) - (1.0 - kept(1.0 - p_b))

    low, high = 0.0, 10.0
    for _ in range(16):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if margin(middle) > 0 else (low, middle)
    return low


def laplace_cdf(x):
    return np.where(x < 0, 0.5 * np.exp(-np.abs(x)), 1 - 0.5 * np.exp(-np.abs(x)))


def uniform_cdf(x):
    return np.clip((x + 1) / 2, 0, 1)


PAIRS = [(0.9, 0.1), (0.9, 0.05), (0.7, 0.01), (0.6, 0.3), (0.4, 0.2), (0.5, 0.5 - 1e-3), (0.99, 0.001)]


@pytest.mark.parametrize(("p_a", "p_b"), PAIRS)
def test_laplace_radii_are_below_the_worst_case_and_the_sharp_one_is_it(p_a, p_b):
    worst = worst_case_radius(laplace_cdf, [1.0], p_a, p_b)
    assert laplace_l1(1.0, p_a, p_b) <= laplace_l1_sharp(1.0, p_a, p_b) + 1e-12
    assert laplace_l1_sharp(1.0, p_a, p_b) == pytest.approx(worst, abs=1e-3)


@pytest.mark.parametrize(("p_a", "p_b"), PAIRS)
def test_a_shift_of_two_coordinates_is_no_worse_than_one_of_the_same_l1_size(p_a, p_b):
    worst = worst_case_radius(laplace_cdf, [0.6, 0.4], p_a, p_b)
    assert laplace_l1_sharp(1.0, p_a, p_b) <= worst + 5e-3


def test_the_published_laplace_radius_is_sharp_for_two_classes_and_not_for_three():
    assert laplace_l1(1.0, 0.9, 0.1) == pytest.approx(float(laplace_l1_sharp(1.0, 0.9, 0.1)), rel=1e-12)
    assert laplace_l1(1.0, 0.9, 0.01) < 0.85 * laplace_l1_sharp(1.0, 0.9, 0.01)


@pytest.mark.parametrize(("p_a", "p_b"), PAIRS)
def test_the_uniform_radius_is_the_worst_case_of_a_shift_of_one_coordinate(p_a, p_b):
    cells = 4001  # few, since half of them are empty before the shift and half after

    def margin(r):
        return (p_a - r / 2) - (p_b + r / 2)

    assert margin(float(uniform_l1(1.0, p_a, p_b))) == pytest.approx(0, abs=1e-12)
    worst = worst_case_radius(uniform_cdf, [1.0], p_a, p_b, cells=cells, reach=3.0)
    assert uniform_l1(1.0, p_a, p_b) <= worst + 5e-3


def test_norms_convert_as_their_balls_contain_each_other():
    d = 3072
    assert convert_radius(0.5, Norm.L2, Norm.L1, d) == 0.5
    assert convert_radius(0.5, Norm.L2, Norm.LINF, d) == pytest.approx(0.5 / math.sqrt(d))
    assert convert_radius(0.5, Norm.L1, Norm.L2, d) == pytest.approx(0.5 / math.sqrt(d))
    assert convert_radius(0.5, Norm.L1, Norm.LINF, d) == pytest.approx(0.5 / d)
    for norm in Norm:
        assert convert_radius(0.5, norm, norm, d) == 0.5


@given(st.floats(1e-300, 100), st.integers(1, 10**6))
def test_converted_radii_are_rounded_down(radius, d):
    with mpmath.workdps(40):
        exact = mpmath.mpf(radius)
        assert float(convert_radius(radius, Norm.L2, Norm.LINF, d)) <= exact / mpmath.sqrt(d)
        assert float(convert_radius(radius, Norm.L1, Norm.LINF, d)) <= exact / d


@pytest.mark.parametrize(
    ("have", "want"),
    [(Norm.LINF, Norm.L2), (Norm.LINF, Norm.L1), (Norm.L2, Norm.L0), (Norm.L0, Norm.L2), (Norm.L1, Norm.L0)],
)
def test_other_conversions_are_refused(have, want):
    with pytest.raises(Unsound, match="does not give"):
        convert_radius(0.5, have, want, 10)


@pytest.mark.parametrize("theorem", ALL)
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_noise_without_scale_is_refused(theorem, scale):
    with pytest.raises(UsageError, match="scale of the noise"):
        theorem(scale, 0.9, 0.1)


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="probabilities"):
        gaussian_l2(1.0, 1.1, 0.1)
    with pytest.raises(UsageError, match="probabilities"):
        laplace_l1(1.0, float("nan"), 0.1)
    with pytest.raises(UsageError, match="dimension is"):
        convert_radius(1.0, Norm.L2, Norm.LINF, 0)
    with pytest.raises(UsageError, match="radius is"):
        convert_radius(-1.0, Norm.L2, Norm.LINF, 4)
