"""Soft votes: bounds of mean scores, and the three Lipschitz lemmas side by side."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from calipers.certificates.smoothing.soft import (
    certify_means,
    lipschitz_constant,
    score_variances,
    soft_radius,
)
from calipers.errors import UsageError
from calipers.statistics.intervals import empirical_bernstein_upper, hoeffding_lower, hoeffding_upper
from calipers.statistics.tests import binomial_upper_tail
from calipers.threat.threat_model import ABSTAIN

LEMMAS = ("lemma-1", "tight-constant", "lemma-2")


def test_ceilings_of_the_lipschitz_certificates_are_those_of_the_theory():
    assert soft_radius(1.0, 1.0, 0.0, lemma="lemma-1") == pytest.approx(0.6266571, abs=1e-6)
    assert soft_radius(1.0, 1.0, 0.0, lemma="tight-constant") == pytest.approx(1.2533141, abs=1e-6)
    assert soft_radius(1.0, 1.0, 0.0, lemma="lemma-2") == math.inf


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 10))
def test_lemma_2_dominates_the_tight_constant_which_doubles_lemma_1(low, high, sigma):
    first, tight, second = (float(soft_radius(sigma, low, high, lemma=lemma)) for lemma in LEMMAS)
    assert first <= tight <= second * (1 + 1e-12) + 1e-15
    assert tight == pytest.approx(2 * first, rel=1e-12)
    assert (second > 0) == (low > high)


def test_the_tight_constant_is_the_slope_of_a_smoothed_half_space():
    sigma, h = 0.25, 1e-4
    slope = (ndtr(h / sigma) - ndtr(-h / sigma)) / (2 * h)
    assert lipschitz_constant(sigma, lemma="tight-constant") == pytest.approx(slope, rel=1e-6)
    assert lipschitz_constant(sigma, lemma="tight-constant") >= slope
    assert lipschitz_constant(sigma, lemma="lemma-1") == pytest.approx(2 * slope, rel=1e-6)


@given(st.floats(-4, 4), st.floats(0.1, 2))
def test_no_lemma_certifies_beyond_the_distance_of_a_half_space(sigmas, sigma):
    p, distance = float(ndtr(sigmas)), sigmas * sigma
    for lemma in LEMMAS:
        assert soft_radius(sigma, p, 1 - p, lemma=lemma) <= max(distance, 0) * (1 + 1e-9) + 1e-15


def test_hoeffding_bounds_share_alpha():
    found = certify_means(
        [0.7, 0.2, 0.1], [0.01] * 3, samples=1000, selected=0, sigma=0.5, alpha=0.01, mean_bound="hoeffding"
    )
    assert found.prediction == 0
    assert found.p_lower == hoeffding_lower(0.7, 1000, alpha=0.005)
    assert found.p_upper == hoeffding_upper(0.2, 1000, alpha=0.005)
    assert found.radius == soft_radius(0.5, found.p_lower, found.p_upper)


def test_the_bound_on_the_others_is_the_largest_bound_and_not_that_of_the_largest_mean():
    means, variances = [0.5, 0.26, 0.24], [0.01, 0.0, 0.16]
    found = certify_means(means, variances, samples=2000, selected=0, sigma=1.0, alpha=0.01)
    assert found.p_upper == empirical_bernstein_upper(0.24, 0.16, 2000, alpha=0.005)
    assert found.p_upper > empirical_bernstein_upper(0.26, 0.0, 2000, alpha=0.005)


def test_failed_draws_are_score_0_for_the_class_and_1_for_the_others():
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([8, 1, 1], size=500)
    scores[:20] = 0.0
    means, variances = scores.mean(axis=0), scores.var(axis=0, ddof=1)
    found = certify_means(means, variances, samples=500, selected=0, sigma=1.0, alpha=0.01, failed=20)
    scores[:20] = [0.0, 1.0, 1.0]
    read = certify_means(
        scores.mean(axis=0), scores.var(axis=0, ddof=1), samples=500, selected=0, sigma=1.0, alpha=0.01
    )
    assert found.radius == pytest.approx(read.radius, rel=1e-9)
    assert found.p_upper == pytest.approx(read.p_upper, rel=1e-9)
    assert (
        found.radius < certify_means(means, variances, samples=500, selected=0, sigma=1.0, alpha=0.01).radius
    )


def test_it_abstains_where_the_bounds_do_not_part():
    found = certify_means([0.5, 0.45, 0.05], [0.2] * 3, samples=100, selected=0, sigma=1.0, alpha=0.01)
    assert (found.prediction, found.radius) == (ABSTAIN, 0.0)
    assert (
        certify_means([0.9, 0.1], [0.0] * 2, samples=9, selected=-1, sigma=1.0, alpha=0.01).prediction
        == ABSTAIN
    )
    other = certify_means([0.9, 0.1], [0.0] * 2, samples=10_000, selected=1, sigma=1.0, alpha=0.01)
    assert other.prediction == ABSTAIN


def coverage_of_scores(mean_bound, alpha_used, repeats=20_000):
    """Share of certificates above the true radius; scores are 0 or 1, the hardest for a bound on a mean."""
    rng, n, p_a, p_b, sigma = np.random.default_rng(8), 200, 0.6, 0.3, 1.0
    votes = rng.multinomial(n, [p_a, p_b, 1 - p_a - p_b], size=repeats)
    true_radius = float(soft_radius(sigma, p_a, p_b))
    failures = 0
    for row, times in zip(*np.unique(votes, axis=0, return_counts=True), strict=True):
        means = row / n
        found = certify_means(
            means,
            means * (1 - means) * n / (n - 1),
            samples=n,
            selected=0,
            sigma=sigma,
            alpha=alpha_used,
            mean_bound=mean_bound,
        )
        failures += int(times) * (found.radius > true_radius)
    return failures, repeats


@pytest.mark.statistical
@pytest.mark.parametrize("mean_bound", ["hoeffding", "empirical-bernstein"])
def test_certificates_from_means_fail_no_more_often_than_alpha(mean_bound):
    failures, repeats = coverage_of_scores(mean_bound, 0.05)
    assert binomial_upper_tail(failures, repeats, 0.05) > 1e-3


@pytest.mark.statistical
def test_the_count_of_failures_sees_an_alpha_that_is_not_kept():
    failures, repeats = coverage_of_scores("hoeffding", 0.9)
    assert binomial_upper_tail(failures, repeats, 0.05) < 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_bound": "clopper-pearson"}, "is one for votes"),
        ({"lemma": "lemma-3"}, "lemma is"),
        ({"alpha": 0.0}, "alpha is"),
        ({"sigma": 0.0}, "scale of the noise"),
        ({"sigma": -1.0, "lemma": "lemma-1"}, "sigma is"),
        ({"selected": 2}, "selected class"),
        ({"samples": 0}, "samples"),
        ({"failed": 101}, "failed is"),
        ({"means": [1.4, 0.1]}, "outside"),
        ({"means": [0.9]}, "shape"),
        ({"variances": [-1.0, 0.0]}, "variance"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(change, message):
    arguments = {
        "means": [0.9, 0.1],
        "variances": [0.0, 0.0],
        "samples": 100,
        "selected": 0,
        "sigma": 1.0,
        "alpha": 1e-3,
    } | change
    with pytest.raises(UsageError, match=message):
        certify_means(arguments.pop("means"), arguments.pop("variances"), **arguments)


def test_a_lemma_without_a_constant_has_none():
    with pytest.raises(UsageError, match="no Lipschitz constant"):
        lipschitz_constant(1.0, lemma="lemma-2")


def test_variances_from_sums_are_those_of_the_scores_and_never_below() -> None:
    scores = np.random.default_rng(0).random((500, 3)) * [1.0, 1e-3, 0.0] + [0.0, 0.999, 1.0]
    found = score_variances(scores.mean(0), (scores**2).sum(0), samples=500)
    wanted = scores.var(0, ddof=1)
    assert np.all(found >= wanted)
    assert np.all(found <= wanted + 2e-12)
