"""Standard: the contract, what it brings down, and what it costs."""

import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.pgd import PGD
from calipers.attacks.standard import Standard
from calipers.attacks.view import Trace
from calipers.gradients.bpda import BPDA, identity
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import half_space
from calipers.threat.threat_model import Norm, ThreatModel


class TestStandard(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return Standard()


def _images(count: int) -> tuple[Tensor, Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    items = [data[number] for number in range(count)]
    return torch.stack([torch.from_numpy(item.image) for item in items]), torch.tensor(
        [item.label for item in items]
    )


def test_it_finds_all_that_its_members_find_and_more_than_pgd() -> None:
    target = load_model("bundled:fashion-cnn28-plain")
    x, y = _images(16)
    threat = ThreatModel(Norm.LINF, 0.02)
    found = Standard()(target, x, y, threat, seed=0)
    for weaker in (PGD(steps=20), PGD(steps=20, loss="margin", restarts=2)):
        assert not bool((weaker(target, x, y, threat, seed=1).success & ~found.success).any())
    members = Standard().plan()(target, x, y, threat, seed=0)
    assert torch.equal(members.adversarial, found.adversarial)


def test_what_falls_at_once_costs_ten_steps_at_most() -> None:
    known = half_space([1.0, 2.0])
    x = torch.tensor([[0.1, 0.1], [5.0, 5.0]])
    trace = Trace()
    found = Standard()(
        known.target, x, torch.tensor([1, 1]), ThreatModel(Norm.LINF, 0.5), seed=0, trace=trace
    )
    assert found.success.tolist() == [True, False]
    assert int(found.backwards[0]) <= 10
    assert int(found.backwards[1]) == 10 + 20 + 120 + 120 + 40, "two classes: one other to aim at"


class _Stairs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(x * 8) / 8


class _Hidden(nn.Module):
    """A linear classifier behind a quantizer, whose gradient is 0 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stairs = _Stairs()
        self.weights = nn.Parameter(torch.tensor([[1.0, -1.0], [0.5, -0.5], [1.0, -1.0], [-1.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.stairs(x).flatten(1) @ self.weights


def _hidden() -> tuple[Target, Tensor, Tensor]:
    target = Target(_Hidden().eval(), num_classes=2, input_shape=(4,), bounds=(-9.0, 9.0))
    x = torch.tensor([[0.3, 0.3, 0.2, -0.3], [0.4, 0.1, 0.3, 0.1], [-0.3, -0.4, -0.1, 0.3]])
    return target, x, target.predict(x)


def test_a_masked_gradient_falls_to_scores_and_to_the_right_view() -> None:
    target, x, y = _hidden()
    threat = ThreatModel(Norm.LINF, 0.9)
    plain = PGD(steps=20)(target, x, y, threat, seed=0)
    assert plain.reason == ("no gradient",) * 3
    for attack in (Standard(), Standard(BPDA({"stairs": identity}))):
        assert bool(attack(target, x, y, threat, seed=0).success.all())
    aware = Standard(BPDA({"stairs": identity}))(target, x, y, threat, seed=0)
    assert int(aware.backwards.max()) <= 10


def test_the_search_by_scores_takes_nothing_back_that_a_random_start_has_found() -> None:
    """At a size at which most points of the ball are wrong, flat inputs fall to starts; Square is not asked."""
    target, x, y = _hidden()
    found = Standard()(target, x, y, ThreatModel(Norm.LINF, 6.0), seed=3)
    members = Standard().plan()(target, x, y, ThreatModel(Norm.LINF, 6.0), seed=3)
    assert bool(members.success.any())
    assert not bool((members.success & ~found.success).any())
    assert bool((found.forwards[members.success] <= members.forwards[members.success] + 1).all())
