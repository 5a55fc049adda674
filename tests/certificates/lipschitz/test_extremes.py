"""Extremes: tiny and huge weights, steep settings and networks that keep a state, each bounded rightly or refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calipers.certificates.lipschitz.certifier import scores_in_float64
from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.floors import operator_floor
from calipers.certificates.lipschitz.matrices import matrix_norm
from calipers.certificates.lipschitz.merging import compose
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.certificates.lipschitz.operators import Convolved, Dense, Monomial
from calipers.certificates.lipschitz.sandwich import sampled_lower_bound
from calipers.certificates.lipschitz.spectral import convolution_norm
from calipers.errors import Unsound
from calipers.target import Target
from calipers.threat.threat_model import Norm

NORMS = [Norm.L1, Norm.L2, Norm.LINF]


class _Function(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def _diagonal(value: float, *, bias: float = 0.0, side: int = 2) -> nn.Linear:
    layer = nn.Linear(side, side).double()
    layer.weight.data = value * torch.eye(side, dtype=torch.float64)
    layer.bias.data.fill_(bias)
    return layer


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-170, 1e-300])
def test_tiny_multiples_of_moved_features_do_not_vanish(scale: float, norm: Norm) -> None:
    net = _Function(lambda x: x[:, [1, 0]] * scale).eval()
    assert scale <= lipschitz_upper_bound(net, (2,), norm).upper <= scale * (1 + 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_chain_whose_products_underflow_is_bounded_link_by_link(norm: Norm) -> None:
    net = nn.Sequential(*(_diagonal(value) for value in (1e-200, 1e-200, 1e200, 1e200))).eval()
    found = lipschitz_upper_bound(net, (2,), norm).upper
    assert Fraction(found) >= Fraction(1e-200) ** 2 * Fraction(1e200) ** 2
    constants = lipschitz_upper_bound(net, (2,), norm).differences
    assert all(table[0, 1] > 0.9 for table in constants.values())


def test_maps_whose_product_may_underflow_stay_apart() -> None:
    tiny = np.full((2, 2), 1e-200)
    kernel = np.full((2, 2, 1), 1e-200)
    scaling = Monomial((2,), None, np.full(2, 1e-200))
    convolved = Convolved(Convolution(kernel, (1,), (1,), ((0, 0),)), (3,))
    wide = Monomial((2, 3), None, np.full((2, 1), 1e-200))
    assert compose(Dense(tiny, True), Dense(tiny, True)) is None
    assert compose(scaling, scaling) is None
    assert compose(scaling, Dense(tiny, True)) is None
    assert compose(Dense(tiny, True), scaling) is None
    assert compose(wide, convolved) is None
    assert compose(convolved, wide) is None


def test_a_norm_that_is_no_normal_number_is_rounded_up() -> None:
    least = math.ulp(0.0)
    assert matrix_norm(np.full((2, 1), least), Norm.L2) >= 2 * least
    kernel = Convolution(np.full((2, 1, 1), least), (1,), (1,), ((0, 0),))
    for size in (None, (4,)):
        assert convolution_norm(kernel, Norm.L2, size=size).value >= 2 * least


def test_the_largest_weights_have_a_norm() -> None:
    assert matrix_norm(np.array([[1.5e308, 0.0]]), Norm.L2) == pytest.approx(1.5e308)


def test_a_scale_below_normal_numbers_is_refused() -> None:
    layer = nn.BatchNorm1d(2).double().eval()
    layer.weight.data.fill_(1e-310)
    with pytest.raises(Unsound, match="least normal"):
        lipschitz_upper_bound(layer, (2,))
    with pytest.raises(Unsound, match="too large"):
        lipschitz_upper_bound(_Function(lambda x: x / 1.7e308).eval(), (2,))


def test_a_softplus_that_jumps_by_its_small_beta_is_refused() -> None:
    # 2e10 is where torch turns linear: the sum falls from 2.06 to 0 there
    net = (
        nn.Sequential(_diagonal(1.0, bias=2e10 - 0.5, side=1), nn.Softplus(beta=1e-9))
        .eval()
        .requires_grad_(False)
    )
    around = net(torch.tensor([[0.4999], [0.5001]], dtype=torch.float64)).flatten()
    assert float(around[0] - around[1]) > 2.0
    with pytest.raises(Unsound, match="it jumps"):
        lipschitz_upper_bound(net, (1,))
    quiet = nn.Softplus(beta=1e-9, threshold=40.0).eval()
    assert lipschitz_upper_bound(quiet, (1,)).upper == 1.0


def test_a_replaced_call_is_refused() -> None:
    net = _diagonal(1.0).eval()
    net._compiled_call_impl = lambda x: 100 * x
    assert float(net(torch.ones(1, 2)).max()) == 100.0
    with pytest.raises(Unsound, match="compiled"):
        lipschitz_upper_bound(net, (2,))


def test_another_network_where_gradients_are_enabled_is_refused() -> None:
    net = _Function(lambda x: 5 * x if torch.is_grad_enabled() else x).eval()
    with pytest.raises(Unsound, match="answers otherwise"):
        lipschitz_upper_bound(net, (2,))


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.features = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.features = x.shape[1]
        return x

    def counted(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls < 50 else 100 * x


class _Warm(_Counting):
    def forward(self, x: Tensor) -> Tensor:
        return self.counted(x)


def test_a_network_that_counts_its_calls_is_refused() -> None:
    with pytest.raises(Unsound, match="counts its calls"):
        lipschitz_upper_bound(_Warm().eval(), (2,))
    assert lipschitz_upper_bound(_Counting().eval(), (2,)).upper == 1.0


def test_what_merging_may_have_added_is_no_part_of_a_floor() -> None:
    noise = Dense(np.full((2, 2), 1e-17), True, slack=1e-16)
    assert operator_floor(noise, Norm.L2) == 0.0
    assert noise.norm(Norm.L2).value >= 1e-16


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1000.0).float(),
        lambda x: (x + 1000.0).to(torch.float32),
        lambda x: (x + 1000.0).type_as(torch.ones(1)),
        lambda x: torch.cat([(x + 1000.0).sum(1, keepdim=True, dtype=torch.float32) / 2, x[:, :0]], 1),
    ],
)
def test_the_rounding_of_float32_is_no_slope(function: object) -> None:
    net = _Function(function).eval()
    assert 0.99 < sampled_lower_bound(net, (4,)) <= 1.0


def test_rounding_inside_of_a_network_is_no_slope() -> None:
    net = _Function(lambda x: (x + 1e10) - 1e10)
    assert 0.99 < sampled_lower_bound(net, (4,)) <= 1.0


def test_a_network_that_works_in_place_has_a_lower_bound() -> None:
    net = _Function(lambda x: x.relu_().mul_(2.0)).eval()
    assert sampled_lower_bound(net, (3,)) == pytest.approx(2.0)
    assert 2.0 <= lipschitz_upper_bound(net, (3,)).upper < 2.0 + 1e-12


def test_scores_are_not_rounded_by_a_format_named_inside() -> None:
    x = torch.rand((5, 4), generator=torch.Generator().manual_seed(0))
    weight = 1000.0 * torch.arange(4)
    net = _Function(lambda x: x + weight * x.mean(1, True, dtype=torch.float32))
    target = Target(net.eval(), num_classes=4, input_shape=(4,))
    exact = x.double() + weight * x.double().mean(1, keepdim=True)
    torch.testing.assert_close(scores_in_float64(target)(x.double()), exact, rtol=0, atol=1e-10)
