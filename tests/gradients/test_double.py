"""Double: autograd's gradient where float32 suffices, and a gradient where float32 rounds it to 0."""

import pytest
import torch
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.gradients.double import Double
from calipers.gradients.estimator import Autograd, GradientEstimator
from calipers.gradients.finite_differences import NES
from calipers.gradients.text import parse_gradient
from calipers.randomness import Draws, Role
from calipers.runs.descriptions import build
from calipers.target import Target
from calipers.testing.gradient_contract import GradientEstimatorContract
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Untargeted


class TestDouble(GradientEstimatorContract):
    def make(self) -> GradientEstimator:
        return Double()


class Sure(nn.Module):
    """A softmax that is sure: the other class has a probability of about e^-200."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (400 * self.last(x)).softmax(1)


def _gradient(estimator: GradientEstimator, target: Target) -> Tensor:
    x, y = torch.tensor([[0.75, 0.25]]), torch.tensor([0])
    draws = Draws(0, Role.SEARCH, (0,))
    return estimator.estimate(target, margin, x, y, Untargeted(), draws=draws).gradient


def test_a_gradient_that_float32_rounds_to_0_is_there() -> None:
    target = Target(Sure().eval(), num_classes=2, input_shape=(2,), probe=False)
    assert bool((_gradient(Autograd(), target) == 0).all())
    assert float(_gradient(Double(), target)[0, 1]) > 0


def test_the_network_is_left_as_it_was() -> None:
    target = Target(Sure().eval(), num_classes=2, input_shape=(2,), probe=False)
    before = {
        name: (value, value.clone()) for name, value in target.module.state_dict(keep_vars=True).items()
    }
    _gradient(Double(), target)
    after = target.module.state_dict(keep_vars=True)
    assert all(after[name] is kept and torch.equal(kept, value) for name, (kept, value) in before.items())
    assert target.logits(torch.tensor([[0.75, 0.25]])).dtype is torch.float32


def test_it_is_written_and_read() -> None:
    assert parse_gradient("double").describe() == "double"
    assert parse_gradient("double bpda(post=identity)").describe() == "double bpda(post=identity)"
    assert build(repr(Double())) == Double()


def test_differences_of_scores_are_refused() -> None:
    with pytest.raises(UsageError, match="leave one out"):
        Double(NES(10, sigma=0.1))
