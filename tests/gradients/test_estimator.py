"""Autograd finds the gradient that there is, and says so where there is none."""

import pytest
import torch
from torch import Tensor, nn

from calipers.errors import GradientsUnavailable
from calipers.gradients.estimator import Autograd, goal_of_rows, repeat_draws
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.testing.gradient_contract import GradientEstimatorContract
from calipers.testing.known_answers import half_space
from calipers.threat.objectives import cross_entropy, margin
from calipers.threat.threat_model import Targeted, Untargeted


class TestAutograd(GradientEstimatorContract):
    def make(self) -> Autograd:
        return Autograd()


def _draws(count: int) -> Draws:
    return Draws(0, Role.SEARCH, tuple(range(count)))


def test_the_margin_of_a_half_space_has_the_gradient_of_its_closed_form() -> None:
    """The scores are -s and s with s = (w x + b) / |w|, so the margin against class 1 is -2 s."""
    known = half_space([3.0, 4.0], -5.0)
    x = torch.tensor([[0.0, 0.0], [7.0, 1.0]])
    found = Autograd().estimate(known.target, margin, x, torch.tensor([1, 0]), Untargeted(), draws=_draws(2))
    assert torch.allclose(found.gradient, torch.tensor([[-1.2, -1.6], [1.2, 1.6]]))
    assert torch.allclose(found.value, torch.tensor([2.0, 8.0]))


class _Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy()[:, :2] * 2)


class _Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()[:, :2]


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        own = self.bias.detach().requires_grad_(torch.is_grad_enabled())
        return x.detach()[:, :2] + own * x.detach().abs().sum()


@pytest.mark.parametrize("net", [_Numpy(), _Detached(), _Unused()], ids=lambda net: type(net).__name__)
def test_a_network_without_a_gradient_is_an_error_that_names_the_views_that_work(net: nn.Module) -> None:
    target = Target(net.eval(), num_classes=2, input_shape=(3,), probe=False)
    with pytest.raises(GradientsUnavailable, match=r"bpda\(MODULE=identity\).*nes or spsa"):
        Autograd().estimate(
            target, cross_entropy, torch.rand(2, 3), torch.tensor([0, 1]), Untargeted(), draws=_draws(2)
        )


def test_another_error_of_the_network_is_left_alone() -> None:
    target = Target(nn.Linear(4, 2).eval(), num_classes=2, input_shape=(4,))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Autograd().estimate(
            target, margin, torch.rand(2, 3), torch.tensor([0, 1]), Untargeted(), draws=_draws(2)
        )


def test_a_network_that_starts_in_place_leaves_the_input_alone() -> None:
    net = nn.Sequential(nn.Hardtanh(-0.5, 0.5, inplace=True), nn.Linear(3, 2)).eval()
    target = Target(net, num_classes=2, input_shape=(3,), probe=False)
    x = torch.tensor([[2.0, 0.1, -3.0]])
    found = Autograd().estimate(target, margin, x, torch.tensor([0]), Untargeted(), draws=_draws(1))
    assert x.tolist() == [[2.0, pytest.approx(0.1), -3.0]]
    weight = target.module.net[1].weight
    assert torch.allclose(found.gradient[0], torch.tensor([0.0, float(weight[1, 1] - weight[0, 1]), 0.0]))


def test_half_precision_gives_scores_and_gradient_in_float32() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    x, y = torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    full, half = (
        Autograd().estimate(
            Target(net, num_classes=2, input_shape=(3,), precision=precision),
            margin,
            x,
            y,
            Untargeted(),
            draws=_draws(4),
        )
        for precision in ("fp32", "bf16")
    )
    assert half.gradient.dtype is half.logits.dtype is torch.float32
    assert torch.nn.functional.cosine_similarity(full.gradient, half.gradient).min() > 0.99


def test_a_gradient_that_is_no_number_is_passed_on_and_touches_no_other_input() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum(1).sqrt(), x.sum(1)], 1)

    target = Target(Root().eval(), num_classes=2, input_shape=(2,))
    x = torch.tensor([[0.0, 0.0], [0.5, 0.5]])
    found = Autograd().estimate(target, margin, x, torch.tensor([0, 0]), Untargeted(), draws=_draws(2))
    assert not torch.isfinite(found.gradient[0]).any()
    assert torch.allclose(found.gradient[1], torch.tensor([0.5, 0.5]))


def test_rows_of_a_goal_carry_their_classes() -> None:
    goal = Targeted((3, 1, 2), abstain="wrong")
    assert goal_of_rows(goal, [2, 0, 0]) == Targeted((2, 3, 3), abstain="wrong")
    assert goal_of_rows(Untargeted(), [2, 0]) == Untargeted()


def test_copies_of_an_input_have_draws_of_their_own() -> None:
    draws = Draws(5, Role.SEARCH, (7, 8))
    copied = repeat_draws(draws, [0, 1], 3)
    firsts = [float(torch.rand(1, generator=copied[row].generator(0))) for row in range(len(copied))]
    firsts += [float(torch.rand(1, generator=draws[row].generator(0))) for row in range(2)]
    assert len(set(firsts)) == 8
    alone = repeat_draws(Draws(5, Role.SEARCH, (8,)), [0], 3)
    assert alone.indices == copied.indices[3:]
