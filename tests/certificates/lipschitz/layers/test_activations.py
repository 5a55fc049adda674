"""Slopes of activations: derived again to 40 digits, met by no chord, nearly attained, and the same in every form."""

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from drawn_layers import NORMS, Function, jacobian, operator_norm
from torch import Tensor, nn
from torch.nn import functional

from calipers.certificates.lipschitz.layers.activations import SLOPES
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.errors import NotLipschitz, UnknownLayer
from calipers.threat.threat_model import Norm

mp = mpmath.mp.clone()
mp.dps = 40

SMOOTH = {
    "gelu": (lambda x: x * mp.ncdf(x), (1.41, -1.41)),
    "gelu_tanh": (
        lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
        (1.42, -1.42),
    ),
    "silu": (lambda x: x / (1 + mp.exp(-x)), (2.4, -2.4)),
    "mish": (lambda x: x * mp.tanh(mp.log(1 + mp.exp(x))), (1.49, -2.26)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_extreme_slopes_of_smooth_activations_are_roots_found_with_40_digits(name: str) -> None:
    function, starts = SMOOTH[name]
    largest, least = (
        mp.diff(function, mp.findroot(lambda x: mp.diff(function, x, 2), start)) for start in starts
    )
    stated = SLOPES[name]
    assert stated[0] <= least <= stated[0] + 2e-15
    assert stated[1] - 2e-15 <= largest <= stated[1]


def test_the_other_constants_are_rounded_outward() -> None:
    scale = mp.mpf("1.0507009873554804934193349852946") * mp.mpf("1.6732632423543772848170429916717")
    assert scale <= SLOPES["selu"][1] <= scale + 2e-15
    assert mp.mpf(2) / mp.sqrt(mp.pi) <= SLOPES["erf"][1]
    assert mp.mpf(1) / 6 <= SLOPES["hardsigmoid"][1]


ACTIVATIONS: list[tuple[nn.Module, float]] = [
    (nn.ReLU(), 1.0),
    (nn.ReLU(inplace=True), 1.0),
    (nn.ReLU6(), 1.0),
    (nn.Tanh(), 1.0),
    (nn.Sigmoid(), 0.25),
    (nn.Softsign(), 1.0),
    (nn.Tanhshrink(), 1.0),
    (nn.LogSigmoid(), 1.0),
    (nn.Hardsigmoid(), 1 / 6),
    (nn.Hardswish(), 1.5),
    (nn.SiLU(), 1.0998393),
    (nn.Mish(), 1.0884982),
    (nn.SELU(), 1.7580993),
    (nn.GELU(), 1.1289041),
    (nn.GELU(approximate="tanh"), 1.1289931),
    (nn.LeakyReLU(0.2), 1.0),
    (nn.LeakyReLU(-3.0), 3.0),
    (nn.RReLU(0.1, 0.5), 1.0),
    (nn.RReLU(1.0, 2.0), 1.5),
    (nn.PReLU(init=0.3), 1.0),
    (nn.PReLU(3, init=-1.4), 1.4),
    (nn.ELU(), 1.0),
    (nn.ELU(2.5), 2.5),
    (nn.ELU(-0.5), 1.0),
    (nn.CELU(2.0), 1.0),
    (nn.Softplus(), 1.0),
    (nn.Softplus(beta=3.0), 1.0),
    (nn.Softshrink(0.3), 1.0),
    (nn.Threshold(0.5, 0.5), 1.0),
    (nn.Hardtanh(-0.3, 2.0), 1.0),
]


@pytest.mark.parametrize(("module", "constant"), ACTIVATIONS, ids=str)
def test_no_chord_is_steeper_than_the_bound_and_one_nearly_is(module: nn.Module, constant: float) -> None:
    upper = float(lipschitz_upper_bound(module.eval(), (3, 2)))
    assert constant * (1 - 1e-6) <= upper <= constant * (1 + 1e-6)
    x = torch.linspace(-30.0, 30.0, 600_001, dtype=torch.float64)
    with torch.no_grad():
        y = module.double()(x.clone().reshape(1, 1, -1).expand(1, 3, -1).clone())[0, 1]
    steepest = float((y.diff() / x.diff()).abs().max())
    assert steepest <= upper * (1 + 1e-9)
    assert steepest >= constant * (1 - 2e-4)


FORMS: list[tuple[str, Callable[[Tensor], Tensor], float]] = [
    ("F.relu", functional.relu, 1.0),
    ("torch.relu", torch.relu, 1.0),
    ("x.relu()", lambda x: x.relu(), 1.0),
    ("x.relu_()", lambda x: x.relu_(), 1.0),
    ("F.relu_", functional.relu_, 1.0),
    ("clamp", lambda x: x.clamp(min=0), 1.0),
    ("clamp_", lambda x: x.clamp_(-1, 1), 1.0),
    ("torch.clamp", lambda x: torch.clamp(x, 0.0, 2.0), 1.0),
    ("clamp_max", lambda x: x.clamp_max(1.0), 1.0),
    ("F.leaky_relu", lambda x: functional.leaky_relu(x, 2.0), 2.0),
    ("F.elu", lambda x: functional.elu(x, alpha=3.0), 3.0),
    ("F.gelu", functional.gelu, 1.12890),
    ("F.gelu tanh", lambda x: functional.gelu(x, approximate="tanh"), 1.12899),
    ("F.silu", functional.silu, 1.09984),
    ("F.mish", functional.mish, 1.08850),
    ("F.hardtanh", lambda x: functional.hardtanh(x, -2, 2), 1.0),
    ("F.softplus", lambda x: functional.softplus(x, 2.0), 1.0),
    ("F.softsign", functional.softsign, 1.0),
    ("torch.tanh", torch.tanh, 1.0),
    ("x.tanh()", lambda x: x.tanh(), 1.0),
    ("torch.sigmoid", torch.sigmoid, 0.25),
    ("x.sigmoid()", lambda x: x.sigmoid(), 0.25),
    ("abs", abs, 1.0),
    ("torch.abs", torch.abs, 1.0),
    ("torch.maximum", lambda x: torch.maximum(x, torch.zeros(1)), 1.0),
    ("torch.sin", torch.sin, 1.0),
    ("torch.erf", torch.erf, 1.12838),
    ("F.prelu", lambda x: functional.prelu(x, torch.tensor([-2.0])), 2.0),
    ("F.threshold", lambda x: functional.threshold(x, 0.0, 0.0), 1.0),
]


@pytest.mark.parametrize(("name", "function", "constant"), FORMS, ids=[form[0] for form in FORMS])
def test_functions_and_methods_have_the_bounds_of_the_modules(
    name: str, function: Callable[[Tensor], Tensor], constant: float
) -> None:
    upper = float(lipschitz_upper_bound(Function(function, name).eval(), (2, 3)))
    assert constant * (1 - 1e-5) <= upper <= constant * (1 + 1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_softmax_and_its_logarithm_bound_their_jacobians_and_meet_them_at_a_corner(
    norm: Norm, dim: int
) -> None:
    for kind in (nn.Softmax, nn.LogSoftmax):
        layer = kind(dim=dim).eval()
        upper = float(lipschitz_upper_bound(layer, (4, 3), norm))
        generator = torch.Generator().manual_seed(0)
        found = [
            operator_norm(jacobian(layer, scale * torch.randn((4, 3), generator=generator)), norm)
            for scale in (0.1, 1.0, 5.0, 40.0, 200.0)
        ]
        assert max(found) <= upper * (1 + 1e-12)
        even = torch.full((4, 3), -1e3)
        even[:2], even[:, :2] = 0.0, 0.0
        corner = torch.full((4, 3), 0.0)
        corner[0], corner[:, 0] = 60.0, 60.0
        met = max(operator_norm(jacobian(layer, point), norm) for point in (even, corner))
        assert met >= upper * (1 - 1e-6)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Hardshrink(), "jumps"),
        (nn.Threshold(0.5, 0.0), "jumps"),
        (nn.Softplus(threshold=1.0), "jumps"),
        (nn.CELU(-1.0), "slope"),
        (nn.GLU(1), "gates"),
        (Function(lambda x: x.exp()), "slope"),
        (Function(lambda x: x**2), "slope"),
        (Function(torch.sign), "jumps"),
        (Function(torch.round), "jumps"),
        (Function(lambda x: torch.where(x > 0, x, 0.1 * x)), "jumps"),
    ],
    ids=str,
)
def test_functions_that_jump_or_grow_too_steep_are_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(NotLipschitz, match=reason):
        lipschitz_upper_bound(module.eval(), (4, 2))


def test_a_softmax_over_the_batch_or_over_no_named_axis_is_refused() -> None:
    for module in (nn.Softmax(dim=0), Function(lambda x: functional.softmax(x, dim=-3))):
        with pytest.raises(UnknownLayer, match="batch axis"):
            lipschitz_upper_bound(module.eval(), (4, 2))


def test_a_leaky_slope_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UnknownLayer, match="finite"):
        lipschitz_upper_bound(nn.LeakyReLU(math.inf).eval(), (2,))
    with pytest.raises(UnknownLayer, match="finite"):
        lipschitz_upper_bound(nn.PReLU(init=np.nan).eval(), (2,))
