"""Decisions: answers that are noisy, starts, and the way to the boundary."""

import numpy as np
import pytest
import torch

from calipers.attacks.base import Attack
from calipers.attacks.boundary import Boundary
from calipers.attacks.decisions import noise_starts, reaches, step_aside, to_boundary
from calipers.attacks.hop_skip_jump import HopSkipJump
from calipers.attacks.tracker import Nearest
from calipers.attacks.view import View
from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.smoothed import smooth
from calipers.randomness import Draws, Role
from calipers.target import Access
from calipers.testing.known_answers import half_space, noisy_half_space
from calipers.threat.threat_model import Norm, Targeted, ThreatModel, Untargeted


def draws(count: int) -> Draws:
    return Draws(0, Role.SEARCH, tuple(range(count)))


def test_points_are_told_apart_by_input_and_counted() -> None:
    known = half_space([1.0], bounds=(-3.0, 3.0))
    view = View(known.target, Access.DECISIONS, None, count=2)
    points = torch.tensor([[-1.0], [1.0], [2.0], [-1.0], [1.0], [-2.0]])
    y = torch.tensor([1, 0])
    found = reaches(view, points, y, Untargeted(), draws(2), votes=5)
    assert found.tolist() == [True, False, False, False, True, False]
    found = reaches(view, points, y, Targeted((0, 1)), draws(2), votes=5)
    assert found.tolist() == [True, False, False, False, True, False]
    assert view.counts.queries.tolist() == [6, 6]


def test_two_thirds_of_a_randomized_targets_answers_must_reach_the_goal() -> None:
    x = torch.full((200, 1), 0.5)
    y = torch.zeros(200, dtype=torch.long)
    for flip, least, most in ((0.05, 195, 200), (0.45, 20, 90)):
        known = noisy_half_space([1.0], flip=flip, bounds=(-3.0, 3.0))
        view = View(known.target, Access.DECISIONS, None, count=200)
        found = reaches(view, x, y, Untargeted(), draws(200), votes=12)
        assert least <= int(found.sum()) <= most, "P(Bin(12, .55) >= 8) is .30"
        assert view.counts.queries.tolist() == [12] * 200


def test_starts_are_of_each_input_and_reach_the_goal() -> None:
    known = half_space([1.0, 1.0, 0.0, 0.0], 1.0, bounds=(-1.0, 1.0))
    x = torch.tensor([[0.5, 0.0, 0.1, 0.2], [0.0, 0.9, 0.3, 0.1]])
    y = known.target.predict(x)
    view = View(known.target, Access.DECISIONS, None, count=2)
    start, found = noise_starts(view, x, y, Untargeted(), draws(2), tries=50, votes=1)
    assert bool(found.all())
    assert bool((known.target.predict(start) != y).all())
    alone = View(known.target, Access.DECISIONS, None, count=1)
    other, _ = noise_starts(alone, x[1:], y[1:], Untargeted(), Draws(0, Role.SEARCH, (1,)), tries=50, votes=1)
    assert torch.equal(other[0], start[1])


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_halving_ends_at_the_boundary_on_the_side_of_the_goal(norm: Norm) -> None:
    known = half_space([2.0, 1.0], bounds=(-10.0, 10.0))
    x, far = torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.tensor([[-4.0, -4.0], [-9.0, 1.0]])
    y = known.target.predict(x)
    view = View(known.target, Access.DECISIONS, None, count=2)
    near = to_boundary(view, x, far, y, Untargeted(), draws(2), norm=norm, halvings=20, votes=1)
    assert bool((known.target.predict(near) != y).all())
    assert float(known.distance(near, Norm.L2).max()) < 1e-4


@pytest.mark.parametrize("attack", [HopSkipJump(steps=3, samples=40), Boundary(steps=60)])
def test_a_smoothed_classifier_falls_to_fresh_draws_and_not_to_lucky_ones(attack: Attack) -> None:
    """Its answers are tests on samples, which near the boundary a search passes by luck and the judge does not."""
    known = half_space(np.linspace(-1, 1, 5).tolist(), bounds=(-10.0, 10.0))
    target = smooth(known.target, Gaussian(0.5), samples=200)
    x = torch.linspace(-1, 1, 100).view(20, 5)
    x += 0.8 * torch.nn.functional.normalize(torch.linspace(-1, 1, 5), dim=0)
    y = known.target.predict(x)
    found = attack(target, x, y, ThreatModel(Norm.L2), seed=0)
    assert int(found.success.sum()) >= 18, "half of them, if a single answer were believed"
    ratio = found.distance.numpy() / known.distance(x, Norm.L2)
    assert ratio.min() >= 1
    assert np.median(ratio) <= 2


def test_a_plain_function_confirms_the_first_candidate_for_twelve_queries() -> None:
    known = half_space([1.0, 1.0], bounds=(-3.0, 3.0))
    x = torch.tensor([[0.6, 0.3], [0.4, 0.1]])
    best = Nearest(x, Norm.L2)
    best.offer(torch.arange(2), torch.tensor([[-0.5, -0.5], [-1.0, 0.5]]), torch.tensor([True, True]))
    view = View(known.target, Access.DECISIONS, None, count=2)
    found = step_aside(view, best, x, torch.tensor([1, 1]), Untargeted(), draws(2), votes=1)
    assert torch.allclose(found - x, (best.point - x) * (1 + 1e-5), rtol=1e-6)
    assert view.counts.queries.tolist() == [12, 12]
