"""The losses against their definitions, written naively."""

import math

import pytest
import torch
from torch.nn import functional

from calipers.training.losses import margin_loss, noise_loss


def _logits(draws: int) -> torch.Tensor:
    return torch.randn(draws, 5, 4, generator=torch.Generator().manual_seed(draws), dtype=torch.float32)


LABELS = torch.tensor([0, 3, 1, 1, 2])


@pytest.mark.parametrize("draws", [2, 3])
def test_the_loss_is_the_sum_of_the_paper(draws: int) -> None:
    logits = _logits(draws)
    consistency, entropy, total = 7.0, 0.25, 0.0
    for column, label in enumerate(LABELS.tolist()):
        each = [torch.softmax(logits[i, column].double(), dim=0).tolist() for i in range(draws)]
        mean = [sum(p[c] for p in each) / draws for c in range(4)]
        for p in each:
            total += -math.log(p[label]) / draws
            total += consistency * sum(q * math.log(q / r) for q, r in zip(mean, p, strict=True)) / draws
        total += entropy * -sum(q * math.log(q) for q in mean)
    loss = noise_loss(logits, LABELS, consistency=consistency, entropy=entropy)
    assert loss.item() == pytest.approx(total / 5, rel=1e-5)


def test_without_consistency_it_is_the_mean_cross_entropy_whatever_the_entropy_weight() -> None:
    logits = _logits(3)
    naive = sum(functional.cross_entropy(logits[i], LABELS).item() for i in range(3)) / 3
    assert noise_loss(logits, LABELS, consistency=0.0, entropy=0.5).item() == pytest.approx(naive, rel=1e-6)


def test_copies_that_agree_cost_no_divergence() -> None:
    one = _logits(1)
    same = one.expand(4, 5, 4)
    with_it = noise_loss(same, LABELS, consistency=100.0, entropy=0.0).item()
    assert with_it == pytest.approx(functional.cross_entropy(one[0], LABELS).item(), rel=1e-5)


def test_a_certain_prediction_gives_a_finite_loss_and_gradient() -> None:
    logits = (_logits(2) * 1e4).requires_grad_()
    loss = noise_loss(logits, LABELS, consistency=20.0, entropy=0.5)
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_loss_lowers_the_true_logit_by_what_the_margin_is_worth() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 0.5, 3.0]])
    labels = torch.tensor([0, 1])
    lowered = logits.double() - torch.tensor([[math.sqrt(2) * 0.3, 0, 0], [0, math.sqrt(2) * 0.3, 0]])
    powers = (4 * lowered).exp()
    expected = -(powers[[0, 1], labels] / powers.sum(1)).log().mean()
    assert margin_loss(logits, labels, margin=0.3, temperature=4.0).item() == pytest.approx(expected.item())
