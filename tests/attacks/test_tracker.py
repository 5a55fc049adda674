"""Trackers: the largest lead within a size, the nearest point without one, and when an input is down."""

import torch

from calipers.attacks.tracker import Nearest, Strongest, lead
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, Targeted, Untargeted

X = torch.zeros(3, 2)
ALL = torch.arange(3)


def _points(value: float) -> torch.Tensor:
    return torch.full((3, 2), value)


def test_the_point_of_the_largest_lead_is_kept_for_each_input() -> None:
    best = Strongest(X)
    best.offer(ALL, _points(1.0), torch.tensor([-1.0, -1.0, -1.0]))
    best.offer(ALL, _points(2.0), torch.tensor([-2.0, -0.5, -1.0]))
    best.offer(torch.tensor([2, 0]), _points(3.0)[:2], torch.tensor([4.0, -3.0]))
    assert best.point[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert best.reached.tolist() == [False, False, True]
    assert best.standing().tolist() == [0, 1]
    assert best.still(torch.tensor([2, 1])).tolist() == [False, True]


def test_a_lead_that_is_no_number_is_none_and_the_clean_input_stays() -> None:
    best = Strongest(X)
    best.offer(ALL, _points(1.0), torch.tensor([torch.nan, -torch.inf, -1e30]))
    assert best.point[:, 0].tolist() == [0.0, 0.0, 1.0]
    assert not bool(best.reached.any())


def test_a_lead_within_rounding_keeps_the_search_going_and_the_point() -> None:
    best = Strongest(X)
    best.offer(ALL, _points(1.0), torch.tensor([1e-6, 1e-6, 1e-6]))
    assert best.point[:, 0].tolist() == [1.0] * 3
    assert best.standing().tolist() == [0, 1, 2]


def test_what_is_kept_in_the_search_is_searched_on() -> None:
    best = Strongest(X, keep=True)
    best.offer(ALL, _points(1.0), torch.ones(3))
    assert best.standing().tolist() == [0, 1, 2]
    assert bool(best.reached.all())


def test_the_last_point_is_taken_where_single_draws_mean_little() -> None:
    best = Strongest(X, keep=True, last=True)
    best.offer(ALL, _points(1.0), torch.ones(3))
    best.offer(ALL[:2], _points(2.0)[:2], -torch.ones(2))
    assert best.point[:, 0].tolist() == [2.0, 2.0, 1.0]


def test_the_points_of_a_tracker_are_its_own() -> None:
    point = _points(1.0)
    best = Strongest(X)
    best.offer(ALL, point, torch.ones(3))
    point += 5
    assert best.point[:, 0].tolist() == [1.0] * 3
    assert not bool(X.any())


def test_the_nearest_point_that_reaches_the_goal_is_kept() -> None:
    nearest = Nearest(X, Norm.L2)
    nearest.offer(ALL, _points(3.0), torch.tensor([True, True, False]))
    nearest.offer(ALL, _points(1.0), torch.tensor([True, False, False]))
    nearest.offer(torch.tensor([1]), _points(4.0)[:1], torch.tensor([True]))
    nearest.offer(ALL, torch.full((3, 2), torch.nan), torch.ones(3, dtype=torch.bool))
    assert nearest.point[:, 0].tolist() == [1.0, 3.0, 0.0]
    assert nearest.found.tolist() == [True, True, False]
    assert torch.allclose(nearest.distance[:2], torch.tensor([2.0, 18.0]).sqrt())


def test_a_lead_is_the_margin_of_a_classifier() -> None:
    logits = torch.empty(9, 4).normal_(generator=torch.Generator().manual_seed(0))
    y = torch.arange(9) % 4
    for goal in (Untargeted(), Targeted(tuple(int(label + 1) % 4 for label in y))):
        assert torch.equal(lead(logits, y, goal, num_classes=4), margin(logits, y, goal))


def test_a_lead_over_a_detector_is_one_over_rejection_as_well() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 2.0], [5.0, 1.0, 6.0]])
    y = torch.tensor([0, 0, 0])
    assert lead(logits, y, Untargeted(), num_classes=2).tolist() == [-1.0, 1.0, -5.0]
    assert lead(logits, y, Untargeted("wrong"), num_classes=2).tolist() == [2.0, 3.0, 1.0]
    assert lead(logits, y, Targeted((1, 1, 1)), num_classes=2).tolist() == [-1.0, 1.0, -5.0]
    assert lead(logits, y, Targeted((1, 1, 1), "wrong"), num_classes=2).tolist() == [-1.0, 1.0, -5.0]
