"""Boundary: the contract from classes alone, known distances at stated queries, and targets that randomize."""

import numpy as np
import pytest
import torch

from calipers.attacks.base import Attack
from calipers.attacks.boundary import Boundary
from calipers.errors import UsageError
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import concentric_balls, half_space, noisy_half_space
from calipers.threat.threat_model import Norm, ThreatModel

L2 = ThreatModel(Norm.L2)


class TestBoundary(AttackContract):
    ratio = 1.1

    def make(self) -> Attack:
        return Boundary(steps=200)


def test_a_half_space_of_12_coordinates_falls_in_600_queries() -> None:
    known = half_space(np.linspace(-1, 1, 12).tolist(), bounds=(-10.0, 10.0))
    x = torch.linspace(-1, 1, 96).view(8, 12)
    found = Boundary(steps=300)(known.target, x, known.target.predict(x), L2, seed=0)
    assert bool(found.success.all())
    assert int(found.queries.max()) < 600
    assert bool((found.distance <= torch.from_numpy(known.distance(x, Norm.L2)) * 1.05).all())


def test_concentric_balls_fall_from_inside() -> None:
    known = concentric_balls([0.0] * 6, 1.0, bounds=(-2.0, 2.0))
    unit = torch.nn.functional.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)))
    x = unit * torch.tensor([0.3, 0.6, 0.9])[:, None]
    found = Boundary(steps=600)(known.target, x, known.target.predict(x), L2, seed=0)
    assert bool(found.success.all())
    ratio = found.distance.numpy() / known.distance(x, Norm.L2)
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1.05


def test_a_walk_that_has_converged_asks_no_more() -> None:
    known = half_space([1.0, -2.0], bounds=(-10.0, 10.0))
    x = torch.tensor([[0.5, -0.5], [0.3, 0.6]])
    y = known.target.predict(x)
    few, many = (Boundary(steps=n)(known.target, x, y, L2, seed=0) for n in (1_000, 1_500))
    assert torch.equal(few.queries, many.queries)
    assert torch.equal(few.adversarial, many.adversarial)


def test_a_randomized_target_falls_by_the_judges_majority() -> None:
    known = noisy_half_space([1.0, 2.0, -1.0], 0.1, flip=0.2, bounds=(-10.0, 10.0))
    x = torch.tensor([[0.5, 0.3, 0.1], [-0.4, -0.2, 0.3]])
    found = Boundary(steps=150)(known.target, x, torch.tensor([1, 0]), L2, seed=0)
    assert bool(found.success.all())
    assert (found.distance.numpy() / known.distance(x, Norm.L2)).max() <= 1.5


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"aside": 0.0}, {"closer": 1.5}, {"tries": 0}, {"votes": -1}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        Boundary(**wrong)  # type: ignore[arg-type]
