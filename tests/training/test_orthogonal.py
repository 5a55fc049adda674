"""Orthogonal parametrizations: orthonormal at every shape and frequency, and honest where they cannot be."""

import numpy as np
import pytest
import torch
from torch import nn

from calipers.errors import UsageError
from calipers.training.orthogonal import (
    BlockOrthogonal,
    Orthonormal,
    constrain,
    orthonormal_columns,
    plain_weights,
)


def _free(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_columns_are_orthonormal_and_span_what_they_spanned() -> None:
    matrices = _free(3, 7, 4)
    found = orthonormal_columns(matrices)
    assert torch.allclose(found.mT @ found, torch.eye(4).double().expand(3, 4, 4), atol=1e-12)
    q, r = torch.linalg.qr(matrices)
    assert torch.allclose(found, q * r.diagonal(dim1=1, dim2=2).sign()[:, None, :], atol=1e-10)


def test_dependent_columns_give_nan_and_no_wrong_matrix() -> None:
    assert orthonormal_columns(torch.ones(5, 2)).isnan().any()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (16, 1, 2, 2), (6, 3, 4, 4)])
def test_a_weight_has_singular_values_of_one_alone(shape: tuple[int, ...]) -> None:
    weight = Orthonormal()(_free(*shape))
    assert weight.shape == shape
    values = np.linalg.svd(weight.flatten(1).numpy(), compute_uv=False)
    assert np.abs(values - 1).max() < 1e-12


@pytest.mark.parametrize(("channels", "size"), [(2, 1), (4, 2), (6, 3), (2, 5)])
def test_a_block_orthogonal_kernel_is_orthogonal_at_every_frequency(channels: int, size: int) -> None:
    kernel = BlockOrthogonal(size)(_free(channels, channels * size)).numpy()
    assert kernel.shape == (channels, channels, size, size)
    response = np.fft.fft2(kernel, s=(13, 11)).transpose(2, 3, 0, 1)
    assert np.abs(np.linalg.svd(response, compute_uv=False) - 1).max() < 1e-12
    if size > 1:
        assert (np.abs(kernel).max(axis=(0, 1)) > 1e-3).all(), "every pixel of the kernel is used"


def test_plain_weights_are_those_that_the_parametrized_network_uses() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3))
    names = set(net.state_dict())
    constrain(net, arch="small")
    weights = plain_weights(net)
    assert set(weights) == names
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3))
    plain.load_state_dict(weights)
    x = torch.rand(2, 4, 5, 5)
    assert torch.allclose(plain(x), net(x), atol=1e-5)
    assert "parametrizations.weight.original" in dict(net[0].named_parameters()), "it is left as it was"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(3, 3, 3, padding=1),
        nn.Conv2d(4, 4, 2, stride=2, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 2, stride=2, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
    ],
    ids=str,
)
def test_a_layer_that_cannot_be_kept_from_stretching_is_named(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match=rf"net cannot .* 0\.1 \({type(layer).__name__}\)"):
        constrain(nn.Sequential(nn.Sequential(nn.Flatten(), layer)), arch="net")
