"""Reattached: the gradient of what a module computes, where it takes itself out of the graph."""

import pytest
import torch
from torch import Tensor, nn

from calipers.gradients.bpda import BPDA
from calipers.gradients.reattached import Reattached
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.threat.threat_model import Untargeted


class _Cut(nn.Module):
    """Three times its input, taken out of the graph in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detach":
            return 3 * x.detach()
        if self.how == "data":
            return 3 * x.data
        with torch.no_grad():
            return 3 * x


class _Descent(nn.Module):
    """The point that steps down (z - x)² / 2 + z² / 2 reach from 0: smooth in x, and outside any graph."""

    rate, steps = 0.1, 7

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(self.steps):
            z = z.detach().requires_grad_(True)
            with torch.enable_grad():
                loss = ((z - x.detach()).square() + z.square()).sum() / 2
                (slope,) = torch.autograd.grad(loss, z)
            z = z - self.rate * slope
        return z.detach()


class _Noisy(nn.Module):
    """Scales its input by draws of its own, and hides that."""

    def forward(self, x: Tensor) -> Tensor:
        return (torch.rand_like(x) + 1) * x.detach()


@pytest.mark.parametrize("how", ["detach", "data", "no_grad"])
def test_what_was_cut_is_joined_again(how: str) -> None:
    x = torch.rand(2, 3, requires_grad=True)
    assert not _Cut(how)(x).requires_grad
    (slope,) = torch.autograd.grad(Reattached(_Cut(how))(x).sum(), x)
    assert torch.equal(slope, torch.full_like(x, 3.0))


def test_an_inner_descent_is_unrolled() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    found = Reattached(_Descent())(x)
    assert torch.equal(found, _Descent()(x))
    (slope,) = torch.autograd.grad(found.sum(), x)
    # z_k = x (1 - (1 - 2 rate)^k) / 2
    expected = (1 - (1 - 2 * _Descent.rate) ** _Descent.steps) / 2
    assert torch.allclose(slope, torch.full_like(x, expected), atol=1e-6)


def test_rounding_stays_without_a_gradient() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().round()

    x = torch.rand(2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(Reattached(Rounded())(x).sum(), x)
    assert not bool(slope.any())


def test_a_stand_in_draws_what_the_module_drew() -> None:
    """Through BPDA, the derivative of the very draw that gave the scores; and the draws behind it are not moved."""
    net = nn.Sequential(_Noisy(), nn.Flatten(), _Plus())
    target = Target(net.eval(), num_classes=3, input_shape=(1, 1, 3), stochastic=True)
    x, y = torch.rand(4, 1, 1, 3) + 0.1, torch.zeros(4, dtype=torch.int64)
    draws = Draws(0, Role.ESTIMATE, (0, 1, 2, 3))
    view = BPDA({"0": Reattached(net[0])})
    found = view.estimate(target, _first, x.clamp(0, 1), y, Untargeted(), draws=draws)
    plain = target.logits(x.clamp(0, 1), draws=draws)
    assert torch.equal(found.logits, plain)
    # the first score is (draw + 1) x + noise, so its slope in x tells the draw; the noise is behind it
    slope = found.gradient.flatten(1)[:, 0]
    assert bool((slope > 1).all()) and bool((slope < 2).all())
    rest = plain[:, 0] - slope * x.clamp(0, 1).flatten(1)[:, 0]
    assert bool((rest >= -1e-6).all()) and bool((rest <= 0.1 + 1e-6).all())


class _Plus(nn.Module):
    """Adds draws that are small."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.rand_like(x)


def _first(logits: Tensor, y: Tensor, goal: object) -> Tensor:
    return logits[:, 0]
