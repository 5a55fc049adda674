"""Bounds valid at any time: the mixture e-process against its integral, its martingale and its ends."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calipers.errors import UsageError
from calipers.statistics.intervals import clopper_pearson_lower
from calipers.statistics.sequences import anytime_lower, anytime_upper, log_evidence_above

counts = st.integers(1, 100_000).flatmap(lambda t: st.tuples(st.integers(0, t), st.just(t)))
proportions = st.floats(1e-6, 1 - 1e-6)


def mixture_by_quadrature(c, t, p0):
    """The average likelihood ratio over the cut prior, by numerical integration over an angle.

    With q = cos(angle)^2 the Beta(1/2, 1/2) prior is uniform in the angle.
    """
    with mpmath.workdps(30):
        p0 = mpmath.mpf(p0)
        end = mpmath.acos(mpmath.sqrt(p0))
        peak = mpmath.acos(mpmath.sqrt(mpmath.mpf(c) / t))

        def ratio(angle):
            q = mpmath.cos(angle) ** 2
            return (q / p0) ** c * ((1 - q) / (1 - p0)) ** (t - c)

        parts = sorted({mpmath.mpf(0), min(peak, end) / 2, min(peak, end), (min(peak, end) + end) / 2, end})
        return float(mpmath.log(mpmath.quad(ratio, parts) / end))


@pytest.mark.parametrize(("c", "t"), [(0, 5), (1, 1), (3, 5), (5, 5), (40, 50), (190, 200), (200, 200)])
@pytest.mark.parametrize("p0", [0.01, 0.3, 0.5, 0.8, 0.97])
def test_evidence_is_the_mixture_of_likelihood_ratios(c, t, p0):
    expected = mixture_by_quadrature(c, t, p0)
    found = log_evidence_above(c, t, p0)
    assert found == pytest.approx(expected, abs=1e-7)
    assert found <= expected


@given(counts, st.floats(0.01, 0.99))
def test_evidence_is_a_martingale_at_the_null_and_falls_below_it(count, p0):
    c, t = count
    now = log_evidence_above(c, t, p0)
    after = log_evidence_above([c, c + 1], t + 1, p0)
    if not np.isfinite(now) or not np.isfinite(after).all():
        return
    at_null = np.log((1 - p0) * np.exp(after[0] - now) + p0 * np.exp(after[1] - now))
    assert abs(at_null) < 1e-6
    below = 0.5 * p0
    assert (1 - below) * np.exp(after[0] - now) + below * np.exp(after[1] - now) <= 1 + 1e-6


def test_evidence_starts_at_one_and_knows_its_ends():
    assert log_evidence_above(0, 0, 0.3) == pytest.approx(0, abs=1e-8)
    assert log_evidence_above(1, 10, 0.0) == np.inf
    assert log_evidence_above(0, 10, 0.0) < 0
    assert log_evidence_above(10, 10, 1.0) == -np.inf
    assert log_evidence_above(0, 100_000, 0.999999) == -np.inf  # underflow: no evidence, never an error


def by_bisection(c, t, alpha):
    """The end of the rejected p0 from the exact evidence."""
    low, high = np.zeros_like(c, dtype=float), c / t
    for _ in range(100):
        middle = 0.5 * (low + high)
        rejected = log_evidence_above(c, t, middle) >= -math.log(alpha)
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-6])
@pytest.mark.parametrize("t", [1, 2, 10, 100, 1000, 100_000])
def test_anytime_lower_ends_the_rejected_proportions(alpha, t):
    c = np.unique(np.r_[1, 2, t // 100, t // 3, t // 2, t - t // 50, t - 1, t].clip(1, t))
    found, exact = anytime_lower(c, t, alpha=alpha), by_bisection(c, t, alpha)
    assert np.all(log_evidence_above(c, t, found) >= -math.log(alpha) - 1e-10)
    gap = np.log(exact / (1 - exact)) - np.log(found / (1 - found))
    assert np.all(gap >= -1e-10)
    assert np.all(gap <= 3e-4 if alpha > 0.01 else gap <= 2e-6)


@settings(max_examples=300)
@example((29558, 29559), 1e-9)
@given(counts, st.sampled_from([0.5, 0.05, 1e-3, 1e-9]))
def test_no_count_makes_the_anytime_bound_fail_to_settle(count, alpha):
    c, t = count
    lower, upper = anytime_lower(c, t, alpha=alpha), anytime_upper(c, t, alpha=alpha)
    assert 0 <= lower <= c / t <= upper <= 1
    if c:
        assert lower > 0
        assert log_evidence_above(c, t, lower) >= -math.log(alpha) - 1e-9
        wider = lower + 0.2 * lower * (1 - lower)
        assert log_evidence_above(c, t, wider) < -math.log(alpha)


@settings(max_examples=200)
@given(counts, proportions)
def test_rejected_proportions_are_nested(count, p0):
    c, t = count
    grid = p0 * np.linspace(1e-3, 1, 400)
    evidence = log_evidence_above(c, t, grid)
    strong = evidence[1:] >= math.log(2)
    assert np.all(evidence[:-1][strong] >= evidence[1:][strong] - 1e-7)


def test_anytime_bounds_mirror_and_grow_with_successes():
    c = np.arange(301)
    lower, upper = anytime_lower(c, 300, alpha=1e-3), anytime_upper(c, 300, alpha=1e-3)
    np.testing.assert_allclose(upper, 1 - lower[::-1], atol=1e-12)
    assert np.all(np.diff(lower) > 0)
    assert np.all(np.diff(upper) > 0)
    assert np.all(upper >= 1 - lower[::-1])


def test_an_anytime_bound_costs_something_against_a_fixed_number_of_samples():
    c = np.array([60_000, 90_000, 99_000, 100_000])
    assert np.all(anytime_lower(c, 100_000, alpha=1e-3) < clopper_pearson_lower(c, 100_000, alpha=1e-3))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.69, 0.9, 0.99])
@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_looking_after_every_sample_the_bound_is_crossed_with_probability_alpha_at_most(p, alpha):
    """Exact: the distribution of the count over all paths that have not crossed yet, 400 trials."""
    weight, crossed = np.array([1.0]), 0.0
    for t in range(1, 401):
        weight = np.r_[weight * (1 - p), 0.0] + np.r_[0.0, weight * p]
        over = anytime_lower(np.arange(t + 1), t, alpha=alpha) > p
        crossed += weight[over].sum()
        weight[over] = 0.0
    assert crossed <= alpha
    assert crossed >= alpha / 4  # and the bound is not idle


def test_the_exact_count_of_crossings_sees_a_bound_at_twice_alpha():
    p, weight, crossed = 0.5, np.array([1.0]), 0.0
    for t in range(1, 401):
        weight = np.r_[weight * (1 - p), 0.0] + np.r_[0.0, weight * p]
        over = anytime_lower(np.arange(t + 1), t, alpha=0.1) > p
        crossed += weight[over].sum()
        weight[over] = 0.0
    assert crossed > 0.05


def test_an_alpha_above_one_half_is_read_as_one_half():
    assert anytime_lower(70, 100, alpha=0.9) == anytime_lower(70, 100, alpha=0.5)


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="alpha is"):
        anytime_lower(1, 2, alpha=0.0)
    with pytest.raises(UsageError, match="expected whole numbers"):
        anytime_upper(3, 2, alpha=0.05)
    with pytest.raises(UsageError, match="p0 is"):
        log_evidence_above(1, 2, 1.5)
