"""DeepFool: the contract, and what is its own."""

import pytest
import torch
from torch import nn

from calipers.attacks.base import Attack
from calipers.attacks.deepfool import DeepFool
from calipers.errors import UsageError
from calipers.target import Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import half_space
from calipers.threat.threat_model import Norm, ThreatModel


class TestDeepFool(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return DeepFool()


def test_a_step_costs_a_gradient_for_each_rival_and_no_more() -> None:
    net = nn.Linear(4, 6).eval()
    with torch.no_grad():
        net.weight.normal_(generator=torch.Generator().manual_seed(0))
        net.bias.zero_()
    target = Target(net, num_classes=6, input_shape=(4,), bounds=(-5.0, 5.0))
    x = torch.empty(5, 4).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    y, threat = target.predict(x), ThreatModel(Norm.L2)
    found = DeepFool()(target, x, y, threat, seed=0)
    # the classifier is linear: the first step, overshot, reaches the nearest plane
    assert found.backwards.tolist() == [5] * 5
    scores, weights = target.logits(x).detach(), net.weight.detach()
    behind = scores.gather(1, y[:, None]) - scores
    steep = (weights[None] - weights[y][:, None]).norm(dim=2)
    gaps = behind / steep
    exact = gaps.scatter(1, y[:, None], torch.inf).amin(1)
    assert torch.allclose(found.distance, exact.double(), rtol=3e-3)
    few = DeepFool(classes=3)(target, x, y, threat, seed=0)
    assert int(few.backwards.max()) <= 2 * 50
    assert bool((few.distance >= exact * (1 - 1e-5)).all())


def test_an_offset_that_all_scores_share_hides_nothing() -> None:
    net = nn.Linear(4, 6).eval()
    with torch.no_grad():
        net.weight.normal_(generator=torch.Generator().manual_seed(0))
        net.bias.fill_(1e4)
    target = Target(net, num_classes=6, input_shape=(4,), bounds=(-5.0, 5.0))
    x = torch.empty(20, 4).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    found = DeepFool()(target, x, target.predict(x), ThreatModel(Norm.L2), seed=0)
    assert bool(found.success.all())


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_a_coordinate_at_a_face_of_the_box_is_left_out_of_the_step(norm: Norm) -> None:
    known = half_space([3.0, 1.0, 1.0], -3.6, bounds=(0.0, 1.0))
    x = torch.tensor([[1.0, 0.2, 0.1]])
    found = DeepFool()(known.target, x, torch.tensor([0]), ThreatModel(norm), seed=0)
    assert found.backwards.tolist() == [1]
    assert float(found.distance) == pytest.approx({Norm.L2: 0.3 / 2**0.5, Norm.LINF: 0.15}[norm], rel=5e-3)


@pytest.mark.parametrize(
    "fields", [{"steps": 0}, {"tries": -1}, {"classes": 1}, {"overshoot": -0.1}], ids=str
)
def test_a_setting_that_means_nothing_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(fields))}.*{next(iter(fields.values()))}"):
        DeepFool(**fields)  # type: ignore[arg-type]
