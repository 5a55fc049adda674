"""Lower bounds on Lipschitz constants: reached where the constant is known, and never above it."""

import itertools
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calipers.certificates.lipschitz.composed import eclipse_fast, layerwise_product
from calipers.certificates.lipschitz.sandwich import sampled_lower_bound
from calipers.certificates.lipschitz.stretch import operator_lower_bound
from calipers.errors import UsageError
from calipers.sources.architectures import build
from calipers.threat.threat_model import Norm

ORDER = {Norm.L1: 1, Norm.L2: 2, Norm.LINF: float("inf")}
NORMS = list(ORDER)


def generator(seed: int) -> torch.Generator:
    made = torch.Generator()
    made.manual_seed(seed)
    return made


def mlp(
    widths: tuple[int, ...], seed: int, activation: type[nn.Module] = nn.ReLU, *, positive: bool = False
) -> nn.Module:
    layers: list[nn.Module] = []
    draws = generator(seed)
    for n, m in itertools.pairwise(widths):
        layer = nn.Linear(n, m)
        weight = torch.randn(m, n, generator=draws) / n**0.5
        layer.weight.data = weight.abs() if positive else weight
        layer.bias.data = torch.zeros(m) if positive else 0.3 * torch.randn(m, generator=draws)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def weights(net: nn.Module) -> list[np.ndarray]:
    return [layer.weight.detach().double().numpy() for layer in net if isinstance(layer, nn.Linear)]


class Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("inputs", "outputs"), [(7, 5), (5, 7), (40, 20), (1, 3)])
def test_an_affine_network_gives_the_norm_of_its_matrix(norm: Norm, inputs: int, outputs: int) -> None:
    net = mlp((inputs, outputs), inputs)
    true = float(torch.linalg.matrix_norm(net[0].weight.detach().double(), ORDER[norm]))
    for bounds in ((0.0, 1.0), (-3.0, 5.0)):
        found = sampled_lower_bound(net, (inputs,), bounds, norm, samples=4, steps=3)
        assert found == pytest.approx(true, rel=1e-6)
        assert found <= true


def test_many_outputs_are_done_without_the_whole_jacobian() -> None:
    net = mlp((60, 150), 1)
    matrix = net[0].weight.detach().double()
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true * (1.0 - 1e-6) <= sampled_lower_bound(net, (60,), samples=4, steps=2) <= true
    for norm in (Norm.L1, Norm.LINF):
        true = float(torch.linalg.matrix_norm(matrix, ORDER[norm]))
        assert 0.8 * true <= sampled_lower_bound(net, (60,), norm=norm, samples=4, steps=2) <= true


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_the_constant_of_a_non_negative_network_is_reached(bounds: tuple[float, float]) -> None:
    for seed in range(3):
        net = mlp((2, 10, 30, 20, 2), seed, positive=True)
        product = torch.linalg.multi_dot([torch.from_numpy(weight) for weight in reversed(weights(net))])
        true = float(torch.linalg.matrix_norm(product, 2))
        found = sampled_lower_bound(net, (2,), bounds, steps=40, seed=seed)
        assert 0.99 * true <= found <= true


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh])
def test_no_lower_bound_is_above_an_upper_bound(norm: Norm, activation: type[nn.Module]) -> None:
    for seed in range(4):
        net = mlp((6, 12, 9, 4), seed, activation)
        found = sampled_lower_bound(net, (6,), (-2.0, 2.0), norm, samples=32, seed=seed)
        matrices = weights(net)
        norms = [float(np.linalg.norm(weight, ORDER[norm])) for weight in matrices]
        assert 0.01 * np.prod(norms) < found <= np.prod(norms)
        if norm is Norm.L2:
            assert found <= eclipse_fast(matrices).value <= layerwise_product(matrices)


def test_a_narrow_steep_place_is_found_by_climbing() -> None:
    """Few of the random points see it: one input in the middle of the box has slope 30, the rest slope 1."""
    net = Lambda(lambda x: (x + 15.0 * (torch.tanh(2.0 * (x - 0.7)) + 1.0)).sum(1, keepdim=True))
    few = {"samples": 2, "seed": 3}
    still = sampled_lower_bound(net, (1,), (0.0, 30.0), steps=0, **few)
    climbed = sampled_lower_bound(net, (1,), (0.0, 30.0), steps=60, **few)
    assert still < 20.0
    assert 27.0 < climbed <= 31.0


def test_given_inputs_are_starting_points() -> None:
    net = Lambda(lambda x: 5.0 * F.relu(0.01 - (x - 0.3).abs().amax(1, keepdim=True)))
    assert sampled_lower_bound(net, (8,), samples=8, steps=0) == 0.0
    given = torch.full((1, 8), 0.302)
    # a pair of points around the given one shows a part of the slope there, which is 5
    assert 2.0 < sampled_lower_bound(net, (8,), inputs=given, samples=8, steps=0) <= 5.0


def test_a_backward_pass_of_one_s_own_is_not_believed() -> None:
    net = Lambda(lambda x: 0.5 * x + 0.5 * (0.1 * x - x).detach() + 0.45 * x)
    assert sampled_lower_bound(net, (4,), samples=4, steps=3) <= 0.5 + 1e-6


def test_kinks_at_which_automatic_differentiation_is_wrong_are_avoided() -> None:
    """2x - relu(x) + relu(-x) is x, but autograd gives it slope 2 at 0."""
    net = Lambda(lambda x: 2.0 * x - F.relu(x) + F.relu(-x))
    at_kink = torch.zeros(3, 5)
    for bounds in ((-1.0, 1.0), (0.0, 1.0), (-1.0, 0.0)):
        found = sampled_lower_bound(net, (5,), bounds, inputs=at_kink, samples=1, steps=5)
        assert found == pytest.approx(1.0, rel=1e-6)
        assert found <= 1.0


def test_the_box_bounds_the_search() -> None:
    net = Lambda(lambda x: torch.where(x < 1.0, x, 1.0 + 100.0 * (x - 1.0)))
    assert sampled_lower_bound(net, (3,), (0.0, 1.0), steps=30) <= 1.0
    assert sampled_lower_bound(net, (3,), (0.0, 2.0), steps=30) == pytest.approx(100.0, rel=1e-6)
    for sign in (1.0, -1.0):  # the slope is 2 at the outer face, and larger outside
        square = Lambda(lambda x, sign=sign: sign * x.square())
        assert 1.95 < sampled_lower_bound(square, (3,), (0.0, 1.0), steps=30) <= 2.0


def test_a_network_may_overwrite_its_input() -> None:
    net = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Flatten())
    assert sampled_lower_bound(net, (2,), (-1.0, 1.0), samples=32) == pytest.approx(1.0, rel=1e-6)


def test_what_is_measured_is_left_as_it_was_and_measured_in_eval_mode() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5)
    )
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = sampled_lower_bound(net, (1, 6, 6), samples=4, steps=2)
    assert net.training and all(p.requires_grad and p.dtype is torch.float32 for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert first == sampled_lower_bound(net.eval(), (1, 6, 6), samples=4, steps=2)


def test_the_seed_decides_and_the_size_of_a_batch_does_not() -> None:
    net = mlp((6, 12, 9, 4), 5)
    found = sampled_lower_bound(net, (6,), samples=20, batch_size=20, seed=1)
    assert sampled_lower_bound(net, (6,), samples=20, batch_size=3, seed=1) == pytest.approx(found, rel=1e-9)
    assert sampled_lower_bound(net, (6,), samples=20, batch_size=20, seed=1) == found
    assert sampled_lower_bound(net, (6,), samples=20, batch_size=20, seed=2) != found


def test_a_constant_network_and_one_that_overflows_give_nothing() -> None:
    assert sampled_lower_bound(Lambda(lambda x: torch.ones(len(x), 2)), (3,), samples=2, steps=2) == 0.0
    assert sampled_lower_bound(Lambda(lambda x: x / 0.0), (3,), samples=2, steps=2) == 0.0


@pytest.mark.parametrize("norm", NORMS)
def test_an_operator_is_stretched_up_to_its_norm_and_not_beyond(norm: Norm) -> None:
    for seed, (rows, columns) in enumerate([(5, 9), (9, 5), (30, 30), (1, 4), (4, 1)]):
        matrix = torch.randn(rows, columns, dtype=torch.float64, generator=generator(seed))
        true = float(torch.linalg.matrix_norm(matrix, ORDER[norm]))
        found = operator_lower_bound(lambda x, matrix=matrix: x @ matrix.T, (columns,), norm)
        assert (1.0 - 1e-6 if norm is Norm.L2 else 0.85) * true <= found <= true


def test_a_convolution_is_stretched_as_by_its_matrix() -> None:
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=generator(6))

    def operator(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, stride=2, padding=1)

    basis = torch.eye(3 * 7 * 7, dtype=torch.float64).view(-1, 3, 7, 7)
    true = float(torch.linalg.matrix_norm(operator(basis).flatten(1), 2))
    assert true * (1.0 - 1e-5) <= operator_lower_bound(operator, (3, 7, 7)) <= true
    assert (
        operator_lower_bound(operator, (3, 7, 7), steps=2) < 0.999 * true
    )  # an estimate that needs its steps
    assert operator_lower_bound(lambda x: 0.0 * operator(x), (3, 7, 7)) == 0.0


def test_questions_without_an_answer_are_refused() -> None:
    net = mlp((2, 3), 0)
    with pytest.raises(UsageError, match="norm is l0"):
        sampled_lower_bound(net, (2,), norm=Norm.L0)
    with pytest.raises(UsageError, match="norm is l0"):
        operator_lower_bound(net, (2,), Norm.L0)
    with pytest.raises(UsageError, match=r"bounds are \(1.0, 0.0\)"):
        sampled_lower_bound(net, (2,), (1.0, 0.0))
    with pytest.raises(UsageError, match="at least one point"):
        sampled_lower_bound(net, (2,), samples=0)


@pytest.mark.slow
def test_a_resnet_takes_seconds() -> None:
    net = build("resnet20", num_classes=10)
    start = time.perf_counter()
    assert sampled_lower_bound(net, (3, 32, 32)) > 0.0
    assert time.perf_counter() - start < 60.0  # 7 s on a quiet core
