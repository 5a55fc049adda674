"""Random resizing and padding: its patterns, the exact mean over them, its rows, its training."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from calipers.attacks.judge import Judge
from calipers.defenses.base import Row
from calipers.defenses.randomization import (
    PATTERNS,
    Randomization,
    RandomizedClassifier,
    ResizeAndPad,
    answers_by_pattern,
    build_classifier,
    resize_and_pad,
)
from calipers.errors import UsageError
from calipers.gradients.eot import EOT
from calipers.gradients.text import parse_gradient
from calipers.randomness import Draws, Role
from calipers.runs.catalog import load_model
from calipers.runs.descriptions import build_attack
from calipers.sources.datasets import load_dataset
from calipers.target.chance import drawn_from
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, ThreatModel, Untargeted


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return x, torch.tensor([one.label for one in examples])


def row_of(role: str, text: str = "") -> Row:
    return next(row for row in Randomization().rows() if row.role == role and text in row.what)


def test_there_are_29_patterns_whose_probabilities_sum_to_1() -> None:
    found = PATTERNS.patterns()
    assert Counter(pattern[0] for pattern, _ in found) == {28: 16, 29: 9, 30: 4}
    for size in (28, 29, 30):
        assert sum(chance for pattern, chance in found if pattern[0] == size) == pytest.approx(1 / 3)


def test_the_paper_s_own_sizes_have_12528_patterns() -> None:
    assert len(ResizeAndPad(299, 330, 331).patterns()) == 12_528


def test_each_row_is_resized_by_nearest_neighbours_and_put_in_its_place() -> None:
    x = torch.rand(5, 2, 28, 28)
    sizes = torch.tensor([28, 29, 30, 30, 28])
    tops, lefts = torch.tensor([0, 2, 1, 0, 3]), torch.tensor([3, 0, 0, 1, 1])
    found = resize_and_pad(x, sizes, tops, lefts, side=31, fill=0.5)
    for row in range(5):
        size, top, left = int(sizes[row]), int(tops[row]), int(lefts[row])
        naive = torch.full((2, 31, 31), 0.5)
        naive[:, top : top + size, left : left + size] = functional.interpolate(
            x[row : row + 1], size=(size, size), mode="nearest"
        )[0]
        assert torch.equal(found[row], naive)


def test_draws_follow_the_probabilities_and_rows_are_independent() -> None:
    x = torch.ones(6000, 1, 28, 28)
    with drawn_from(Draws(4, Role.TRAIN, (0,)), torch.device("cpu")):
        moved = PATTERNS(x, None)
    inside = moved[:, 0] == 1
    sizes = inside.any(2).sum(1)
    tops, lefts = inside.any(2).int().argmax(1), inside.any(1).int().argmax(1)
    seen = Counter(zip(sizes.tolist(), tops.tolist(), lefts.tolist(), strict=True))
    statistic = sum(
        (seen[pattern] - 6000 * chance) ** 2 / (6000 * chance) for pattern, chance in PATTERNS.patterns()
    )
    assert sum(seen[pattern] for pattern, _ in PATTERNS.patterns()) == 6000
    assert statistic < 70, "chi squared with 28 degrees of freedom exceeds 69 once in 30 000 times"


def test_grey_in_the_defense_is_grey_in_the_attack_s_patterns() -> None:
    net = build_classifier().eval()
    x = torch.rand(3, 1, 28, 28)
    layer = RandomizedClassifier(net, ResizeAndPad(only=((29, 2, 1),)))
    wanted = net(2 * ResizeAndPad(only=((29, 2, 1),)).members()[0].transform(x) - 1)
    assert torch.allclose(layer(2 * x - 1), wanted, atol=1e-5)


def test_the_exact_gradient_is_the_weighted_sum_over_patterns() -> None:
    x, y = images(2)
    bare = Randomization().target("undefended")
    draws = Draws(0, Role.SEARCH, (0, 1))
    exact = EOT(29, over=PATTERNS).estimate(bare, margin, x, y, Untargeted(), draws=draws).gradient
    wanted = torch.zeros_like(x)
    for (size, top, left), chance in PATTERNS.patterns():
        leaf = x.clone().requires_grad_(True)
        resized = functional.interpolate(leaf, size=(size, size), mode="nearest")
        rest = 31 - size
        moved = functional.pad(resized, (left, rest - left, top, rest - top), value=0.5)
        margin(bare.logits(moved), y, Untargeted()).sum().backward()
        wanted += chance * leaf.grad
    assert torch.allclose(exact, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_sampled_gradients_have_the_exact_one_as_their_mean() -> None:
    x, y = images(1)
    defense = Randomization()
    draws = Draws(0, Role.SEARCH, (0,))
    exact = EOT(29, over=PATTERNS).estimate(
        defense.target("undefended"), margin, x, y, Untargeted(), draws=draws
    )
    sampled = EOT(1500).estimate(defense.target(), margin, x, y, Untargeted(), draws=draws)
    apart = float((sampled.gradient - exact.gradient).norm() / exact.gradient.norm())
    assert apart < 0.1


def test_the_rate_of_the_judge_is_that_of_the_enumeration() -> None:
    x, y = images(40)
    defense = Randomization()
    noisy = (x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    chances = torch.tensor([chance for _, chance in PATTERNS.patterns()], dtype=torch.float64)
    wrong = (answers_by_pattern(defense.target("undefended"), noisy) != y).double()
    exact = chances @ wrong
    answers = Judge(draws=400).answers(defense.target(), noisy, Draws(0, Role.JUDGE, tuple(range(40))))
    found = (answers != y).double().mean(0)
    assert 0 < float(exact.mean()) < 1
    error = (exact * (1 - exact) / 400).sqrt()
    assert bool(((found - exact).abs() <= 5 * error + 1e-9).all())


def test_patterns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(30, 2, 0\) leaves"):
        ResizeAndPad(only=((30, 2, 0),))
    with pytest.raises(UsageError, match="28 to 32"):
        ResizeAndPad(28, 32, 31)


def test_rows_are_stored_and_rebuilt() -> None:
    for row in Randomization().rows():
        assert build_attack(repr(row.attack)) == row.attack
    text = EOT(29, over=PATTERNS).describe()
    assert "over=calipers.defenses.randomization:PATTERNS" in text, "the name that stored runs hold"
    assert parse_gradient(text) == EOT(29, over=PATTERNS)
    assert load_model("iclr2018:randomization").stochastic


def test_adaptive_beats_naive_and_the_clean_accuracy_stays() -> None:
    x, y = images(20)
    target = Randomization().target()
    found = {}
    for role, text in (("naive", "single pattern: FGSM"), ("adaptive", "")):
        row = row_of(role, text)
        attack = build_attack(repr(row.attack).replace("samples=30", "samples=10"))
        threat = ThreatModel(Norm.LINF, float(row.eps), Untargeted())
        found[role] = attack(target, x, y, threat, seed=0, judge=Judge(draws=20)).verdict
    assert float(found["adaptive"].wins.sum()) > float(found["naive"].wins.sum())
    assert float(found["adaptive"].wins.sum()) > 0.85 * 20 * len(x)
    assert float(found["naive"].flips.sum()) < 0.2 * 20 * len(x)


def test_training_writes_a_part_that_loads_and_is_left_alone_after(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.integers(0, 256, (6400, 1, 28, 28), dtype=np.uint8))
    y = torch.from_numpy(generator.integers(0, 10, 6400))
    told: list[str] = []
    defense = Randomization(weights=tmp_path)
    defense.train(x, y, tmp_path, share=0.02, tell=told.append)
    assert defense.target().predict(torch.rand(2, 1, 28, 28)).shape == (2,)
    defense.train(x, y, tmp_path, share=0.02, tell=told.append)
    assert told[-1].endswith("there already")
    assert f"weights={tmp_path}" in repr(defense.rows()[1].attack)
