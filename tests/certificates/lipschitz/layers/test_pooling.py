"""Pools: the formulas of the theory page, and settings that are refused."""

import math

import pytest
import torch
from drawn_layers import Function
from torch import Tensor, nn
from torch.nn import functional

from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.errors import NotLipschitz, UnknownLayer
from calipers.threat.threat_model import Norm


def covering(kernel: int, stride: int, dilation: int) -> float:
    return math.sqrt(math.ceil(kernel * math.gcd(dilation, stride) / stride))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_max_pool_has_the_constant_of_the_formula_where_the_input_is_large(
    kernel: int, stride: int, dilation: int
) -> None:
    pool = nn.MaxPool2d(kernel, stride, dilation=dilation).eval()
    expected = covering(kernel, stride, dilation) ** 2
    upper = float(lipschitz_upper_bound(pool, (1, 40, 40)))
    assert upper == pytest.approx(expected, rel=1e-12)


def test_a_dilated_pool_of_two_is_twice_as_steep_as_it_looks() -> None:
    pool = nn.MaxPool2d(2, 2, dilation=2).eval()
    assert float(lipschitz_upper_bound(pool, (1, 8, 8))) == 2.0
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[0, 0, 4, 4] = 1.0
    assert float(pool(x).norm() / x.norm()) == 2.0


def test_a_max_pool_never_stretches_the_largest_change() -> None:
    assert float(lipschitz_upper_bound(nn.MaxPool2d(3, 1).eval(), (1, 9, 9), Norm.LINF)) == 1.0
    assert float(lipschitz_upper_bound(nn.MaxPool2d(3, 1).eval(), (1, 9, 9), Norm.L1)) == 9.0


@pytest.mark.parametrize("side", [2, 3, 4])
def test_an_average_over_separate_windows_has_the_constant_one_over_k(side: int) -> None:
    upper = float(lipschitz_upper_bound(nn.AvgPool2d(side).eval(), (2, 12, 12)))
    assert 1 / side <= upper <= 1 / side * (1 + 1e-12)


def test_a_global_average_over_m_positions_has_the_constant_one_over_root_m_in_each_form() -> None:
    forms = [
        nn.AdaptiveAvgPool2d(1),
        nn.AvgPool2d((4, 6)),
        Function(lambda x: x.mean((2, 3))),
        Function(lambda x: torch.mean(x, dim=[-2, -1], keepdim=True)),
        Function(lambda x: functional.adaptive_avg_pool2d(x, (1, 1))),
        Function(lambda x: functional.avg_pool2d(x, (4, 6))),
    ]
    for form in forms:
        upper = float(lipschitz_upper_bound(form.eval(), (3, 4, 6)))
        assert 1 / math.sqrt(24) <= upper <= 1 / math.sqrt(24) * (1 + 1e-12)


def test_functions_take_their_settings_by_place_and_by_name() -> None:
    forms = [
        nn.MaxPool2d(3, 2, 1),
        Function(lambda x: functional.max_pool2d(x, 3, 2, 1)),
        Function(lambda x: functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)),
        Function(lambda x: torch.max_pool2d(x, 3, 2, 1)),
    ]
    assert {float(lipschitz_upper_bound(form.eval(), (2, 9, 9))) for form in forms} == {2.0}


def test_indices_of_a_pool_a_sort_or_a_maximum_may_not_be_used() -> None:
    with pytest.raises(UnknownLayer, match="indices"):
        lipschitz_upper_bound(nn.MaxPool2d(2, return_indices=True).eval(), (1, 4, 4))
    for function in (lambda x: x.sort(1)[1].float(), lambda x: torch.max(x, 1).indices * 1.0):
        with pytest.raises(NotLipschitz, match="jump"):
            lipschitz_upper_bound(Function(function).eval(), (4, 4))


def test_a_window_of_padding_alone_is_refused() -> None:
    with pytest.raises(UnknownLayer, match="padding alone"):
        lipschitz_upper_bound(nn.MaxPool1d(2, 1, padding=1, dilation=2).eval(), (1, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean(),
        lambda x: x.mean(0, keepdim=True) + x,
        lambda x: x.sum((0, 1)),
        lambda x: x.sort(0)[0],
        lambda x: x.amax(),
    ],
)
def test_what_reduces_or_sorts_the_batch_is_refused(function: object) -> None:
    with pytest.raises(UnknownLayer, match="batch axis"):
        lipschitz_upper_bound(Function(function).eval(), (3, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("module", [nn.LPPool2d(2, 2), nn.FractionalMaxPool2d(2, output_size=2)])
def test_pools_without_a_rule_are_refused(module: nn.Module) -> None:
    with pytest.raises(UnknownLayer, match="no Lipschitz bound is known"):
        lipschitz_upper_bound(module.eval(), (2, 4, 4))


def test_features_without_a_channel_axis_are_refused() -> None:
    """Torch would take the batch for channels."""
    for module in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        with pytest.raises(UnknownLayer, match="channels"):
            lipschitz_upper_bound(module.eval(), (4, 4))


def test_two_thirds_of_an_average_are_no_average() -> None:
    """A pool whose divisor is given is scaled by it."""
    upper = float(lipschitz_upper_bound(nn.AvgPool2d(2, divisor_override=1).eval(), (1, 4, 4)))
    assert 2.0 <= upper <= 2.0 * (1 + 1e-12)


def test_a_maximum_of_halves_is_no_steeper_than_its_input() -> None:
    def function(x: Tensor) -> Tensor:
        a, b = x.split(2, 1)
        return torch.max(a, b)

    assert float(lipschitz_upper_bound(Function(function).eval(), (4, 3))) == 1.0
