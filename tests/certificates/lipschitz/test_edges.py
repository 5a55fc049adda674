"""Edges where a bound was once of another network than the scores: each is bounded rightly now, or refused."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from calipers.certificates.lipschitz.certifier import LipschitzCertifier, bounds_of, scores_in_float64
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.errors import Unsound
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel


class _Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def _linear(inputs: int = 4, outputs: int = 3) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    layer.weight.data = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    layer.bias.data.zero_()
    return layer


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
@pytest.mark.parametrize(
    ("function", "exact"),
    [(lambda x: 0.7 * x, 0.7), (lambda x: x / 1e-3, 1000.0), (lambda x: x + x * 0.7, 1.7)],
)
def test_numbers_of_python_are_read_as_they_are(function: object, exact: float, norm: Norm) -> None:
    found = float(lipschitz_upper_bound(_Function(function).eval(), (4,), norm))
    assert found >= exact
    assert found == pytest.approx(exact, rel=1e-12)


def test_a_difference_of_nearly_equal_multiples_is_not_lost() -> None:
    net = _Function(lambda x: (x - x * (1 - 2e-4)) * 1e4).double().eval()
    assert float(lipschitz_upper_bound(net, (4,))) >= 1.999999


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
def test_a_number_format_given_by_position_is_seen(function: object, half: torch.dtype) -> None:
    net = _Function(lambda x: function(x, 1, half)).eval()  # type: ignore[operator]
    with pytest.raises(Unsound, match="casts to"):
        lipschitz_upper_bound(net, (4,))


class _Rounded(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + 3e7) - 3e7


def test_scores_are_of_the_weights_that_are_deployed() -> None:
    layer = _linear()
    layer.weight.data *= 2
    parametrize.register_parametrization(layer, "weight", _Rounded())
    target = Target(nn.Sequential(layer).eval(), num_classes=3, input_shape=(4,))
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    wide = scores_in_float64(target)(x.double())
    assert torch.equal(layer.weight, layer.weight.round())
    assert torch.allclose(wide, x.double() @ layer.weight.double().T, rtol=1e-12)


def test_a_cast_inside_the_network_does_not_round_the_scores() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = _linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.float()).to(torch.float32)

    target = Target(Cast().eval(), num_classes=3, input_shape=(4,))
    x = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = x @ target.module.net.linear.weight.double().T
    assert torch.allclose(scores_in_float64(target)(x), exact, rtol=1e-13)


def _masked(function: object) -> nn.Module:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = _linear()
            self.register_buffer("mask", torch.tensor([0.0, 0.0, -1e10]))

        def forward(self, x: Tensor) -> Tensor:
            return function(self.linear(x), x) + self.mask  # type: ignore[operator]

    return Masked().eval()


@pytest.mark.parametrize(
    "function",
    [
        lambda h, x: h * x.shape[0],
        lambda h, x: h * (1 + torch.rand(1)),
    ],
)
def test_a_masked_class_does_not_hide_that_the_graph_is_another(function: object) -> None:
    with pytest.raises(Unsound, match="answers otherwise"):
        lipschitz_upper_bound(_masked(function), (4,))


def test_a_branch_that_a_stand_in_does_not_take_is_seen_at_plain_inputs() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = _linear()

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            if isinstance(x, torch.Tensor):
                h = h + torch.relu(x.mean() - 0.9) * 200 * h
            return h

    with pytest.raises(Unsound):
        lipschitz_upper_bound(Branch().eval(), (4,))


def test_a_network_that_counts_its_batch_is_refused_before_any_certificate() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = _linear()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * (1 + torch.relu(x.new_ones(x.shape[0]).sum() - 50))

    target = Target(Counts().eval(), num_classes=3, input_shape=(4,))
    with pytest.raises(Unsound, match="in a batch of 100"):
        LipschitzCertifier()(target, torch.rand(2, 4), ThreatModel(Norm.L2), seed=0)


def test_a_bound_is_not_kept_when_the_weights_change() -> None:
    target = Target(nn.Sequential(_linear()).eval(), num_classes=3, input_shape=(4,))
    before = float(bounds_of(target, Norm.L2, "auto"))
    target.module.net[0].weight.data.mul_(10)
    assert float(bounds_of(target, Norm.L2, "auto")) == pytest.approx(10 * before)
    assert math.isfinite(before)
