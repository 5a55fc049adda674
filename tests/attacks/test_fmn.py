"""FMN: the contract, and what is its own."""

import pytest
import torch

from calipers.attacks.base import Attack
from calipers.attacks.ddn import DDN
from calipers.attacks.fmn import FMN
from calipers.errors import UsageError
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import concentric_balls
from calipers.threat.threat_model import Norm, ThreatModel


class TestFMN(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return FMN(steps=40)


def test_every_image_of_a_real_network_falls_and_about_as_near_as_by_ddn() -> None:
    # on a third of these images a radius that only follows the extrapolated distance never reaches the boundary
    target, data = load_model("bundled:fashion-cnn28-plain"), load_dataset("bundled:fashion-mnist")
    examples = [data[index] for index in range(24)]
    x = torch.stack([torch.from_numpy(example.image) for example in examples])
    y = torch.tensor([example.label for example in examples])
    found = FMN(steps=60)(target, x, y, ThreatModel(Norm.L2), seed=0)
    other = DDN(steps=60)(target, x, y, ThreatModel(Norm.L2), seed=0)
    assert bool(found.success.all())
    wrong = other.distance == 0
    assert float((found.distance / other.distance)[~wrong].median()) < 1.02


def test_a_smaller_first_step_and_another_scale_of_the_inputs_change_little() -> None:
    x = torch.empty(6, 5).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    known = concentric_balls([0.0] * 5, 3.0, bounds=(-10.0, 10.0))
    small = concentric_balls([0.0] * 5, 0.003, bounds=(-0.01, 0.01))
    y, threat = torch.zeros(6, dtype=torch.int64), ThreatModel(Norm.LINF)
    found = FMN()(known.target, x, y, threat, seed=0).distance
    shrunk = FMN()(small.target, x / 1000, y, threat, seed=0).distance
    assert torch.allclose(found, shrunk * 1000, rtol=0.01)


@pytest.mark.parametrize(
    "fields",
    [{"steps": 1}, {"tries": -1}, {"step_size": -1.0}, {"gamma": 0.0}, {"gamma": 1.0}],
    ids=str,
)
def test_a_setting_that_means_nothing_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(fields))}.*{next(iter(fields.values()))}"):
        FMN(**fields)  # type: ignore[arg-type]
