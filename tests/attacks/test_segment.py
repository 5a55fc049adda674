"""Drawing in: nearer points in each norm, never one that fails, and a candidate that was wrong is led outward."""

import pytest
import torch
from torch import Tensor

from calipers.attacks.segment import draw_in, leads
from calipers.attacks.tracker import Nearest
from calipers.attacks.view import View
from calipers.randomness import Draws, Role
from calipers.target import Access, Target
from calipers.testing.known_answers import KnownAnswer, half_space, noisy_half_space
from calipers.threat.norms import size
from calipers.threat.threat_model import Norm, Targeted, Untargeted

WEIGHTS = [1.0, 2.0, -1.0, 0.5]
DRAWS = Draws(0, Role.SEARCH, (0, 1, 2))


def _start(norm: Norm, times: float, *, last: bool = False) -> tuple[KnownAnswer, Tensor, Tensor, Nearest]:
    """Make inputs of class 0 and candidates at some multiple of the distance, in the best direction of the norm."""
    known = half_space(WEIGHTS, -6.0, bounds=(-10.0, 10.0))
    x = torch.tensor([[1.0, 0.5, -0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 1.0, -1.0]])
    weights = torch.tensor(WEIGHTS)
    unit = {Norm.L2: weights / weights.norm(), Norm.LINF: weights.sign(), Norm.L1: torch.eye(4)[1]}[norm]
    exact = torch.from_numpy(known.distance(x, norm)).float()[:, None]
    best = Nearest(x, norm, last=last)
    best.offer(None, x + times * exact * unit, torch.ones(3, dtype=torch.bool))
    return known, x, torch.zeros(3, dtype=torch.int64), best


def _view(target: Target) -> View:
    return View(target, Access.SCORES, None, count=3)


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF, Norm.L1])
@pytest.mark.parametrize("times", [1.04, 1.7, 6.0])
def test_a_candidate_beyond_the_boundary_is_drawn_in_to_a_three_hundredth(norm: Norm, times: float) -> None:
    known, x, y, best = _start(norm, times)
    draw_in(_view(known.target), best, x, y, Untargeted(), DRAWS, norm=norm, tries=10)
    exact = torch.from_numpy(known.distance(x, norm))
    assert bool((best.distance >= exact).all())
    assert bool((best.distance <= exact * 1.0033).all())
    assert known.label(best.point).tolist() == [1, 1, 1]


def test_it_takes_few_points_where_the_candidate_is_near() -> None:
    known, x, y, best = _start(Norm.L2, 1.04)
    view = _view(known.target)
    draw_in(view, best, x, y, Untargeted(), DRAWS, norm=Norm.L2, tries=50)
    assert int(view.counts.queries.max()) <= 3


def test_no_point_is_tried_beyond_the_limit_and_none_without_a_candidate() -> None:
    known, x, y, best = _start(Norm.L2, 1.5)
    best.distance[1] = torch.inf
    view = _view(known.target)
    draw_in(view, best, x, y, Untargeted(), DRAWS, norm=Norm.L2, tries=3)
    assert view.counts.queries.tolist() == [3, 0, 3]
    before = best.point.clone()
    draw_in(view, best, x, y, Untargeted(), DRAWS, norm=Norm.L2, tries=0)
    assert torch.equal(best.point, before)


def test_a_candidate_that_the_search_was_wrong_about_is_led_outward() -> None:
    known, x, y, best = _start(Norm.L2, 0.8)
    draw_in(_view(known.target), best, x, y, Untargeted(), DRAWS, norm=Norm.L2, tries=10)
    exact = torch.from_numpy(known.distance(x, Norm.L2))
    assert known.label(best.point).tolist() == [1, 1, 1]
    assert bool((best.distance <= exact * 1.0033).all())


def test_a_candidate_that_leads_nowhere_is_forgotten_and_kept_for_the_judge() -> None:
    known, x, y, best = _start(Norm.L2, -1.0)
    point = best.point.clone()
    draw_in(_view(known.target), best, x, y, Untargeted(), DRAWS, norm=Norm.L2, tries=10)
    assert not bool(best.found.any())
    assert torch.equal(best.point, point)


def test_in_l0_the_largest_coordinates_are_kept() -> None:
    known = half_space(WEIGHTS, -6.0, bounds=(-10.0, 10.0))
    x = torch.zeros(3, 4)
    best = Nearest(x, Norm.L0)
    best.offer(
        None, torch.tensor([[0.1, 3.5, -0.2, 0.3]]).expand(3, 4).clone(), torch.ones(3, dtype=torch.bool)
    )
    draw_in(
        _view(known.target),
        best,
        x,
        torch.zeros(3, dtype=torch.int64),
        Untargeted(),
        DRAWS,
        norm=Norm.L0,
        tries=10,
    )
    assert size(best.point - x, Norm.L0).tolist() == [1.0, 1.0, 1.0]
    assert best.point[0].tolist() == pytest.approx([0.0, 3.5, 0.0, 0.0])


def test_a_randomized_classifier_is_asked_many_times_a_point() -> None:
    known = noisy_half_space(WEIGHTS, -6.0, flip=0.15, bounds=(-10.0, 10.0))
    _, x, y, best = _start(Norm.L2, 0.5, last=True)
    draw_in(_view(known.target), best, x, y, Untargeted(), DRAWS, norm=Norm.L2, tries=12)
    exact = torch.from_numpy(known.distance(x, Norm.L2))
    assert bool((best.distance >= exact).all())
    assert bool((best.distance <= exact * 1.02).all())


def test_a_lead_within_the_rounding_of_the_scores_is_none() -> None:
    logits = torch.tensor([[1000.0, 1000.001], [1000.0, 1001.0], [0.0, 1e-4], [1.0, torch.nan], [0.0, 0.0]])
    y = torch.zeros(5, dtype=torch.int64)
    assert leads(logits, y, Untargeted(), num_classes=2).tolist() == [False, True, True, False, False]
    wanted = Targeted((1, 0, 1, 1, 1))
    assert leads(logits, y, wanted, num_classes=2).tolist() == [False, False, True, False, False]
