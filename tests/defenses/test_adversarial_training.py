"""Adversarial training as a defense: the negative control, its reach in other norms, its training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from calipers import sources
from calipers.defenses.adversarial_training import RECIPE, AdversarialTraining
from calipers.defenses.base import Row
from calipers.errors import MissingFile
from calipers.runs.catalog import load_model
from calipers.runs.descriptions import build_attack
from calipers.sources.datasets import load_dataset
from calipers.threat.threat_model import Norm, ThreatModel


def images(count: int) -> tuple[Tensor, Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return x, torch.tensor([one.label for one in examples])


def row_of(role: str, family: str) -> Row:
    return next(row for row in AdversarialTraining().rows() if (row.role, row.family) == (role, family))


def accuracy(row: Row, x: Tensor, y: Tensor) -> float:
    target = AdversarialTraining().target(row.variant)
    found = row.attack(target, x, y, ThreatModel(Norm(row.norm), float(row.eps)), seed=0, judge=row.judge)
    return float((~found.success).double().mean())


def test_the_classifier_is_the_bundled_one() -> None:
    wanted = load_model("bundled:fashion-cnn28-adversarial").fingerprint
    assert AdversarialTraining().target().fingerprint == wanted


def test_the_recipe_is_that_of_the_bundled_network() -> None:
    text = (Path(sources.__file__).parent / "bundled" / "fashion-cnn28-adversarial.json").read_text("utf-8")
    for word in (f'"eps": {RECIPE.eps}', f'"epochs": {RECIPE.epochs}', f'"steps": {RECIPE.steps}'):
        assert word in text


def test_every_row_can_be_stored_and_rebuilt() -> None:
    for row in AdversarialTraining().rows():
        assert build_attack(repr(row.attack)) == row.attack


def test_the_adaptive_attack_takes_little_more_than_the_naive_one() -> None:
    x, y = images(10)
    naive, adaptive = accuracy(row_of("naive", "linf"), x, y), accuracy(row_of("adaptive", "linf"), x, y)
    assert adaptive <= naive <= adaptive + 0.1
    assert adaptive > 0.5
    assert accuracy(row_of("undefended", "linf"), x, y) < 0.1


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_bring_it_down(norm: str) -> None:
    x, y = images(10)
    assert accuracy(row_of("adaptive", norm), x, y) <= 0.6


def test_a_tiny_training_writes_a_file_that_loads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (300,), generator=generator)
    said: list[str] = []
    with pytest.raises(MissingFile, match="calipers train iclr2018"):
        AdversarialTraining(tmp_path).target()
    AdversarialTraining(tmp_path).train(x, y, tmp_path, share=0.01, tell=said.append)
    target = AdversarialTraining(tmp_path).target()
    assert target.logits(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert target.fingerprint != AdversarialTraining().target().fingerprint
    assert [words.partition(": loss")[0] for words in said] == ["adversarial-training: epoch 1 of 1"]
    AdversarialTraining(tmp_path).train(x, y, tmp_path, share=0.01, tell=said.append)
    assert len(said) == 1
