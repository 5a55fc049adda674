"""Searches for the least size against exact distances: at the faces of the box, on a sphere, under gradient views."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack, AttackResult
from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.attacks.ddn import DDN
from calipers.attacks.deepfool import DeepFool
from calipers.attacks.fmn import FMN
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.finite_differences import NES
from calipers.gradients.transformations import AdditiveNoise
from calipers.target import Target
from calipers.testing.closed_forms import HalfSpace, NoisyHalfSpace
from calipers.testing.known_answers import concentric_balls, half_space
from calipers.threat.threat_model import Norm, Targeted, ThreatModel

CASES = [
    (FMN(steps=60), Norm.L2),
    (FMN(steps=60), Norm.LINF),
    (FMN(steps=60), Norm.L1),
    (DDN(steps=60), Norm.L2),
    (DeepFool(), Norm.L2),
    (DeepFool(), Norm.LINF),
    (CarliniWagner(steps=60), Norm.L2),
]
IDS = [f"{type(attack).__name__}-{norm}" for attack, norm in CASES]


def _run(attack: Attack, target: Target, x: Tensor, norm: Norm, y: Tensor | None = None) -> AttackResult:
    return attack(target, x, target.predict(x) if y is None else y, ThreatModel(norm), seed=0)


def _in_the_box(norm: Norm, weights: np.ndarray, x: np.ndarray, height: float) -> float:
    """Find the least size in the unit box that raises w.x by the height: by bisection, or coordinate by coordinate."""
    room = np.where(weights > 0, 1 - x, x)
    gain = np.abs(weights)
    if norm in (Norm.L1, Norm.L0):
        order = np.argsort(-gain if norm is Norm.L1 else -gain * room)
        size = 0.0
        for place in order:
            step = min(room[place], height / gain[place])
            height -= step * gain[place]
            size += step if norm is Norm.L1 else 1
            if height <= 1e-12:
                return size
        raise AssertionError("the box does not reach the boundary")
    shape = gain if norm is Norm.L2 else np.ones_like(gain)
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        reached = gain @ np.minimum(middle * shape, room) >= height
        low, high = (low, middle) if reached else (middle, high)
    delta = np.minimum(high * shape, room)
    return float(np.linalg.norm(delta)) if norm is Norm.L2 else float(delta.max())


@pytest.mark.parametrize(("attack", "norm"), [*CASES, (FMN(), Norm.L0)], ids=[*IDS, "FMN-l0"])
def test_the_nearest_point_in_the_box_is_found_where_its_faces_bound_the_way(
    attack: Attack, norm: Norm
) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.empty(20).uniform_(0.2, 1, generator=generator)
    weights *= torch.empty(20).normal_(generator=generator).sign()
    x = torch.rand(6, 20, generator=generator)
    x[:, ::4] = (weights[::4] > 0).float()  # a quarter of the coordinates is at the face already
    x[:, 1::4] = (x[:, 1::4] * 0.1 + 0.9 * (weights[1::4] > 0)).clamp(0, 1)  # and another near it
    known = half_space(weights.tolist(), -float((x @ weights).max()) - 1.5, bounds=(0.0, 1.0))
    found = _run(attack, known.target, x, norm)
    offset = known.net.offset.item()  # type: ignore[union-attr, operator]
    exact = np.array(
        [
            _in_the_box(norm, weights.double().numpy(), row, -offset - float(row @ weights.double().numpy()))
            for row in x.double().numpy()
        ]
    )
    free = known.distance(x, norm)
    assert (exact > 1.05 * free).all()
    assert bool(found.success.all())
    slack = 1 + 1e-9 if norm is Norm.L0 else 1.02
    if isinstance(attack, CarliniWagner):
        slack = 1.05
    assert (found.distance.numpy() >= exact * (1 - 1e-6)).all()
    more = 1 if norm is Norm.L0 else 0
    assert (found.distance.numpy() <= exact * slack + more).all(), found.distance.numpy() / exact


@pytest.mark.parametrize(("attack", "norm"), CASES, ids=IDS)
@pytest.mark.parametrize("side", ["inside", "outside"])
def test_the_nearest_point_of_a_sphere_is_found_from_both_sides(
    attack: Attack, norm: Norm, side: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.empty(7, 6).normal_(generator=generator)
    lengths = torch.empty(7, 1).uniform_(
        *((0.3, 0.8) if side == "inside" else (1.3, 2.0)), generator=generator
    )
    x = x / x.norm(dim=1, keepdim=True) * lengths
    known = concentric_balls([0.0] * 6, 1.0, bounds=(-5.0, 5.0))
    exact = known.distance(x, norm)
    found = _run(attack, known.target, x, norm)
    assert bool(found.success.all())
    assert (found.distance.numpy() >= exact * (1 - 1e-6)).all()
    # a step of DeepFool keeps to the sign of the gradient where the nearest point does not
    slack = (
        1.25
        if isinstance(attack, DeepFool) and norm is Norm.LINF
        else 1.05
        if isinstance(attack, CarliniWagner)
        else 1.02
    )
    assert (found.distance.numpy() <= exact * slack).all(), found.distance.numpy() / exact


@pytest.mark.parametrize("side", ["inside", "outside"])
def test_in_l0_no_more_than_one_coordinate_is_changed_beyond_the_least(side: str) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.empty(7, 6).normal_(generator=generator)
    x = x / x.norm(dim=1, keepdim=True) * (0.5 if side == "inside" else 1.5)
    known = concentric_balls([0.0] * 6, 1.0, bounds=(-5.0, 5.0))
    found = _run(FMN(), known.target, x, Norm.L0)
    assert bool(found.success.all())
    assert (found.distance.numpy() <= known.distance(x, Norm.L0) + 1).all()


class _Rounded(nn.Module):
    """A half-space behind a quantizer of 100 levels a unit, whose gradient is 0."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.quantizer = _Quantizer()
        self.base = HalfSpace(weights)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.base(self.quantizer(x))
        return scores


class _Quantizer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 100).round() / 100


@pytest.mark.parametrize(("attack", "norm"), CASES, ids=IDS)
def test_a_quantizer_hides_the_gradient_and_bpda_brings_it_back(attack: Attack, norm: Norm) -> None:
    weights = [0.9, -0.5, 0.4, 0.7]
    net = _Rounded(weights).eval()
    target = Target(net, num_classes=2, input_shape=(4,), bounds=(-5.0, 5.0))
    x = torch.empty(5, 4).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    hidden = _run(attack, target, x, norm)
    assert set(hidden.reason) == {"no gradient"}
    view = BPDA({"quantizer": identity})
    found = _run(replace(attack, gradient=view), target, x, norm)  # type: ignore[call-arg]
    assert bool(found.success.all())
    exact = HalfSpace(weights).distance((x * 100).round() / 100, norm)
    step = {Norm.L1: 0.04, Norm.L2: 0.02, Norm.LINF: 0.01}[norm]
    assert (found.distance.numpy() <= 1.05 * exact + step).all(), found.distance.numpy() / exact


@pytest.mark.parametrize("attack", [FMN(steps=60), DDN(steps=60), DeepFool(steps=10)], ids=repr)
def test_one_lucky_draw_of_a_randomized_classifier_decides_nothing(attack: Attack) -> None:
    net = NoisyHalfSpace(HalfSpace([0.9, -0.5, 0.4, 0.7]), flip=0.1).eval()
    target = Target(net, num_classes=2, input_shape=(4,), bounds=(-5.0, 5.0), stochastic=True)
    x = torch.empty(6, 4).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    exact = net.distance(x, Norm.L2)
    y = (net.base.signed(x) > 0).long().detach()
    for seen in (attack, replace(attack, gradient=EOT(10))):  # type: ignore[call-arg]
        found = _run(seen, target, x, Norm.L2, y)
        assert bool(found.success.all())
        assert (found.distance.numpy() >= exact * (1 - 1e-6)).all()
        assert (found.distance.numpy() <= exact * 1.25).all(), found.distance.numpy() / exact


@pytest.mark.parametrize(("attack", "norm"), [(FMN(steps=40), Norm.LINF), (DDN(steps=40), Norm.L2)], ids=repr)
def test_scores_alone_lead_near_the_least_distance(attack: Attack, norm: Norm) -> None:
    known = half_space([0.9, -0.5, 0.4, 0.7], bounds=(-5.0, 5.0))
    x = torch.empty(5, 4).uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    seen = replace(attack, gradient=NES(40, sigma=1e-2))  # type: ignore[call-arg]
    found = _run(seen, known.target, x, norm)
    assert bool(found.success.all())
    assert (found.distance.numpy() <= known.distance(x, norm) * 1.1).all()
    assert not bool(found.backwards.any())


class _Rays(nn.Module):
    """Three classes of the plane, each with the scores of its direction."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(3) * 2 * torch.pi / 3
        self.directions = nn.Parameter(torch.stack([angle.cos(), angle.sin()], 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.directions.T


@pytest.mark.parametrize(
    "attack",
    [FMN(steps=40), DDN(steps=40), DeepFool(), CarliniWagner(steps=40)],
    ids=lambda attack: type(attack).__name__,
)
def test_a_targeted_search_goes_to_the_wanted_class_and_an_untargeted_to_the_nearest(attack: Attack) -> None:
    target = Target(_Rays().eval(), num_classes=3, input_shape=(2,), bounds=(-5.0, 5.0))
    x = torch.tensor([[1.0, 0.3], [1.0, -0.3], [1.0, 0.3], [1.0, -0.3]])
    y = torch.zeros(4, dtype=torch.int64)
    plane = torch.tensor(
        [[-(3**0.5) / 2, 0.5], [-(3**0.5) / 2, -0.5]]
    )  # outward normals: to 0|1 and 0|2 from 0
    across = -(x @ plane.T) / plane.norm(dim=1)
    across = torch.stack(
        [(x * torch.tensor([3**0.5 / 2, -0.5])).sum(1), (x * torch.tensor([3**0.5 / 2, 0.5])).sum(1)], 1
    )
    nearest = attack(target, x, y, ThreatModel(Norm.L2), seed=0)
    assert nearest.verdict.prediction.tolist() == [1, 2, 1, 2]
    slack = (
        0.05 if isinstance(attack, DDN) else 0.01
    )  # the cross-entropy's gradient shies away from the third class
    assert torch.allclose(nearest.distance, across.amin(1).double(), rtol=slack)
    wanted = attack(target, x, y, ThreatModel(Norm.L2, goal=Targeted((1, 1, 2, 2))), seed=0)
    assert wanted.verdict.prediction.tolist() == [1, 1, 2, 2]
    far = torch.stack([across[0, 0], across[1, 0], across[2, 1], across[3, 1]]).double()
    assert torch.allclose(wanted.distance, far, rtol=slack)


class _Guarded(nn.Module):
    """A half-space with a rejection score that wins within a half of its boundary."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.base = HalfSpace(weights)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.base(x)
        return torch.cat([scores, torch.full_like(scores[:, :1], 0.5)], 1)


@pytest.mark.parametrize(
    "attack",
    [FMN(steps=40), DDN(steps=40), DeepFool(), CarliniWagner(steps=40)],
    ids=lambda attack: type(attack).__name__,
)
def test_a_rejected_point_is_no_success_and_the_search_goes_beyond(attack: Attack) -> None:
    weights = [0.9, -0.5, 0.4, 0.7]
    target = Target(
        _Guarded(weights).eval(), num_classes=2, input_shape=(4,), bounds=(-5.0, 5.0), detector=True
    )
    unit = torch.tensor(weights) / torch.tensor(weights).norm()
    x = torch.stack([unit * 0.8, unit * -1.2])
    found = attack(target, x, torch.tensor([1, 0]), ThreatModel(Norm.L2), seed=0)
    assert bool(found.success.all())
    assert torch.allclose(found.distance, torch.tensor([1.3, 1.7]).double(), rtol=0.01)


class _Rippled(nn.Module):
    """Class 1 beyond 1 on the first axis, but for ripples that noise of .2 smooths away."""

    def forward(self, x: Tensor) -> Tensor:
        side = x[:, 0] - 1 - 0.4 * torch.cos(10 * torch.pi * x[:, 0])
        return torch.stack([-side, side], 1)


@pytest.mark.parametrize(
    "attack", [FMN(steps=30), DDN(steps=30), DeepFool()], ids=lambda attack: type(attack).__name__
)
def test_the_boundary_of_a_smoothed_classifier_is_sought_and_not_that_of_its_base(attack: Attack) -> None:
    base = Target(_Rippled().eval(), num_classes=2, input_shape=(3,), bounds=(-5.0, 5.0))
    smoothed = half_space([1.0, 0.0, 0.0], -1.0, bounds=(-5.0, 5.0)).target
    view = EOT(1000, over=AdditiveNoise("gaussian", 0.2), average="logits")
    x = torch.tensor([[0.1, 0.0, 0.3], [0.5, 0.2, 0.0]])
    found = replace(attack, gradient=view)(  # type: ignore[call-arg]
        smoothed, x, torch.tensor([0, 0]), ThreatModel(Norm.L2), seed=0, through=base
    )
    assert bool(((found.adversarial[:, 0] - 1).abs() < 0.05).all()), found.adversarial
