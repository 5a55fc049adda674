"""Merging of linear maps: the composition and the sum are those of the matrices, for every pair that merges."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from drawn_layers import NORMS, Function, jacobian, operator_norm
from torch import Tensor, nn
from torch.nn import functional

from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.merging import add, compose
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.certificates.lipschitz.operators import Convolved, Dense, Monomial, Operator
from calipers.threat.threat_model import Norm

SHAPE = (4, 3, 2)
COUNT = math.prod(SHAPE)


def matrix(operator: Operator, inputs: int) -> np.ndarray:
    """Write a map as a matrix on the flattened features."""
    match operator:
        case Monomial():
            index = np.arange(math.prod(operator.shape)) if operator.index is None else operator.index.ravel()
            factors = np.broadcast_to(
                1.0 if operator.factors is None else operator.factors, operator.shape
            ).ravel()
            found = np.zeros((len(index), inputs))
            rows = np.flatnonzero(index >= 0)
            found[rows, index[rows]] = factors[rows]
            return found
        case Dense():
            return np.kron(np.eye(inputs // operator.matrix.shape[1]), operator.matrix)
        case Convolved():
            return operator.convolution.matrix(operator.size).toarray()


def operators(seed: int) -> dict[str, Operator]:
    """Draw maps of features of shape 4 x 3 x 2 to the same shape."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 2, 4]))
    transposed = bool(rng.integers(2))
    dense = Dense(rng.standard_normal((2, 2)), whole=False)
    kernel = rng.standard_normal((4, 4 // groups, 3, 3))
    mode = "zeros" if transposed else str(rng.choice(["zeros", "circular", "replicate"]))
    conv = Convolution(
        kernel,
        (1, 1),
        (1, 1),
        ((1, 1), (1, 1)),
        groups=groups,
        transposed=transposed,
        padding_mode=mode,  # type: ignore[arg-type]
    )
    return {
        "identity": Monomial(SHAPE),
        "by channel": Monomial(SHAPE, None, rng.standard_normal((4, 1, 1))),
        "by feature": Monomial(SHAPE, None, rng.standard_normal(SHAPE)),
        "by last axis": Monomial(SHAPE, None, rng.standard_normal(2)),
        "by number": Monomial(SHAPE, None, np.array(-1.5)),
        "copies": Monomial(SHAPE, rng.integers(-1, COUNT, SHAPE), None),
        "scaled copies": Monomial(SHAPE, rng.integers(-1, COUNT, SHAPE), rng.standard_normal((4, 1, 1))),
        "dense": dense,
        "convolution": Convolved(conv, SHAPE[1:]),
        "another kernel": Convolved(
            Convolution(
                rng.standard_normal(kernel.shape),
                (1, 1),
                (1, 1),
                ((1, 1), (1, 1)),
                groups=groups,
                transposed=transposed,
                padding_mode=mode,  # type: ignore[arg-type]
            ),
            SHAPE[1:],
        ),
    }


MERGED = {
    ("by channel", "convolution"),
    ("convolution", "by channel"),
    ("by number", "convolution"),
    ("by last axis", "dense"),
    ("dense", "by last axis"),
    ("dense", "dense"),
    ("copies", "scaled copies"),
    ("by feature", "copies"),
}


@pytest.mark.parametrize("seed", range(8))
def test_a_composition_is_the_product_of_the_matrices(seed: int) -> None:
    drawn = operators(seed)
    for first_name, first in drawn.items():
        for second_name, second in drawn.items():
            merged = compose(first, second)
            if merged is None:
                assert (first_name, second_name) not in MERGED
                continue
            expected = matrix(second, COUNT) @ matrix(first, COUNT)
            np.testing.assert_allclose(matrix(merged, COUNT), expected, atol=1e-12)
            for norm in NORMS:
                assert operator_norm(expected, norm) <= merged.norm(norm).value, (first_name, second_name)


ADDED = {
    ("identity", "convolution"),
    ("convolution", "by channel"),
    ("by number", "convolution"),
    ("convolution", "another kernel"),
    ("dense", "dense"),
    ("identity", "dense"),
    ("dense", "by last axis"),
    ("by channel", "by feature"),
}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sum_is_the_sum_of_the_matrices(seed: int, sign: float) -> None:
    drawn = operators(seed)
    transposed = isinstance(drawn["convolution"], Convolved) and drawn["convolution"].convolution.transposed
    for first_name, first in drawn.items():
        for second_name, second in drawn.items():
            merged = add(first, second, sign=sign)
            if merged is None:
                mixed = "convolution" in (first_name, second_name) and second_name != "another kernel"
                assert (first_name, second_name) not in ADDED or (transposed and mixed)
                continue
            expected = matrix(first, COUNT) + sign * matrix(second, COUNT)
            np.testing.assert_allclose(matrix(merged, COUNT), expected, atol=1e-12)
            for norm in NORMS:
                assert operator_norm(expected, norm) <= merged.norm(norm).value, (first_name, second_name)


def test_what_rounding_takes_from_a_product_is_given_back() -> None:
    """A difference of nearly equal products has few digits, and its bound says so."""
    weight = np.array([[1.0, 1.0], [1.0, 1.0 + 2.0**-52]]) / 3.0
    first, second = Dense(weight, whole=True), Dense(np.array([[1.0, -1.0]]), whole=True)
    merged = compose(first, second)
    assert isinstance(merged, Dense)
    assert 0.0 < merged.slack < 1e-14
    true = abs(weight[0, 1] - weight[1, 1])  # exact: neighbouring floats
    assert true <= merged.norm(Norm.L2).value


def test_a_bottleneck_is_not_multiplied_out() -> None:
    first, second = Dense(np.ones((2, 100)), whole=True), Dense(np.ones((100, 2)), whole=True)
    assert compose(first, second) is None


PADDINGS: list[tuple[str, tuple[int, int, int, int]]] = [
    ("constant", (1, 1, 1, 1)),
    ("constant", (0, 2, 1, 0)),
    ("circular", (1, 1, 1, 1)),
    ("reflect", (2, 2, 1, 1)),
    ("replicate", (1, 1, 1, 1)),
]


@pytest.mark.parametrize(("mode", "sides"), PADDINGS)
def test_padding_as_a_call_of_its_own_becomes_that_of_the_convolution(
    mode: str, sides: tuple[int, int, int, int]
) -> None:
    conv = nn.Conv2d(2, 3, 3, stride=1)
    scale = torch.tensor([0.5, 2.0]).view(2, 1, 1)

    def pad(x: Tensor) -> Tensor:
        return functional.pad((x - 0.5) / scale, sides, mode=mode, value=0.7 if mode == "constant" else None)

    net = nn.Sequential(Function(pad), conv).eval()
    found = lipschitz_upper_bound(net, (2, 6, 6))
    true = operator_norm(jacobian(net, torch.zeros(2, 6, 6)), Norm.L2)
    copies = {"reflect": 2.0, "replicate": 1.5}.get(mode, 1.002)
    assert true <= found.upper <= true * copies
    assert len(found.layers) == 1
    if sides == (1, 1, 1, 1):
        native = nn.Conv2d(2, 3, 3, padding=1, padding_mode="zeros" if mode == "constant" else mode)
        native.weight.data.copy_(conv.weight.detach().double() / scale.double())
        assert found.upper == pytest.approx(float(lipschitz_upper_bound(native.eval(), (2, 6, 6))), rel=1e-6)


def layered(pad: Callable[[Tensor], Tensor], conv: nn.Module) -> nn.Module:
    return nn.Sequential(Function(pad), conv).eval()


@pytest.mark.parametrize(
    "net",
    [
        layered(lambda x: functional.pad(x, (1, 1, 1, 1)), nn.Conv2d(2, 2, 3, padding=1)),
        layered(lambda x: functional.pad(x, (1, 1, 1, 1), mode="circular"), nn.Conv2d(2, 2, 3, padding=1)),
        layered(
            lambda x: functional.pad(x, (1, 1, 1, 1)), nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
        ),
        layered(lambda x: functional.pad(x, (1, 1)), nn.Conv2d(2, 2, 3)),
        layered(lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1)), nn.Conv2d(4, 2, 3)),
        layered(lambda x: functional.pad(x, (-1, 1, 0, 1)), nn.Conv2d(2, 2, 3)),
        layered(lambda x: functional.pad(x.transpose(2, 3), (1, 1, 1, 1)), nn.Conv2d(2, 2, 3)),
        layered(lambda x: functional.pad(x, (1, 1, 1, 1)), nn.ConvTranspose2d(2, 2, 3, stride=2)),
        layered(nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3, groups=2)),
        layered(nn.ConstantPad2d(1, 3.0), nn.Conv2d(2, 2, 4, stride=2)),
        layered(nn.CircularPad2d((1, 2, 0, 1)), nn.Conv2d(2, 2, 3, dilation=2)),
    ],
)
def test_padding_in_any_order_is_never_bounded_too_low(net: nn.Module) -> None:
    for norm in NORMS:
        upper = float(lipschitz_upper_bound(net.float(), (2, 5, 6), norm))
        true = operator_norm(jacobian(net, torch.zeros(2, 5, 6)), norm)
        assert true <= upper <= 4.01 * true
