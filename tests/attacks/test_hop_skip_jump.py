"""HopSkipJump: the contract from classes alone, known distances at stated queries, and targets that randomize."""

import numpy as np
import pytest
import torch

from calipers.attacks.base import Attack
from calipers.attacks.hop_skip_jump import HopSkipJump
from calipers.errors import UsageError
from calipers.target import Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import concentric_balls, half_space, noisy_half_space
from calipers.threat.threat_model import Norm, ThreatModel


class TestHopSkipJump(AttackContract):
    ratio = 1.1

    def make(self) -> Attack:
        return HopSkipJump(steps=6)


@pytest.mark.parametrize(("norm", "ratio"), [(Norm.L2, 1.04), (Norm.LINF, 1.04)])
def test_a_half_space_of_12_coordinates_falls_in_1200_queries(norm: Norm, ratio: float) -> None:
    known = half_space(np.linspace(-1, 1, 12).tolist(), bounds=(-10.0, 10.0))
    x = torch.linspace(-1, 1, 96).view(8, 12)
    found = HopSkipJump(steps=6)(known.target, x, known.target.predict(x), ThreatModel(norm), seed=0)
    assert bool(found.success.all())
    assert int(found.queries.max()) < 1_200
    assert bool((found.distance <= torch.from_numpy(known.distance(x, norm)) * ratio).all())


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_concentric_balls_fall_from_inside_and_outside(norm: Norm) -> None:
    known = concentric_balls([0.0] * 6, 1.0, bounds=(-2.0, 2.0))
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(6, 6, generator=generator))
    x = unit * torch.tensor([0.3, 0.6, 0.9, 1.2, 1.5, 2.0])[:, None]
    found = HopSkipJump(steps=15, tries=400)(
        known.target, x, known.target.predict(x), ThreatModel(norm), seed=0
    )
    assert bool(found.success.all())
    ratio = found.distance.numpy() / known.distance(x, norm)
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1.25


def test_more_steps_come_nearer() -> None:
    known = half_space(np.linspace(-1, 1, 40).tolist(), bounds=(-10.0, 10.0))
    x = torch.linspace(-1, 1, 160).view(4, 40) + 0.1
    y = known.target.predict(x)
    few, many = (HopSkipJump(steps=n)(known.target, x, y, ThreatModel(Norm.L2), seed=0) for n in (2, 12))
    assert bool((many.distance < few.distance).all())


def test_a_randomized_target_falls_by_the_judges_majority() -> None:
    known = noisy_half_space([1.0, 2.0, -1.0], 0.1, flip=0.2, bounds=(-10.0, 10.0))
    x = torch.tensor([[0.5, 0.3, 0.1], [-0.4, -0.2, 0.3]])
    y = torch.tensor([1, 0])
    found = HopSkipJump(steps=5, samples=50)(known.target, x, y, ThreatModel(Norm.L2), seed=0)
    assert bool(found.success.all())
    ratio = found.distance.numpy() / known.distance(x, Norm.L2)
    assert ratio.max() <= 1.5


def test_without_a_point_to_start_from_nothing_is_claimed() -> None:
    one = Target.from_decisions(
        lambda rows: np.where(rows[:, 0] == 0.125, 1, 0), num_classes=2, input_shape=(2,), fingerprint="one"
    )
    x = torch.full((2, 2), 0.5)
    found = HopSkipJump(tries=5)(one, x, torch.zeros(2, dtype=torch.long), ThreatModel(Norm.L2), seed=0)
    assert found.reason == ("not found", "not found")
    assert torch.equal(found.adversarial, x)
    assert found.queries.tolist() == [5, 5]


def test_noise_of_blocks_starts_where_noise_of_pixels_is_the_label() -> None:
    """A classifier that calls every rough image 0 has smooth ones of class 1."""

    def rough(rows: np.ndarray) -> np.ndarray:
        return (np.abs(np.diff(rows, axis=-1)).mean((1, 2, 3)) < 0.1).astype(np.int64)

    target = Target.from_decisions(rough, num_classes=2, input_shape=(1, 16, 16), fingerprint="rough")
    x = torch.rand((3, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    y = target.predict(x)
    assert y.tolist() == [0, 0, 0]
    found = HopSkipJump(steps=1, samples=10)(target, x, y, ThreatModel(Norm.L2), seed=0)
    assert bool(found.success.all())


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"samples": 1}, {"tries": 0}, {"votes": 0}, {"most_samples": 9}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        HopSkipJump(**wrong)  # type: ignore[arg-type]
