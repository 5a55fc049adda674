"""Cascade adversarial training: one-step and iterated examples, the loss of pairs, its rows, its training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from calipers.defenses.base import Row
from calipers.defenses.cascade import (
    MOST,
    Cascade,
    CascadeLoss,
    iterated,
    least_likely_step,
    sizes,
    stored_images,
)
from calipers.defenses.parts import small_network
from calipers.runs.descriptions import build_attack
from calipers.sources.datasets import load_dataset
from calipers.threat.threat_model import Norm, ThreatModel


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return small_network().eval()


def bytes_of(count: int) -> tuple[Tensor, Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return (255 * x).round().to(torch.uint8), torch.tensor([one.label for one in examples])


def row_of(role: str) -> Row:
    return next(row for row in Cascade().rows() if row.role == role)


def accuracy(row: Row, x: Tensor, y: Tensor) -> float:
    target = Cascade().target(row.variant)
    found = row.attack(target, x, y, ThreatModel(Norm(row.norm), float(row.eps)), seed=0, judge=row.judge)
    return float((~found.success).double().mean())


def test_sizes_are_the_absolute_values_of_a_normal_cut_at_the_largest() -> None:
    found = sizes(20_000, 0.3, torch.Generator().manual_seed(0), device=torch.device("cpu"))
    assert float(found.min()) >= 0
    assert float(found.max()) == pytest.approx(0.3)
    # P(|z| < 1) and P(|z| < 2) of a standard normal
    assert float((found < 0.15).double().mean()) == pytest.approx(0.6827, abs=0.02)
    assert float((found < 0.3 - 1e-6).double().mean()) == pytest.approx(0.9545, abs=0.01)


def test_a_step_goes_towards_the_least_likely_class_by_the_size_of_its_image() -> None:
    net = network(0)
    x = bytes_of(4)[0].float() / 255
    eps = torch.tensor([0.0, 0.001, 0.01, 0.1])
    found = least_likely_step(net, x, eps)
    for row in range(4):
        leaf = x[row : row + 1].clone().requires_grad_(True)
        least = net(leaf).argmin(1)
        (gradient,) = torch.autograd.grad(net(leaf).log_softmax(1)[0, least].sum(), leaf)
        wanted = (x[row : row + 1] + eps[row] * gradient.sign()).clamp(0, 1)
        assert torch.allclose(found[row : row + 1], wanted, atol=1e-6)
    before, after = net(x).log_softmax(1), net(found).log_softmax(1)
    least = net(x).argmin(1)[:, None]
    assert bool((after.gather(1, least) > before.gather(1, least))[1:3].all())


def test_iterated_steps_are_those_of_a_loop_over_images() -> None:
    net = network(1)
    images, labels = bytes_of(5)
    eps = torch.tensor([0, 1, 2, 9, 20])
    found = iterated(net, images, labels, eps)
    for row in range(5):
        e = int(eps[row])
        point = images[row : row + 1].double()
        for _ in range(int(min(4 + e, 1.25 * e))):
            leaf = (point.float() / 255).requires_grad_(True)
            loss = functional.cross_entropy(net(leaf), labels[row : row + 1])
            (gradient,) = torch.autograd.grad(loss, leaf)
            point = (point + gradient.sign()).clamp(images[row].double() - e, images[row].double() + e)
            point = point.clamp(0, 255)
        moved = (found[row].double() - images[row].double()).abs()
        assert float(moved.max()) == e
        # the order of sums differs between one image and many, and the sign of a gradient near 0 with it
        assert float((found[row].double() != point[0]).double().mean()) < 0.02


def test_stored_images_stay_within_the_largest_size_and_leave_the_network_trainable() -> None:
    net = network(2)
    images, labels = bytes_of(12)
    found = stored_images(net, images, labels, 0.1)
    assert found.dtype == torch.uint8
    moved = (found.int() - images.int()).abs().flatten(1).amax(1)
    assert 0 < int(moved.max()) <= 26
    assert len(set(moved.tolist())) > 3
    assert all(weight.requires_grad for weight in net.parameters())


def test_the_loss_is_that_of_the_formula_by_hand() -> None:
    net = network(3)
    images, labels = bytes_of(6)
    pairs = torch.cat([images, 255 - images], 1).float() / 255
    found = CascadeLoss(most=0.0, weight=0.25, pull=0.5)(net, pairs, labels, torch.Generator().manual_seed(0))
    clean, stored = pairs[:, :1], pairs[:, 1:]
    # steps of size 0 stay where they are; the first half of the adversarial images is the stored ones
    beside = torch.cat([stored[:3], clean[3:]])
    assert isinstance(net, nn.Sequential)
    here, there = net[:-1](clean), net[:-1](beside)
    wanted = (
        functional.cross_entropy(net[-1](here), labels, reduction="sum")
        + 0.25 * functional.cross_entropy(net[-1](there), labels, reduction="sum")
    ) / (6 * 1.25) + 0.5 * (there - here).square().sum() / (2 * 6)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=2e-2)  # products in bfloat16


def test_the_pull_moves_the_adversarial_embedding_and_not_the_clean_one() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            out = self.scale * x.flatten(1)
            if out.requires_grad:
                out.retain_grad()
            self.seen.append(out)
            return out

    layer = Layer()
    net = nn.Sequential(layer, nn.Linear(784, 10))
    assert isinstance(net[1], nn.Linear)
    nn.init.zeros_(net[1].weight)
    images, labels = bytes_of(4)
    pairs = torch.cat([images, 255 - images], 1).float() / 255
    loss = CascadeLoss(most=0.0, pull=1.0)(net, pairs, labels, torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = layer.seen[-1].grad
    assert gradient is not None
    assert not gradient[:4].any()
    assert gradient[4:6].any()


def test_every_row_can_be_stored_and_rebuilt() -> None:
    for row in Cascade().rows():
        assert build_attack(repr(row.attack)) == row.attack


def test_the_adaptive_attack_takes_little_more_than_the_naive_one() -> None:
    images, y = bytes_of(12)
    x = images.float() / 255
    naive, adaptive = accuracy(row_of("naive"), x, y), accuracy(row_of("adaptive"), x, y)
    assert accuracy(row_of("undefended"), x, y) < adaptive <= naive <= adaptive + 0.1


def test_one_step_finds_less_than_many() -> None:
    images, y = bytes_of(40)
    x = images.float() / 255
    assert accuracy(row_of("ablation"), x, y) > accuracy(row_of("naive"), x, y)


def test_a_tiny_training_writes_files_that_load(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (300,), generator=generator)
    said: list[str] = []
    Cascade(tmp_path).train(x, y, tmp_path, share=0.01, tell=said.append)
    for variant in ("", "undefended"):
        assert Cascade(tmp_path).target(variant).logits(x[:2].float() / 255).shape == (2, 10)
    assert [words.partition(":")[0] for words in said if "storing" in words] == ["cascade-first"]
    count = len(said)
    Cascade(tmp_path).train(x, y, tmp_path, share=0.01, tell=said.append)
    assert len(said) == count
    assert CascadeLoss().most == MOST
