"""Six more broken defenses: they look robust to plain PGD, stay accurate, and fall to attacks found by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.randomness import Draws, Role
from calipers.sources.datasets import load_dataset
from calipers.target import Target
from calipers.threat.threat_model import ThreatModel

_spec = importlib.util.spec_from_file_location(
    "broken_defenses", Path(__file__).with_name("broken_defenses.py")
)
assert _spec is not None and _spec.loader is not None
broken_defenses = importlib.util.module_from_spec(_spec)
sys.modules["broken_defenses"] = broken_defenses
_spec.loader.exec_module(broken_defenses)

BROKEN = broken_defenses.BROKEN
COUNT = 30
JUDGE = Judge(draws=15, rule="average")


def _images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    rows = [data[index] for index in range(count)]
    return torch.stack([torch.from_numpy(row.image) for row in rows]), torch.tensor(
        [row.label for row in rows]
    )


def _accuracy(target: Target, count: int) -> float:
    x, y = _images(count)
    return float(
        (JUDGE.answers(target, x, Draws(0, Role.JUDGE, tuple(range(count)))).mode(0).values == y)
        .float()
        .mean()
    )


def _robust(target: Target, attack: PGD, defense: object, count: int) -> float:
    x, y = _images(count)
    threat = ThreatModel(defense.norm, defense.eps)  # type: ignore[attr-defined]
    return 1 - float(attack(target, x, y, threat, seed=0, judge=JUDGE).success.float().mean())


@pytest.mark.parametrize("name", BROKEN)
def test_it_keeps_its_accuracy(name: str) -> None:
    defense = BROKEN[name]
    assert _accuracy(defense.target(), 200) >= _accuracy(defense.undefended(), 200) - 0.08


@pytest.mark.parametrize("name", BROKEN)
def test_plain_pgd_reports_it_robust_where_the_undefended_network_falls(name: str) -> None:
    defense = BROKEN[name]
    plain = PGD(steps=40)
    without = _robust(defense.undefended(), plain, defense, COUNT)
    assert without <= 0.05
    assert _robust(defense.target(), plain, defense, COUNT) >= without + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_an_attack_found_by_hand_breaks_it(name: str) -> None:
    defense = BROKEN[name]
    target = defense.target()
    by_hand = _robust(target, defense.by_hand, defense, 50)
    assert by_hand <= 0.3
    assert by_hand <= _robust(target, PGD(steps=40), defense, 50) - 0.3
