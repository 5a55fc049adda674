"""Local intrinsic dimension: the estimator, the regression, the rejection, the leak, and that it falls."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from calipers.attacks.judge import Judge
from calipers.defenses.base import Row
from calipers.defenses.lid import LocalIntrinsicDimension
from calipers.defenses.lid.defense import _normalized as normalized_for
from calipers.defenses.lid.detection import fit_logistic, roc
from calipers.defenses.lid.dimension import (
    ReferenceLID,
    layer_names,
    layer_outputs,
    local_intrinsic_dimension,
    minibatch_features,
)
from calipers.defenses.parts import bundled_network
from calipers.errors import UsageError
from calipers.gradients.estimator import Autograd
from calipers.randomness import Draws, Role
from calipers.runs.catalog import load_model
from calipers.runs.descriptions import build_attack
from calipers.sources.datasets import load_dataset
from calipers.threat.objectives import margin
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel, Untargeted


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return x, torch.tensor([one.label for one in examples])


NETWORK = bundled_network("fashion-cnn28-plain")


def _normalized(x: torch.Tensor) -> torch.Tensor:
    return normalized_for(NETWORK, x)


def row_of(role: str, text: str = "") -> Row:
    return next(row for row in LocalIntrinsicDimension().rows() if row.role == role and text in row.what)


def test_the_estimate_is_the_formula() -> None:
    distances = torch.tensor([[4.0, 1.0, 8.0, 2.0, 16.0], [3.0, 3.0, 3.0, 6.0, 9.0]])
    wanted = [-3 / (np.log(1 / 4) + np.log(2 / 4)), -4 / (3 * np.log(3 / 6))]
    assert float(local_intrinsic_dimension(distances[:1], neighbours=3)) == pytest.approx(wanted[0])
    assert float(local_intrinsic_dimension(distances[1:], neighbours=4)) == pytest.approx(wanted[1])
    skipped = -2 / np.log(2 / 4)
    assert float(local_intrinsic_dimension(distances[:1], neighbours=2, skip=1)) == pytest.approx(skipped)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_estimate_finds_the_dimension_of_a_flat_piece(dimension: int) -> None:
    generator = torch.Generator().manual_seed(dimension)
    cloud = torch.rand((4000, dimension), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn((40, dimension), generator=generator, dtype=torch.float64)).Q
    middle = 0.5 + 0.1 * torch.rand((50, dimension), generator=generator, dtype=torch.float64)
    found = local_intrinsic_dimension(torch.cdist(middle @ basis.T, cloud @ basis.T), neighbours=40).mean()
    assert float(found) == pytest.approx(dimension, rel=0.12)


def test_ties_and_references_at_no_distance_give_finite_estimates_and_gradients() -> None:
    distances = torch.tensor([[0.0, 0.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    found = local_intrinsic_dimension(distances, neighbours=3)
    found.sum().backward()
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(distances.grad).all())
    with pytest.raises(UsageError, match="5 of 4"):
        local_intrinsic_dimension(distances, neighbours=5)


def test_layers_are_those_of_the_network() -> None:
    net, (x, _) = NETWORK.net, images(2)
    outputs = layer_outputs(net, x)
    assert [output.shape[1] for output in outputs] == [784, 12544, 6272, 3136, 128, 10]
    assert torch.allclose(outputs[-1], net(x), atol=1e-5)


def test_the_reference_s_dimension_is_that_of_a_loop_over_minibatches() -> None:
    net, (x, _) = NETWORK.net, images(43)
    x, references = _normalized(x[:3]), _normalized(x[3:])
    found = ReferenceLID(net, references, neighbours=5, minibatch=20)(layer_outputs(net, x))
    naive = torch.zeros(3, len(layer_names(net)))
    known = [output.detach() for output in layer_outputs(net, references)]
    for column, output in enumerate(layer_outputs(net, x)):
        for row in range(3):
            each = []
            for start in (0, 20):
                apart = (
                    (known[column][start : start + 20] - output[row].detach()).norm(dim=1).sort().values[:5]
                )
                each.append(-5 / float((apart / apart[-1]).log().sum()))
            naive[row, column] = sum(each) / 2
    assert torch.allclose(found, naive, rtol=2e-3)


def test_the_leak_is_the_own_original_among_the_references() -> None:
    net, (x, _) = NETWORK.net, images(30)
    clean = _normalized(x)
    leaky = minibatch_features(net, clean, clean, leaky_reference=True, neighbours=5)
    honest = minibatch_features(net, clean, clean, leaky_reference=False, neighbours=5)
    assert torch.allclose(leaky, honest, rtol=1e-3), "of a clean image, itself is the nearest in every layer"
    far = _normalized((x + 0.3 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1))
    leaky = minibatch_features(net, clean, far, leaky_reference=True, neighbours=5)
    honest = minibatch_features(net, clean, far, leaky_reference=False, neighbours=5)
    assert not torch.allclose(leaky, honest, rtol=1e-3)
    others = torch.cat([clean[1:], clean[:0]])
    apart = torch.cdist(layer_outputs(net, far[:1])[4], layer_outputs(net, others)[4])
    alone = local_intrinsic_dimension(apart.detach(), neighbours=5)
    assert float(honest[0, 4]) == pytest.approx(float(alone), rel=1e-3)


def test_the_regression_is_where_its_gradient_vanishes() -> None:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn((300, 3), generator=generator) * torch.tensor([1.0, 10.0, 0.1]) + 4
    positive = features[:, 0] + 0.05 * features[:, 1] + 0.5 * torch.randn(300, generator=generator) > 4.2
    fitted = fit_logistic(features, positive, ridge=0.01)
    columns = (features.double() - fitted.mean) / fitted.spread
    weight = fitted.weight.double().requires_grad_(True)
    bias = fitted.bias.double().requires_grad_(True)
    loss = functional.binary_cross_entropy_with_logits(columns @ weight + bias, positive.double())
    (loss + 0.01 * weight.square().sum() / 2).backward()
    assert float(weight.grad.abs().max()) < 1e-5
    assert float(bias.grad.abs().max()) < 1e-5


def test_separable_data_do_not_break_the_fit() -> None:
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    fitted = fit_logistic(features, torch.tensor([False, False, True, True]))
    assert (fitted(features) > 0).tolist() == [False, False, True, True]


def test_the_curve_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    negatives = torch.randint(0, 8, (40,), generator=generator).double()
    positives = torch.randint(2, 10, (30,), generator=generator).double()
    found = roc(negatives, positives)
    pairs = positives[:, None] - negatives[None]
    assert found.area == pytest.approx(float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2))
    assert found.at(1.0) == 1
    for rate in (0.0, 0.1, 0.5):
        allowed = [cut for cut in range(-1, 11) if float((negatives > cut).double().mean()) <= rate]
        assert found.at(rate) == pytest.approx(float((positives > min(allowed)).double().mean()))
    with pytest.raises(UsageError, match="0 negatives"):
        roc(negatives[:0], positives)


def test_it_rejects_about_as_many_clean_images_as_it_was_calibrated_for() -> None:
    x, y = images(200)
    defense = LocalIntrinsicDimension()
    answers = defense.target().predict(x)
    alone = defense.target("undefended").predict(x)
    rejected = answers == ABSTAIN
    assert 0.01 <= float(rejected.float().mean()) <= 0.12
    assert torch.equal(answers[~rejected], alone[~rejected])
    assert float((answers == y).float().mean()) > float((alone == y).float().mean()) - 0.07


def test_the_gradient_goes_through_the_detector() -> None:
    x, y = images(2)
    target = LocalIntrinsicDimension().target()
    draws = Draws(0, Role.SEARCH, (0, 1))

    def rejection(logits: torch.Tensor, labels: torch.Tensor, goal: object) -> torch.Tensor:
        return logits[:, -1]

    found = Autograd().estimate(target, rejection, x, y, Untargeted(), draws=draws).gradient
    direction = found / found.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    step = 2e-3
    up, down = (target.logits(x + sign * step * direction)[:, -1] for sign in (1, -1))
    slope = (up - down) / (2 * step)
    assert torch.allclose(slope, found.flatten(1).norm(dim=1), rtol=0.1)
    classes = Autograd().estimate(target, margin, x, y, Untargeted(), draws=draws).gradient
    assert not torch.allclose(found, classes)


def test_the_detector_tells_examples_apart_and_the_leak_helps_it() -> None:
    x, y = images(100)
    defense = LocalIntrinsicDimension()
    row = row_of("naive", "BIM")
    threat = ThreatModel(Norm.LINF, 0.1, Untargeted())
    made = row.attack(defense.target("undefended"), x, y, threat, seed=0).adversarial
    areas = [
        defense.detection(x, made, reference=reference).area
        for reference in ("training", "minibatch", "leaky minibatch")
    ]
    assert areas[0] > 0.7
    assert areas[2] > areas[1] > 0.6


def test_rows_are_stored_and_rebuilt() -> None:
    for row in LocalIntrinsicDimension().rows():
        assert build_attack(repr(row.attack)) == row.attack
    assert load_model("iclr2018:lid").detector


def test_adaptive_beats_naive() -> None:
    x, y = images(20)
    target = LocalIntrinsicDimension().target()
    found = {}
    for role, text in (("naive", "FGSM"), ("adaptive", "")):
        row = row_of(role, text)
        attack = build_attack(repr(row.attack).replace("steps=50", "steps=20"))
        threat = ThreatModel(Norm.LINF, float(row.eps), Untargeted())
        verdict = attack(target, x, y, threat, seed=0, judge=Judge()).verdict
        found[role] = int(verdict.success.sum())
        assert bool((verdict.prediction[verdict.success] != ABSTAIN).all())
    assert found["adaptive"] > found["naive"]
    assert found["adaptive"] >= 16


@pytest.mark.slow
def test_training_writes_parts_that_load_and_are_left_alone_after(tmp_path: Path) -> None:
    x, y = images(1000)
    pool = torch.cat([torch.zeros(600, 1, 28, 28), x]).mul(255).round().byte()
    labels = torch.cat([torch.zeros(600, dtype=torch.int64), y])
    told: list[str] = []
    defense = LocalIntrinsicDimension(weights=tmp_path)
    defense.train(pool, labels, tmp_path, share=0.01, tell=told.append)
    assert defense.target().logits(x[:2]).shape == (2, 11)
    rejected = (defense.target().predict(x[200:300]) == ABSTAIN).float().mean()
    assert 0 < float(rejected) < 0.15
    defense.train(pool, labels, tmp_path, share=0.01, tell=told.append)
    assert told[-1].endswith("there already")
