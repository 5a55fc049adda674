"""Hard votes: certificates and predictions from counts, one-sided, two-sided and anytime."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipers.certificates.smoothing.radius import gaussian_l2, laplace_l1, uniform_l1
from calipers.certificates.smoothing.stopping import DecideRadii, FixedBudget
from calipers.certificates.smoothing.votes import (
    certify_vote_table,
    certify_votes,
    certify_without_selection,
    predict_vote_table,
    predict_votes,
)
from calipers.errors import Unsound, UsageError
from calipers.statistics.intervals import clopper_pearson_lower, clopper_pearson_upper
from calipers.statistics.sequences import anytime_lower, anytime_upper
from calipers.statistics.tests import binomial_test_two_sided
from calipers.threat.threat_model import ABSTAIN

SIGMA_1 = partial(gaussian_l2, 1.0)
votes = st.lists(st.integers(0, 300), min_size=4, max_size=8).filter(lambda row: sum(row) > 0)


@pytest.mark.parametrize(
    ("counts", "p", "radius"),
    [([100_000, 0, 0], "0.9999309248", "3.811457"), ([99_990, 10, 0], "0.9997586773", "3.490208")],
)
def test_one_sided_certificates_have_the_published_digits(counts, p, radius):
    found = certify_votes(counts, selected=0, radius=SIGMA_1, alpha=1e-3, bound="one-sided")
    assert (found.prediction, f"{found.p_lower:.10f}", f"{found.radius:.6f}") == (0, p, radius)


def test_one_sided_abstains_until_half_of_the_votes_is_beyond_doubt():
    below = certify_votes([50_489, 49_511, 0], selected=0, radius=SIGMA_1, alpha=1e-3, bound="one-sided")
    above = certify_votes([50_490, 49_510, 0], selected=0, radius=SIGMA_1, alpha=1e-3, bound="one-sided")
    assert (below.prediction, below.radius) == (ABSTAIN, 0.0)
    assert above.prediction == 0
    assert 0 < above.radius < 1e-3


def test_two_sided_bounds_are_those_of_the_two_counts_at_half_of_alpha():
    found = certify_votes([700, 150, 149, 1, 0], selected=0, radius=SIGMA_1, alpha=1e-2)
    assert found.p_lower == clopper_pearson_lower(700, 1000, alpha=5e-3)
    assert found.p_upper == clopper_pearson_upper(150, 1000, alpha=5e-3)
    assert found.radius == gaussian_l2(1.0, found.p_lower, found.p_upper)


def test_two_sided_certifies_a_class_with_less_than_half_of_the_votes():
    found = certify_votes([450, 200, 200, 150, 0], selected=0, radius=SIGMA_1, alpha=1e-3)
    assert found.prediction == 0
    assert found.p_lower < 0.5
    assert found.radius > 0
    one_sided = certify_votes(
        [450, 200, 200, 150, 0], selected=0, radius=SIGMA_1, alpha=1e-3, bound="one-sided"
    )
    assert one_sided.prediction == ABSTAIN


def test_the_runner_up_is_bounded_by_what_the_class_leaves():
    found = certify_votes([999, 1, 0], selected=0, radius=SIGMA_1, alpha=1e-3)
    assert found.p_upper <= np.nextafter(1 - found.p_lower, 2)
    assert found.p_lower + found.p_upper >= 1  # rounded up: the cap itself must hold whenever p_lower does


def test_the_class_is_the_selected_one_and_not_that_of_the_counts():
    found = certify_votes([100, 900, 0, 0], selected=0, radius=SIGMA_1, alpha=1e-3)
    assert (found.prediction, found.radius) == (ABSTAIN, 0.0)
    assert found.p_lower == clopper_pearson_lower(100, 1000, alpha=5e-4)


def test_no_selected_class_is_an_abstention():
    found = certify_votes([1000, 0, 0], selected=ABSTAIN, radius=SIGMA_1, alpha=1e-3)
    assert (found.prediction, found.radius, found.p_lower, found.p_upper) == (ABSTAIN, 0.0, 0.0, 1.0)


def test_failed_draws_count_against_the_class_and_for_its_runner_up():
    clean = certify_votes([900, 50, 50, 0], selected=0, radius=SIGMA_1, alpha=1e-3)
    failed = certify_votes([900, 50, 20, 30], selected=0, radius=SIGMA_1, alpha=1e-3)
    assert failed.p_lower == clean.p_lower
    assert failed.p_upper == clopper_pearson_upper(80, 1000, alpha=5e-4)
    assert failed.radius < clean.radius
    only_failed = certify_votes([400, 0, 0, 600], selected=0, radius=SIGMA_1, alpha=1e-3)
    assert only_failed.prediction == ABSTAIN


def test_counts_of_an_early_stop_are_read_by_the_anytime_bound_alone():
    rule = DecideRadii((0.5,))
    found = certify_votes([280, 15, 5, 0], selected=0, radius=SIGMA_1, alpha=1e-3, stopping=rule)
    assert found.p_lower == anytime_lower(280, 300, alpha=5e-4)
    assert found.p_upper == min(anytime_upper(15, 300, alpha=5e-4), np.nextafter(1 - found.p_lower, 2))
    with pytest.raises(Unsound, match="fails more often than alpha"):
        certify_votes(
            [280, 15, 5, 0], selected=0, radius=SIGMA_1, alpha=1e-3, stopping=rule, validity="fixed"
        )


def test_counts_of_a_fixed_budget_may_be_read_by_the_anytime_bound():
    fixed = certify_votes([280, 20, 0], selected=0, radius=SIGMA_1, alpha=1e-3)
    anytime = certify_votes([280, 20, 0], selected=0, radius=SIGMA_1, alpha=1e-3, validity="anytime")
    assert 0 < anytime.radius < fixed.radius


def test_a_fixed_budget_that_is_not_spent_is_refused():
    table = [[300, 0, 0], [200, 0, 0]]
    with pytest.raises(Unsound, match="1 inputs do not have the 300 samples"):
        certify_vote_table(table, selected=[0, 0], radius=SIGMA_1, alpha=1e-3, budget=300)
    certify_vote_table(table, selected=[0, 0], radius=SIGMA_1, alpha=1e-3, budget=300, validity="anytime")
    certify_vote_table(
        table[:1], selected=[0], radius=SIGMA_1, alpha=1e-3, budget=300, stopping=FixedBudget()
    )


@given(votes, st.sampled_from([0.05, 1e-3]), st.sampled_from(["two-sided", "one-sided"]))
def test_votes_moved_to_another_class_or_to_failures_never_raise_a_radius(row, alpha, bound):
    base = certify_votes(row, selected=0, radius=SIGMA_1, alpha=alpha, bound=bound)
    for other in range(1, len(row)):
        worse = list(row)
        moved = min(worse[0], 10)
        worse[0] -= moved
        worse[other] += moved
        found = certify_votes(worse, selected=0, radius=SIGMA_1, alpha=alpha, bound=bound)
        assert found.radius <= base.radius + 1e-12
        assert found.p_lower <= base.p_lower


@given(votes, st.sampled_from(["two-sided", "one-sided"]))
def test_a_certificate_says_a_class_exactly_when_its_radius_is_positive(row, bound):
    found = certify_votes(row, selected=1, radius=SIGMA_1, alpha=1e-2, bound=bound)
    assert (found.prediction == 1) == (found.radius > 0) == (found.p_lower > found.p_upper)
    assert found.prediction in (1, ABSTAIN)
    if bound == "one-sided" and found.prediction == 1:
        assert found.p_lower > 0.5


@pytest.mark.parametrize("radius", [SIGMA_1, partial(laplace_l1, 0.3), partial(uniform_l1, 0.7)])
@pytest.mark.parametrize("bound", ["two-sided", "one-sided"])
@pytest.mark.parametrize("stopping", [FixedBudget(), DecideRadii((0.1,))])
def test_a_table_is_its_rows(radius, bound, stopping):
    rng = np.random.default_rng(0)
    table = rng.multinomial(500, rng.dirichlet([2, 0.3, 0.3, 0.05]), size=40)
    selected = rng.integers(-1, 3, 40)
    found = certify_vote_table(
        table, selected=selected, radius=radius, alpha=1e-2, bound=bound, stopping=stopping
    )
    for i in range(40):
        one = certify_votes(
            table[i], selected=int(selected[i]), radius=radius, alpha=1e-2, bound=bound, stopping=stopping
        )
        assert one.prediction == found.prediction[i]
        assert one.radius == pytest.approx(float(found.radius[i]), rel=1e-6)
        assert one.theorem == found.theorem
    assert (found.prediction >= 0).any()


def test_a_result_names_its_theorem_and_its_bounds():
    found = certify_votes(
        [10, 0, 0], selected=0, radius=SIGMA_1, alpha=1e-2, theorem="Cohen et al. 2019, Theorem 1"
    )
    assert found.theorem == "Cohen et al. 2019, Theorem 1; Clopper-Pearson, p_A and p_B, alpha/2 each"


def test_without_selection_the_class_comes_of_the_votes_at_half_of_alpha():
    found = certify_without_selection([30, 950, 20, 0], radius=SIGMA_1, alpha=1e-3)
    assert found.prediction == 1
    assert found.p_lower == clopper_pearson_lower(950, 1000, alpha=5e-4)


def test_predict_abstains_by_the_test_of_the_two_largest_counts():
    assert binomial_test_two_sided(67, 100) <= 1e-3 < binomial_test_two_sided(66, 100)
    assert predict_votes([67, 33, 20, 0], alpha=1e-3) == 0
    assert predict_votes([66, 34, 20, 0], alpha=1e-3) == ABSTAIN
    assert predict_votes([50, 50, 0], alpha=0.5) == ABSTAIN
    assert predict_votes([0, 0, 0, 0], alpha=0.5) == ABSTAIN


def test_predict_reads_failed_draws_as_votes_for_the_runner_up():
    assert predict_votes([67, 33, 0], alpha=1e-3) == 0
    assert predict_votes([67, 3, 30], alpha=1e-3) == 0
    assert predict_votes([67, 3, 31], alpha=1e-3) == ABSTAIN
    assert predict_votes([30, 0, 70], alpha=1e-3) == ABSTAIN  # never the winner over the failures


def test_predictions_of_a_table_are_those_of_its_rows():
    table = np.array([[90, 10, 0, 0], [1, 2, 97, 0], [40, 30, 30, 0]])
    assert predict_vote_table(table, alpha=1e-3).tolist() == [0, 2, ABSTAIN]


@pytest.mark.statistical
@pytest.mark.parametrize("shares", [[0.5, 0.5, 0.0, 0.0], [0.34, 0.33, 0.33, 0.0], [0.4, 0.4, 0.1, 0.1]])
def test_predict_names_another_class_no_more_often_than_alpha(shares):
    rng, alpha, repeats = np.random.default_rng(2), 0.05, 20_000
    answers = predict_vote_table(rng.multinomial(100, shares, size=repeats), alpha=alpha)
    wrong = np.sum((answers != ABSTAIN) & (answers != 0))
    assert wrong <= repeats * alpha


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, 1.5])
def test_an_alpha_that_is_no_probability_is_refused(alpha):
    with pytest.raises(UsageError, match="alpha is"):
        certify_votes([9, 1, 0], selected=0, radius=SIGMA_1, alpha=alpha)
    with pytest.raises(UsageError, match="alpha is"):
        predict_votes([9, 1, 0], alpha=alpha)
    with pytest.raises(UsageError, match="alpha is"):
        certify_without_selection([9, 1, 0], radius=SIGMA_1, alpha=alpha)


@pytest.mark.parametrize(
    ("counts", "selected", "message"),
    [
        ([9, 1, 0], 2, "selected classes must lie in 0..1"),
        ([9, 1, 0], -2, "selected classes"),
        ([9.5, 0.5, 0.0], 0, "whole numbers"),
        ([9, -1, 0], 0, "whole numbers"),
        ([9, 1], 0, "images x"),
        ([0, 0, 0], 0, "0 samples"),
    ],
)
def test_votes_that_mean_nothing_are_refused(counts, selected, message):
    with pytest.raises(UsageError, match=message):
        certify_votes(counts, selected=selected, radius=SIGMA_1, alpha=1e-3)


def test_unknown_bounds_are_refused():
    with pytest.raises(UsageError, match="both-sided"):
        certify_votes([9, 1, 0], selected=0, radius=SIGMA_1, alpha=1e-3, bound="both-sided")
