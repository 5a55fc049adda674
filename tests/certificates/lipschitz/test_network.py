"""Whole networks: no Jacobian exceeds the bound, linear networks meet it, and refusals of the joint methods."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from drawn_layers import NORMS, Function, jacobian, operator_norm
from torch import Tensor, nn
from torch.nn import functional

from calipers.certificates.lipschitz.composed import eclipse_fast
from calipers.certificates.lipschitz.network import METHODS, lipschitz_upper_bound
from calipers.errors import Unsound, UsageError
from calipers.sources.architectures import build
from calipers.threat.threat_model import Norm

DUAL = {Norm.L1: np.inf, Norm.L2: 2, Norm.LINF: 1}


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None, *, activate: bool = True) -> None:
        super().__init__()
        self.inner = inner
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        found = self.shortcut(x) + self.inner(x)
        return functional.relu(found) if self.activate else found  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Concatenates its input and what a layer makes of it, as in a DenseNet."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


def stored(channels: int, generator: torch.Generator) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.normal_(generator=generator)
    layer.running_var.uniform_(0.1, 2.0, generator=generator)
    layer.weight.data.normal_(generator=generator)
    return layer


def drawn_network(seed: int) -> nn.Module:
    """Draw a small network for inputs of 2 x 6 x 6 and 3 classes."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    activations = [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish]

    def activation() -> nn.Module:
        return activations[int(rng.integers(len(activations)))]()

    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1, stride=int(rng.integers(1, 3)))]
    if rng.integers(2):
        layers.append(stored(4, generator))
    layers.append(activation())
    for _ in range(int(rng.integers(0, 3))):
        kind = int(rng.integers(5))
        inner = nn.Conv2d(
            4, 4, 3, padding=1, padding_mode=str(rng.choice(["zeros", "circular", "replicate"]))
        )
        if kind == 0:
            layers.append(
                Residual(nn.Sequential(inner, stored(4, generator)), activate=bool(rng.integers(2)))
            )
        elif kind == 1:
            layers.append(
                Residual(nn.Sequential(inner, activation(), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1))
            )
        elif kind == 2:
            layers += [Dense(inner), nn.Conv2d(8, 4, 1)]
        elif kind == 3:
            layers.append(Residual(inner, activate=False))
        else:
            layers += [inner, nn.MaxPool2d(3, 2, 1), activation()]
    layers.append(
        [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2, ceil_mode=True), nn.Identity()][int(rng.integers(3))]
    )
    width = math.prod(nn.Sequential(*layers, nn.Flatten()).eval()(torch.zeros(1, 2, 6, 6)).shape)
    layers += [nn.Flatten(), nn.Linear(width, 5), activation(), nn.Linear(5, 3)]
    net = nn.Sequential(*layers)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            with torch.no_grad():
                parameter.normal_(generator=generator).mul_(1.5 / math.sqrt(parameter[0].numel()))
    return net.eval()


@pytest.mark.parametrize("seed", range(40))
def test_no_jacobian_of_a_drawn_network_exceeds_its_bounds(seed: int) -> None:
    net = drawn_network(seed)
    norm = NORMS[seed % 4 % 3]
    found = lipschitz_upper_bound(net, (2, 6, 6), norm)
    generator = torch.Generator().manual_seed(seed)
    assert {"vector", "per-coordinate", "last-layer"} <= set(found.differences)
    for scale in (0.3, 1.0, 4.0):
        matrix = jacobian(net, scale * torch.randn((2, 6, 6), generator=generator))
        assert operator_norm(matrix, norm) <= found.upper
        rows = matrix[:, None, :] - matrix[None, :, :]
        true = np.linalg.norm(rows, DUAL[norm], axis=2)
        for name, constants in found.differences.items():
            assert (true <= constants).all(), name
            assert not np.diagonal(constants).any()
            np.testing.assert_array_equal(constants, constants.T)


@pytest.mark.parametrize("seed", range(10))
def test_every_method_bounds_the_same_network_and_exact_is_no_worse_than_grid(seed: int) -> None:
    net = drawn_network(seed)
    matrix = jacobian(net, torch.randn((2, 6, 6), generator=torch.Generator().manual_seed(seed)))
    uppers = {
        method: float(lipschitz_upper_bound(net.float(), (2, 6, 6), method=method))
        for method in ("auto", "grid", "exact")
    }
    assert all(operator_norm(matrix, Norm.L2) <= upper for upper in uppers.values())
    assert uppers["exact"] <= uppers["grid"] * (1 + 1e-9)


def sandwich(net: nn.Module, shape: tuple[int, ...], slack: float, norm: Norm = Norm.L2) -> None:
    """Check that a linear network's bound is its norm within a slack."""
    upper = float(lipschitz_upper_bound(net.eval(), shape, norm))
    true = operator_norm(jacobian(net, torch.zeros(shape)), norm)
    assert true <= upper <= true * (1 + slack)


@pytest.mark.parametrize("norm", NORMS)
def test_two_linear_layers_in_a_row_are_one_matrix(norm: Norm) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Linear(5, 4), nn.Identity(), nn.BatchNorm1d(4))
    sandwich(net, (6,), 1e-9, norm)
    assert len(lipschitz_upper_bound(net, (6,), norm).layers) == 1


def test_a_normalization_a_convolution_and_a_batch_normalization_are_one_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 0.5, 2.0]).view(1, 3, 1, 1)
    net = nn.Sequential(
        Function(lambda x: (x - 0.5) / scale), nn.Conv2d(3, 4, 3, padding=1), stored(4, generator)
    )
    sandwich(net, (3, 8, 8), 2e-3)
    found = lipschitz_upper_bound(net, (3, 8, 8))
    assert [row.name for row in found.layers] == ["0.truediv + 1 + 2"]
    assert [row.kind for row in found.layers] == ["truediv + Conv2d + BatchNorm2d"]
    apart = [
        float(lipschitz_upper_bound(part.eval(), (c, 8, 8))) for part, c in zip(net, (3, 3, 4), strict=True)
    ]
    assert found.upper < 0.9 * math.prod(apart)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_scaling_goes_into_the_channels_of_grouped_and_transposed_convolutions(
    groups: int, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = nn.Sequential(stored(4, generator), kind(4, 6, 3, groups=groups, bias=False), stored(6, generator))
    for norm in NORMS:
        sandwich(net, (4, 5, 5), 3e-3, norm)


def test_a_batch_normalization_that_is_not_folded_is_bounded_by_its_largest_factor() -> None:
    generator = torch.Generator().manual_seed(2)
    layer = stored(3, generator)
    assert layer.running_var is not None
    expected = float(
        (layer.weight.detach().double().abs() / (layer.running_var.double() + layer.eps).sqrt()).max()
    )
    upper = float(lipschitz_upper_bound(nn.Sequential(nn.ReLU(), layer, nn.ReLU()).eval(), (3, 4, 4)))
    assert expected <= upper <= expected * (1 + 1e-12)


@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate", "reflect"])
def test_a_residual_around_one_convolution_is_one_convolution(mode: str) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode, groups=2)
    sandwich(Residual(conv, activate=False), (4, 6, 6), {"zeros": 2e-3}.get(mode, 0.75))
    together = float(lipschitz_upper_bound(Residual(conv, activate=False).eval(), (4, 6, 6)))
    assert together < 1 + float(lipschitz_upper_bound(conv.eval(), (4, 6, 6)))

    def minus(x: Tensor) -> Tensor:
        return functional.conv2d(x, x.new_ones((4, 2, 3, 3)), padding=1, groups=2) - x

    sandwich(Function(minus), (4, 6, 6), 2e-3)


def test_a_residual_around_one_matrix_is_one_matrix_and_an_inverse_cancels() -> None:
    sandwich(Residual(nn.Linear(5, 5), activate=False), (5,), 1e-9)
    minus = nn.Linear(5, 5)
    with torch.no_grad():
        minus.weight.copy_(-torch.eye(5))
    assert float(lipschitz_upper_bound(Residual(minus, activate=False).eval(), (5,))) < 1e-12
    sandwich(Function(lambda x: x - functional.linear(x, x.new_ones((5, 5)))), (5,), 1e-9)


def test_a_residual_around_more_than_one_layer_is_one_plus_its_constant() -> None:
    net = Residual(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), activate=False)
    inner = float(lipschitz_upper_bound(net.inner.eval(), (4,), method="grid"))
    assert float(lipschitz_upper_bound(net.eval(), (4,))) == pytest.approx(1 + inner, rel=1e-12)


def test_concatenation_joins_branches_in_each_norm() -> None:
    net = Dense(nn.Sequential(nn.ReLU(), Function(lambda x: 2 * x))).eval()
    expected = {Norm.L1: 3.0, Norm.L2: math.sqrt(5.0), Norm.LINF: 2.0}
    for norm, constant in expected.items():
        assert float(lipschitz_upper_bound(net, (4, 3), norm)) == pytest.approx(constant, rel=1e-12)


def test_parts_of_the_same_features_are_not_counted_twice() -> None:
    def function(x: Tensor) -> Tensor:
        a, b, c = x.split(1, 1)
        return torch.cat([c, a.relu(), b], 1)

    upper = float(
        lipschitz_upper_bound(Function(lambda x: torch.cat([x[:, 2:], x[:, :2]], 1)).eval(), (3, 4))
    )
    assert upper == 1.0
    assert float(lipschitz_upper_bound(Function(function).eval(), (3, 4))) == pytest.approx(
        math.sqrt(2), rel=1e-9
    )
    halves = Function(lambda x: x[:, :2] + x[:, 2:]).eval()
    assert float(lipschitz_upper_bound(halves, (4, 3))) == pytest.approx(math.sqrt(2), rel=1e-9)


def max_min(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([torch.max(a, b), torch.min(a, b)], 1)


def test_max_min_between_orthogonal_layers_is_1_lipschitz() -> None:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), Function(max_min)]
    net = nn.Sequential(*layers).eval()
    assert 1.0 - 1e-5 <= float(lipschitz_upper_bound(net, (8,))) <= 1.0 + 1e-4


def test_a_maximum_and_a_minimum_of_different_pairs_are_not_taken_for_a_sort() -> None:
    def function(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, -b), torch.max(a, b)], 1)

    net = Function(function).eval()
    upper = float(lipschitz_upper_bound(net, (4,)))
    point = torch.tensor([1.0, 1.0, -3.0, -3.0])  # the maximum is a, and the smaller of a and -b is a
    assert operator_norm(jacobian(net, point), Norm.L2) <= upper


def test_the_largest_and_the_smallest_of_a_group_are_two_entries_of_a_sorted_vector() -> None:
    def function(x: Tensor) -> Tensor:
        groups = x.view(x.shape[0], 2, -1)
        return torch.cat([groups.min(1)[0], groups.amax(1)], 1)

    assert float(lipschitz_upper_bound(Function(function).eval(), (4,))) == 1.0
    assert float(lipschitz_upper_bound(Function(function).eval(), (6,), Norm.L1)) == 1.0


def test_the_largest_and_the_smallest_of_one_entry_are_the_same_entry() -> None:
    def single(x: Tensor) -> Tensor:
        groups = x[:, None]
        return torch.cat([groups.amin(1), groups.amax(1)], 1)

    def other_axis(x: Tensor) -> Tensor:
        return torch.cat([x.amin(1), x.amax(2)], 1)

    upper = float(lipschitz_upper_bound(Function(single).eval(), (4,)))
    assert upper >= operator_norm(jacobian(Function(single), torch.randn(4)), Norm.L2)
    point = torch.tensor([[5.0, 0.0], [9.0, 8.0]])  # 0 and 5, then 5 and 9: the entry 5 counts twice
    upper = float(lipschitz_upper_bound(Function(other_axis).eval(), (2, 2)))
    assert (
        upper >= operator_norm(jacobian(Function(other_axis), point), Norm.L2) == pytest.approx(math.sqrt(2))
    )


# ------------------------------------------------------------------------------------------------- matrices together
def tail_cases() -> Iterator[tuple[str, nn.Module, list[np.ndarray], float]]:
    """Give networks whose gradient exceeds what ECLipsE-Fast would say of their matrices, with that gradient."""
    count = 8
    into = torch.ones(count, 1) / math.sqrt(count)
    out = torch.tensor([[1.0, -1.0] * (count // 2)]) / math.sqrt(count)

    def between(middle: nn.Module, bias: Tensor, first: Tensor, last: Tensor) -> nn.Module:
        net = nn.Sequential(nn.Linear(1, len(first)), middle, nn.Linear(len(first), 1)).eval()
        with torch.no_grad():
            net[0].weight.copy_(first)
            net[0].bias.copy_(bias)
            net[2].weight.copy_(last)
        return net

    signs = torch.tensor([5.0, -5.0] * (count // 2))
    yield "abs", between(Function(torch.abs), signs, into, out), [into.numpy(), out.numpy()], 0.999
    first, last = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 1.0]])
    bias = torch.tensor([5.0, 0.0])  # the first number is the larger: sorted, it is the second

    def sort(x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, 2).sort(2)[0].view(x.shape)

    yield "GroupSort", between(Function(sort), bias, first, last), [first.numpy(), last.numpy()], 0.999
    one = torch.ones(1, 1)
    for name, middle, at in (("GELU", nn.GELU(), 1.414), ("SiLU", nn.SiLU(), 2.4)):
        yield name, between(middle, torch.tensor([at]), one, one), [one.numpy(), one.numpy()], 1.09

    def pool(x: Tensor) -> Tensor:
        found = functional.max_pool1d(x[:, None], 2, 1)[:, 0]
        return torch.cat([found, found[:, :1]], 1)

    first, last = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.7, 0.7]])
    yield "MaxPool", between(Function(pool), bias, first, last), [first.numpy(), last.numpy()], 1.39


CASES = list(tail_cases())


@pytest.mark.parametrize(("name", "net", "weights", "steep"), CASES, ids=[case[0] for case in CASES])
def test_the_joint_bound_is_not_used_across_what_it_does_not_hold_for(
    name: str, net: nn.Module, weights: list[np.ndarray], steep: float
) -> None:
    """ECLipsE-Fast holds for slopes in [0, 1]; each of these networks has a gradient above what it says."""
    gradient = operator_norm(jacobian(net, torch.zeros(1)), Norm.L2)
    assert gradient >= steep > eclipse_fast(weights).value, name
    found = lipschitz_upper_bound(net.float(), (1,))
    assert found.method == "product"
    assert gradient <= found.upper
    assert "composed" not in found.differences
    for method in ("eclipse", "lipsdp"):
        with pytest.raises(Unsound, match=r"slope in \[0, 1\]"):
            lipschitz_upper_bound(net.float(), (1,), method=method)  # type: ignore[arg-type]


def mlp(weights: list[np.ndarray], activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        layer.weight = nn.Parameter(torch.from_numpy(np.array(weight, dtype=np.float64)))
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1]).eval()


def test_the_networks_of_lipsdp_have_the_known_product_and_joint_bound(data_folder: Path) -> None:
    path = data_folder / "lipsdp" / "random_weights.mat"
    if not path.is_file():
        pytest.skip(f"no {path}")
    net = mlp(list(scipy.io.loadmat(str(path))["weights"].ravel()))
    found = lipschitz_upper_bound(net, (2,))
    assert found.product == pytest.approx(43.31, abs=0.01)
    assert found.method == "eclipse"
    assert found.upper == pytest.approx(39.90, abs=0.01)
    assert float(lipschitz_upper_bound(net, (2,), method="grid")) == pytest.approx(43.31, abs=0.01)


def test_lipsdp_is_no_worse_than_eclipse_and_both_hold() -> None:
    pytest.importorskip("cvxpy", reason="cvxpy is not installed")
    generator = np.random.default_rng(0)
    net = mlp(
        [
            generator.standard_normal((6, 3)),
            generator.standard_normal((5, 6)),
            generator.standard_normal((3, 5)),
        ]
    )
    eclipse = lipschitz_upper_bound(net, (3,), method="eclipse")
    lipsdp = lipschitz_upper_bound(net, (3,), method="lipsdp")
    assert lipsdp.method == "lipsdp"
    assert lipsdp.upper <= eclipse.upper * (1 + 1e-9)
    assert (lipsdp.differences["composed"] <= eclipse.differences["composed"] * (1 + 1e-9)).all()
    for seed in range(50):
        matrix = jacobian(net, 3 * torch.randn(3, generator=torch.Generator().manual_seed(seed)))
        assert operator_norm(matrix, Norm.L2) <= lipsdp.upper
        rows = np.linalg.norm(matrix[:, None] - matrix[None], axis=2)
        assert (rows <= lipsdp.differences["composed"]).all()


def test_the_tail_of_a_convolutional_network_is_bounded_together() -> None:
    net = build("cnn28", num_classes=10).eval()
    found = lipschitz_upper_bound(net, (1, 28, 28))
    assert found.method == "eclipse"
    assert found.upper < found.product
    body = nn.Sequential(net.conv1, nn.ReLU(), net.conv2, nn.ReLU(), net.conv3, nn.ReLU()).eval()
    tail = eclipse_fast(
        [net.dense1.weight.detach().double().numpy(), net.dense2.weight.detach().double().numpy()]
    )
    assert found.upper == pytest.approx(
        float(lipschitz_upper_bound(body, (1, 28, 28))) * tail.value, rel=1e-9
    )
    assert (found.differences["composed"] <= found.differences["last-layer"] * (1 + 1e-9)).all()


def test_the_rules_of_one_matrix_are_its_rows() -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((4, 6))
    net = mlp([weight])
    for norm in NORMS:
        found = lipschitz_upper_bound(net, (6,), norm)
        expected = np.linalg.norm(weight[:, None] - weight[None], DUAL[norm], axis=2)
        np.testing.assert_allclose(found.differences["last-layer"], expected, rtol=1e-9)
        rows = 2 * np.linalg.norm(weight, DUAL[norm], axis=1).max()
        assert found.differences["per-coordinate"][0, 1] == pytest.approx(
            min(rows, 2 * found.upper), rel=1e-9
        )
        factor = {Norm.L1: 1.0, Norm.L2: math.sqrt(2), Norm.LINF: 2.0}[norm]
        assert found.differences["vector"][0, 1] == pytest.approx(factor * found.upper, rel=1e-9)


# ------------------------------------------------------------------------------------------------------ whole networks
def test_a_table_row_says_what_was_merged_how_it_was_bounded_and_the_constant_so_far() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    ).eval()
    found = lipschitz_upper_bound(net, (1, 6, 6))
    assert [row.name for row in found.layers] == ["0 + 1", "2", "4"]
    assert [row.kind for row in found.layers] == ["Conv2d + BatchNorm2d", "ReLU", "Linear"]
    assert [row.linear for row in found.layers] == [True, False, True]
    assert found.layers[1].method == "slope in [0, 1]"
    assert found.layers[-1].total == found.upper == float(found)
    assert found.upper == pytest.approx(math.prod(row.upper for row in found.layers), rel=1e-12)


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            with torch.no_grad():
                self.layer.weight.copy_(3 * torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.relu(self.layer(x)))  # type: ignore[no-any-return]

    assert 9.0 <= float(lipschitz_upper_bound(Twice().eval(), (3,))) < 9.001


def test_a_network_that_ignores_its_input_has_the_constant_0() -> None:
    net = Function(lambda x: x.new_zeros((x.shape[0], 3)) + 1.0).eval()
    found = lipschitz_upper_bound(net, (4,))
    assert float(found) == 0.0
    assert not found.differences["vector"].any()
    assert float(lipschitz_upper_bound(Function(lambda x: 0.0 * x).eval(), (4,))) == 0.0


def test_arguments_that_mean_nothing_are_refused() -> None:
    net = nn.ReLU().eval()
    with pytest.raises(UsageError, match="input_shape"):
        lipschitz_upper_bound(net, (0, 3))
    with pytest.raises(UsageError, match="input_shape"):
        lipschitz_upper_bound(net, ())
    with pytest.raises(UsageError, match="l0"):
        lipschitz_upper_bound(net, (3,), Norm.L0)
    with pytest.raises(UsageError, match="method"):
        lipschitz_upper_bound(net, (3,), method="best")  # type: ignore[arg-type]
    with pytest.raises(Unsound, match="l2"):
        lipschitz_upper_bound(net, (3,), Norm.LINF, method="eclipse")
    assert METHODS == ("auto", "grid", "exact", "eclipse", "lipsdp")


def test_a_constant_beyond_float64_is_refused() -> None:
    net = Function(lambda x: torch.relu(x * 1e200) * 1e200).eval()
    with pytest.raises(Unsound):
        lipschitz_upper_bound(net, (3,))


def test_an_input_of_another_shape_is_refused_with_the_layer() -> None:
    with pytest.raises(Unsound, match="cannot be run"):
        lipschitz_upper_bound(nn.Sequential(nn.Linear(4, 2)).eval(), (5,))


def test_resnet20_is_bounded_in_seconds(data_folder: Path) -> None:
    path = data_folder / "models" / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip(f"no {path}")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net = build("resnet20", num_classes=10)
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    start = time.perf_counter()
    found = lipschitz_upper_bound(net.eval(), (3, 32, 32))
    assert time.perf_counter() - start < 30.0  # a loose wall: 3 s alone on one core
    assert math.isfinite(found.upper)
    matrix = jacobian(net, torch.rand((3, 32, 32), generator=torch.Generator().manual_seed(0)))
    assert operator_norm(matrix, Norm.L2) <= found.upper
    names = {row.name for row in found.layers}
    assert {"conv1 + bn1", "layer1.0.conv1 + layer1.0.bn1", "layer3.2.add_8", "mean", "linear"} <= names
