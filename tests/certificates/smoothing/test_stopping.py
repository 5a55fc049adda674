"""Stopping rules: checkpoints, decisions, and the bounds that each rule allows."""

from functools import partial
from itertools import pairwise
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, rel_entr

from calipers.certificates.smoothing.radius import gaussian_l2
from calipers.certificates.smoothing.stopping import (
    CHUNK,
    DecideRadii,
    FixedBudget,
    check_votes,
    checkpoints,
    decide,
    vote_bounds,
)
from calipers.certificates.smoothing.votes import certify_vote_table
from calipers.errors import UsageError

SIGMA_1 = partial(gaussian_l2, 1.0)


def test_a_rule_is_its_repr():
    rule = DecideRadii((0.5, 0.25, 0.5))
    assert repr(rule) == "DecideRadii(radii=(0.25, 0.5))"
    assert rule == DecideRadii((0.25, 0.5))
    assert repr(FixedBudget()) == "FixedBudget()"


@pytest.mark.parametrize("radii", [(), (-0.1,), (float("inf"),), (0.1, float("nan"))])
def test_radii_that_mean_nothing_are_refused(radii):
    with pytest.raises(UsageError, match="radii is"):
        DecideRadii(radii)


@given(st.integers(1, 2_000_000))
def test_checkpoints_are_whole_chunks_and_end_at_the_budget(budget):
    points = checkpoints(DecideRadii((0.5,)), budget)
    assert points[-1] == budget
    assert all(point % CHUNK == 0 for point in points[:-1])
    assert all(a < b for a, b in pairwise(points))
    assert all(b <= max(a + CHUNK, 1.1 * a + CHUNK) for a, b in pairwise(points))
    assert checkpoints(FixedBudget(), budget) == (budget,)


def test_checkpoints_of_a_larger_budget_pass_through_those_of_a_smaller():
    small, large = checkpoints(DecideRadii((0.5,)), 10_000), checkpoints(DecideRadii((0.5,)), 100_000)
    assert large[: len(small) - 1] == small[:-1]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(UsageError, match="budget is 0"):
        checkpoints(FixedBudget(), 0)


def decide_one(counts, *, radii=(0.5,), selected=0, budget=100_000, bound="two-sided", stopping=None):
    return bool(
        decide(
            np.array([counts]),
            stopping=stopping or DecideRadii(radii),
            selected=np.array([selected]),
            budget=budget,
            radius=SIGMA_1,
            alpha=1e-3,
            bound=bound,
        )[0]
    )


def test_a_fixed_budget_stops_when_it_is_spent():
    assert not decide_one([999, 0, 0], budget=1000, stopping=FixedBudget())
    assert decide_one([1000, 0, 0], budget=1000, stopping=FixedBudget())


def test_it_stops_when_the_radius_is_proved_and_not_before():
    assert decide_one([95, 5, 0])
    assert not decide_one([80, 20, 0])
    table = certify_vote_table(
        [[95, 5, 0], [80, 20, 0]], selected=[0, 0], radius=SIGMA_1, alpha=1e-3, stopping=DecideRadii((0.5,))
    )
    assert table.radius[0] >= 0.5 > table.radius[1]


def test_it_goes_on_while_a_larger_radius_is_open():
    assert decide_one([100, 0, 0], radii=(0.5,))
    assert not decide_one([100, 0, 0], radii=(0.5, 2.0))


def test_it_gives_up_what_is_out_of_reach():
    assert decide_one([50, 50, 0])
    assert decide_one([20, 80, 0])
    assert decide_one([600, 400, 0])
    assert not decide_one([67, 33, 0])
    assert decide_one([100, 0, 0], radii=(30.0,))


def test_it_gives_up_the_larger_radius_only():
    assert decide_one([8_000, 2_000, 0], radii=(0.5, 2.0))  # .5 is proved, 2 is hopeless
    assert not decide_one([690, 310, 0], radii=(0.4, 2.0))  # .4 is open, though 2 is hopeless


def test_radius_zero_asks_for_no_abstention():
    assert not decide_one([55, 45, 0], radii=(0.0,))
    assert decide_one([75, 25, 0], radii=(0.0,))
    assert decide_one([30, 70, 0], radii=(0.0,))


def test_no_selected_class_has_nothing_to_decide():
    assert decide_one([80, 20, 0], selected=-1)
    assert decide_one([0, 0, 0], selected=-1)


def test_a_radius_that_is_proved_exactly_is_proved():
    found = decide(
        np.array([[60, 40, 0], [60, 40, 0]]),
        stopping=DecideRadii((0.25, 0.5)),
        selected=np.array([0, 0]),
        budget=100_000,
        radius=lambda p_lower, p_upper: np.where(p_lower > 0.99, 9.0, 0.5),
        alpha=1e-3,
    )
    assert found.all()


def test_nothing_is_decided_without_samples():
    assert not decide_one([0, 0, 0])


def test_the_end_of_the_budget_stops_everything():
    assert decide_one([700, 300, 0], budget=1000)


def test_failed_draws_count_for_the_runner_up():
    for_a, for_b, samples = check_votes(np.array([[50, 30, 15, 5]]), np.array([1]))
    assert (for_a[0], for_b[0], samples[0]) == (30, 55, 100)
    assert decide_one([95, 5, 0, 0])
    assert not decide_one([80, 5, 0, 15])


def test_images_are_decided_one_by_one_whatever_their_company():
    rng = np.random.default_rng(4)
    rows = np.concatenate(
        [rng.multinomial(n, rng.dirichlet([3, 0.5, 0.5, 0.05], size=30)) for n in (100, 700, 5200)]
    )
    selected = rng.integers(-1, 3, len(rows))
    arguments = {"budget": 10_000, "radius": SIGMA_1, "alpha": 1e-3, "stopping": DecideRadii((0.0, 0.5, 1.5))}
    together = decide(rows, selected=selected, **arguments)
    alone = [decide(rows[i : i + 1], selected=selected[i : i + 1], **arguments)[0] for i in range(len(rows))]
    assert together.tolist() == alone
    assert 0 < together.sum() < len(rows)


def synthetic_run(p_a, radii, budget, *, bound="two-sided", alpha=1e-3, seed=0):
    """Draw votes of three classes until every image is decided; also draw the votes of the whole budget."""
    rng = np.random.default_rng(seed)
    shares = np.stack([p_a, 0.8 * (1 - p_a), 0.2 * (1 - p_a), np.zeros_like(p_a)], axis=1)
    selected = np.where(p_a >= 0.8 * (1 - p_a), 0, 1)
    rule, counts = DecideRadii(radii), np.zeros(shares.shape, dtype=np.int64)
    stopped, waiting = np.zeros_like(counts), np.arange(len(p_a))
    before = 0
    for point in checkpoints(rule, budget):
        counts += rng.multinomial(point - before, shares)
        before = point
        done = decide(
            counts[waiting],
            stopping=rule,
            selected=selected[waiting],
            budget=budget,
            radius=SIGMA_1,
            alpha=alpha,
            bound=bound,
        )
        stopped[waiting[done]] = counts[waiting[done]]
        waiting = waiting[~done]
    assert waiting.size == 0
    certify = partial(
        certify_vote_table, selected=selected, radius=SIGMA_1, alpha=alpha, bound=bound, validity="anytime"
    )
    return stopped, certify(stopped).radius, certify(counts).radius


@pytest.mark.statistical
@pytest.mark.parametrize("bound", ["two-sided", "one-sided"])
@pytest.mark.parametrize(
    ("radii", "times_fewer"), [((2.0,), 25), ((0.0,), 40), ((0.0, 1.0, 2.0, 3.0), 7)], ids=["2", "0", "curve"]
)
def test_stopping_saves_most_samples_and_loses_half_a_point_at_most(bound, radii, times_fewer):
    p_a = ndtr(np.random.default_rng(9).normal(1.6, 2.1, 3000))  # synthetic: wide, three quarters above 1/2
    stopped, found, full = synthetic_run(p_a, radii, 100_000, bound=bound)
    for radius in radii:
        lost = np.mean((full >= radius) & (full > 0)) - np.mean((found >= radius) & (found > 0))
        assert lost <= 0.005
    assert stopped.sum(axis=1).mean() <= 100_000 / times_fewer


@pytest.mark.statistical
def test_a_median_image_is_decided_within_twice_the_information_it_needs():
    p_a = np.full(400, 0.9)
    stopped, found, _ = synthetic_run(p_a, (0.5,), 100_000, bound="one-sided")
    p_0 = float(ndtr(0.5))  # what decides a radius of half of sigma
    needed = log(1e3) / (rel_entr(0.9, p_0) + rel_entr(0.1, 1 - p_0))
    assert np.all(found >= 0.5)
    assert np.median(stopped.sum(axis=1)) <= 2 * max(needed, CHUNK)


def test_bounds_of_a_vote_are_named():
    one = np.array([90.0]), np.array([10.0]), np.array([100.0])
    with pytest.raises(UsageError, match="validity 'later'"):
        vote_bounds(*one, alpha=1e-3, bound="two-sided", validity="later")
