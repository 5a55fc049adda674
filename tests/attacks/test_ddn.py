"""DDN: the contract, and what is its own."""

import pytest
import torch

from calipers.attacks.base import Attack
from calipers.attacks.ddn import DDN
from calipers.errors import UsageError
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import concentric_balls
from calipers.threat.threat_model import Norm, ThreatModel


class TestDDN(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return DDN(steps=40)


def test_another_scale_of_the_inputs_changes_little() -> None:
    x = torch.empty(6, 5).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    known = concentric_balls([0.0] * 5, 3.0, bounds=(-10.0, 10.0))
    small = concentric_balls([0.0] * 5, 0.003, bounds=(-0.01, 0.01))
    y, threat = torch.zeros(6, dtype=torch.int64), ThreatModel(Norm.L2)
    found = DDN(loss="margin")(known.target, x, y, threat, seed=0).distance
    shrunk = DDN(loss="margin")(small.target, x / 1000, y, threat, seed=0).distance
    assert torch.allclose(found, shrunk * 1000, rtol=0.01)


@pytest.mark.parametrize(
    "fields",
    [{"steps": 1}, {"tries": -1}, {"step_size": -1.0}, {"gamma": 0.0}, {"gamma": 1.0}],
    ids=str,
)
def test_a_setting_that_means_nothing_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(fields))}.*{next(iter(fields.values()))}"):
        DDN(**fields)  # type: ignore[arg-type]
