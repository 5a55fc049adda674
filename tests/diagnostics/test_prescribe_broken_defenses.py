"""The six defenses that others broke by hand, given to `diagnose` and `prescribe` alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.diagnostics.diagnose import diagnose
from calipers.diagnostics.prescribe import prescribe
from calipers.sources.datasets import load_dataset
from calipers.threat.threat_model import ThreatModel

_spec = importlib.util.spec_from_file_location(
    "broken_defenses", Path(__file__).with_name("broken_defenses.py")
)
assert _spec is not None and _spec.loader is not None
broken_defenses = sys.modules.get("broken_defenses") or importlib.util.module_from_spec(_spec)
if "broken_defenses" not in sys.modules:
    sys.modules["broken_defenses"] = broken_defenses
    _spec.loader.exec_module(broken_defenses)

BROKEN = broken_defenses.BROKEN
COUNT = 30
SECONDS = 60.0
JUDGE = Judge(draws=15, rule="average")
NEAR = 0.05


def _standing(name: str) -> tuple[float, float, float, int]:
    """The share that stands: under plain PGD, by hand, as prescribed; and how many findings are red."""
    defense = BROKEN[name]
    target, threat = defense.target(), ThreatModel(defense.norm, defense.eps)
    data = load_dataset("bundled:fashion-mnist")
    items = [data[place] for place in range(COUNT)]
    x = torch.stack([torch.from_numpy(item.image) for item in items])
    y = torch.tensor([item.label for item in items])
    plain = PGD(steps=40)
    found = diagnose(target, x, y, threat, attack=plain, seed=0, budget=SECONDS)
    chosen = prescribe(target, x, y, threat, found, seed=0, budget=SECONDS)
    shares = [
        1 - float(attack(target, x, y, threat, seed=0, judge=JUDGE).success.float().mean())
        for attack in (plain, defense.by_hand, chosen.attack)
    ]
    return shares[0], shares[1], shares[2], len(found.red)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_at_least_five_of_six_are_diagnosed_and_fall_as_far_as_by_hand() -> None:
    found = {name: _standing(name) for name in BROKEN}
    said = "\n".join(f"{name}: {shares}" for name, shares in found.items())
    assert sum(red > 0 for *_, red in found.values()) >= 5, said
    assert sum(chosen <= by_hand + NEAR for _, by_hand, chosen, _ in found.values()) >= 5, said
