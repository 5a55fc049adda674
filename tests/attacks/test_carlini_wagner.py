"""Carlini-Wagner: the contract, the weight that is searched for, and other search variables."""

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.reparameterization import Reparameterization, TanhBox
from calipers.target import Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import half_space
from calipers.threat.threat_model import Norm, ThreatModel


class TestCarliniWagner(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return CarliniWagner(steps=40)


ALONG = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])


def decode(z: Tensor) -> Tensor:
    """Give the point of a plane in space."""
    return z @ ALONG


def encode(x: Tensor) -> Tensor:
    """Find the nearest point of the plane."""
    solution: Tensor = torch.linalg.lstsq(ALONG.T, x.T).solution.T
    return solution


class _Projected(nn.Module):
    """A half-space behind a projection onto the plane, found by a search that leaves no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            clean = decode(encode(x))
        side = clean @ self.weights - 1.0 + 0 * x.sum(1)
        return torch.stack([-side, side], 1)


class _Open(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        side = x @ self.weights - 1.0
        return torch.stack([-side, side], 1)


def test_the_search_runs_over_what_a_defense_projects_onto() -> None:
    target = Target(_Open().eval(), num_classes=2, input_shape=(3,), bounds=(-5.0, 5.0))
    x = decode(torch.tensor([[0.1, 0.2], [-0.5, 0.3], [0.0, 0.0]]))
    y = target.predict(x)
    attack = CarliniWagner(steps=60, over=Reparameterization(decode, encode))
    found = attack(target, x, y, ThreatModel(Norm.L2), seed=0)
    assert bool(found.success.all())
    on_plane = decode(encode(found.adversarial))
    assert torch.allclose(on_plane, found.adversarial, atol=1e-4)
    normal = torch.tensor([1.0, 1.0, 1.0])
    within = decode(encode(normal[None]))[0]
    exact = (1.0 - x @ normal).abs() / within.norm()
    assert bool((found.distance <= exact * 1.02).all())
    assert bool((found.distance >= exact * (1 - 1e-5)).all())


def test_a_projection_without_a_gradient_is_reported_and_not_taken_for_robustness() -> None:
    target = Target(_Projected().eval(), num_classes=2, input_shape=(3,), bounds=(-5.0, 5.0))
    x = decode(torch.tensor([[0.1, 0.2]]))
    found = CarliniWagner(steps=5)(target, x, target.predict(x), ThreatModel(Norm.L2), seed=0)
    assert found.reason == ("no gradient",)


def test_a_variable_of_the_same_box_gives_the_same_result() -> None:
    known = half_space([0.6, -0.8, 0.3], bounds=(0.0, 1.0))
    x = torch.tensor([[0.4, 0.3, 0.5], [0.1, 0.9, 0.5]])
    y = known.label(x)
    threat = ThreatModel(Norm.L2)
    usual = CarliniWagner(steps=20)(known.target, x, y, threat, seed=0)
    same = CarliniWagner(steps=20, over=TanhBox(0.0, 1.0, 0.999))(known.target, x, y, threat, seed=0)
    assert torch.equal(usual.adversarial, same.adversarial)


def test_more_weights_end_no_further_and_one_is_not_enough_on_a_bent_boundary() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        for part in net.parameters():
            part.normal_(generator=torch.Generator().manual_seed(part.numel()))
    target = Target(net, num_classes=3, input_shape=(6,), bounds=(-3.0, 3.0))
    x = torch.empty(12, 6).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    y = target.predict(x)

    def total(weights: int) -> float:
        attack = CarliniWagner(steps=40, weights=weights, tries=0)
        found = attack(target, x, y, ThreatModel(Norm.L2), seed=0)
        return float(torch.where(found.success, found.distance, 10.0).sum())

    one, two, six = total(1), total(2), total(6)
    assert six <= two <= one
    assert six < 0.95 * one


def test_a_way_back_that_cannot_be_followed_is_refused() -> None:
    target = Target(_Open().eval(), num_classes=2, input_shape=(3,), bounds=(-5.0, 5.0))
    x = torch.tensor([[0.0, 0.0, 0.0]])
    threat, y = ThreatModel(Norm.L2), torch.tensor([0])
    blind = CarliniWagner(over=Reparameterization(lambda z: decode(z.detach()), encode))
    with pytest.raises(GradientsUnavailable, match="decodes without a gradient"):
        blind(target, x, y, threat, seed=0)
    flat = CarliniWagner(over=Reparameterization(lambda z: z, encode))
    with pytest.raises(UsageError, match=r"decodes to \(2,\) and an input has \(3,\)"):
        flat(target, x, y, threat, seed=0)


@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"weights": 0}, {"tries": -1}, {"step_size": 0.0}, {"step_size": float("inf")}],
    ids=str,
)
def test_a_setting_that_means_nothing_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(fields))}.*{next(iter(fields.values()))}"):
        CarliniWagner(**fields)  # type: ignore[arg-type]
