"""Layers that other libraries build to be 1-Lipschitz: what our bounds say of them, and what is true."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.certificates.lipschitz.spectral import convolution_norm
from calipers.errors import UnknownLayer
from calipers.threat.threat_model import Norm

SIDE = 8


def _peer(name: str) -> Any:
    return pytest.importorskip(name, reason=f"needs {name}, of the extra peers")


def _train(layer: nn.Module, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Give a peer's layer drawn weights, and let it normalize them as it would in training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "original" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        layer.train()
        for _ in range(10):
            layer(torch.zeros(1, *shape))
    return layer.eval()


def _plain(layer: Any) -> nn.Module:
    """Copy a convolution of orthogonium into torch's own.

    It exports nothing, and as it stands it is no fixed function: each reading of its weights goes on with a power
    iteration, in eval mode too, and moves them in the last digits.
    """
    settings = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "padding_mode": layer.padding_mode,
    }
    kind = nn.ConvTranspose2d if isinstance(layer, nn.ConvTranspose2d) else nn.Conv2d
    plain: nn.Module = kind(layer.in_channels, layer.out_channels, layer.kernel_size, **settings)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    return plain.eval()


def _true(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest singular value of the matrix that torch itself gives."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        matrix = layer.double()(basis) - layer(torch.zeros_like(basis[:1]))
    return float(np.linalg.norm(matrix.flatten(1).numpy(), 2))


def _bounds(layer: nn.Module, shape: tuple[int, ...]) -> list[float]:
    """Bounds by frequencies and at this input size, through the graph of a network and of the layer alone."""
    found = [lipschitz_upper_bound(layer, shape, method=method).upper for method in ("auto", "grid")]
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        found.append(convolution_norm(Convolution.of(layer), Norm.L2, size=shape[1:], method="exact").value)
    return found


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (32, 64), (48, 48)])
def test_spectral_linear_of_deel_torchlip_is_1_from_above(inputs: int, outputs: int) -> None:
    torchlip = _peer("deel.torchlip")
    layer = _train(torchlip.SpectralLinear(inputs, outputs), (inputs,), seed=inputs)
    plain = layer.vanilla_export().eval()
    true = _true(plain, (inputs,))
    assert true == pytest.approx(1, abs=1e-3)
    for bound in _bounds(plain, (inputs,)):
        assert true * (1 - 1e-14) <= bound <= 1.01


@pytest.mark.parametrize(
    ("channels", "kernel", "settings"),
    [
        ((3, 8), 3, {"padding": 1}),
        ((4, 8), 3, {"padding": 1, "stride": 2}),
        ((8, 8), 3, {"padding": 1, "padding_mode": "circular"}),
        ((8, 4), 5, {"padding": 2}),
        ((8, 4), 5, {"padding": 2, "padding_mode": "reflect"}),
    ],
)
def test_spectral_convolutions_of_deel_torchlip_lie_between_their_norm_and_1(
    channels: tuple[int, int], kernel: int, settings: dict[str, Any]
) -> None:
    torchlip = _peer("deel.torchlip")
    shape = (channels[0], SIDE, SIDE)
    plain = (
        _train(torchlip.SpectralConv2d(*channels, kernel, **settings), shape, seed=1).vanilla_export().eval()
    )
    assert type(plain) is nn.Conv2d
    true = _true(plain, shape)
    assert 0.1 < true < 1
    for bound in _bounds(plain, shape):
        assert true * (1 - 1e-14) <= bound <= 1.01


@pytest.mark.parametrize(
    ("channels", "kernel", "settings"),
    [
        ((8, 8), 3, {}),
        ((8, 16), 3, {}),
        ((16, 8), 3, {}),
        ((3, 16), 3, {}),
        ((8, 8), 5, {}),
        ((8, 8), 3, {"groups": 2}),
        ((8, 8), 3, {"dilation": 2}),
        ((8, 8), 3, {"stride": 2, "padding": 1}),
        ((8, 16), 4, {"stride": 2, "padding": 1}),
        ((8, 16), 2, {"stride": 2, "padding": 0}),
        ((8, 8), 3, {"padding": 1, "padding_mode": "zeros"}),
    ],
)
def test_orthogonal_convolutions_of_orthogonium_are_1_from_above(
    channels: tuple[int, int], kernel: int, settings: dict[str, Any]
) -> None:
    layers = _peer("orthogonium.layers")
    shape = (channels[0], SIDE, SIDE)
    layer = _train(layers.AdaptiveOrthoConv2d(*channels, kernel, **settings), shape, seed=2)
    assert layer.padding_mode == settings.get("padding_mode", "circular")
    plain = _plain(layer)
    true = _true(plain, shape)
    assert true == pytest.approx(1, abs=1e-4)
    for bound in _bounds(plain, shape):
        assert true * (1 - 1e-14) <= bound <= 1.01


@pytest.mark.parametrize(
    ("channels", "kernel", "settings"),
    [((8, 8), 2, {"stride": 2}), ((8, 8), 3, {"padding": 1}), ((8, 4), 4, {"stride": 2, "padding": 1})],
)
def test_orthogonal_transposed_convolutions_of_orthogonium_are_1_from_above(
    channels: tuple[int, int], kernel: int, settings: dict[str, Any]
) -> None:
    layers = _peer("orthogonium.layers")
    shape = (channels[0], 6, 6)
    plain = _plain(_train(layers.AdaptiveOrthoConvTranspose2d(*channels, kernel, **settings), shape, seed=3))
    true = _true(plain, shape)
    assert true == pytest.approx(1, abs=1e-4)
    for bound in _bounds(plain, shape):
        assert true * (1 - 1e-14) <= bound <= 1.01


class _Drifts(nn.Module):
    """Normalizes a weight by a power iteration that goes on at each reading, as orthogonium's does in eval mode."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.direction = nn.Buffer(torch.ones(weight.shape[1]))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.direction.copy_(nn.functional.normalize(weight.T @ (weight @ self.direction), dim=0))
        return weight / (weight @ self.direction).norm()


def test_weights_that_move_when_they_are_read_are_refused() -> None:
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 6, generator=torch.Generator().manual_seed(4)))
    nn.utils.parametrize.register_parametrization(layer, "weight", _Drifts(layer.weight))
    with pytest.raises(UnknownLayer, match=r"another weight each time it is read.*plain layer"):
        lipschitz_upper_bound(layer.eval(), (6,))
