"""A convolution as a value: its matrix is the Jacobian that torch gives."""

import numpy as np
import pytest
import torch
from drawn_convolutions import draw, jacobian
from torch import nn

from calipers.certificates.lipschitz.convolution import Convolution, padded_index
from calipers.errors import UsageError


@pytest.mark.parametrize("seed", range(4))
def test_the_matrix_is_the_jacobian_of_torch(seed: int) -> None:
    for module, size, expected in draw(seed, 150):
        matrix = Convolution.of(module).matrix(size)
        assert matrix.shape == expected.shape, (module, size)
        np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-12, err_msg=f"{module} at {size}")


def test_the_draws_hold_every_kind_of_layer() -> None:
    """Otherwise the tests that rest on them would say less than they seem to."""
    layers = [drawn.module for drawn in draw(0, 400)]
    kinds = {(type(layer).__name__, layer.padding_mode) for layer in layers}
    assert {name for name, _ in kinds} == {
        *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
    }
    assert {mode for _, mode in kinds} == {"zeros", "circular", "reflect", "replicate"}
    assert any(layer.padding == "same" and any(k % 2 == 0 for k in layer.kernel_size) for layer in layers)
    assert any(layer.groups > 1 for layer in layers)
    assert any(max(layer.stride) > 1 and max(layer.dilation) > 1 for layer in layers)
    assert any(layer.transposed and max(layer.output_padding) > 0 for layer in layers)


def test_same_padding_of_an_even_kernel_is_longer_at_the_end() -> None:
    layer = nn.Conv2d(1, 1, (4, 3), padding="same", dilation=(1, 2))
    assert Convolution.of(layer).padding == ((1, 2), (2, 2))


def test_float32_weights_are_read_exactly() -> None:
    layer = nn.Conv1d(2, 3, 3)
    kernel = Convolution.of(layer).kernel
    assert kernel.dtype == np.float64
    assert np.array_equal(kernel.astype(np.float32), layer.weight.detach().numpy())


def test_the_kernel_is_a_copy() -> None:
    layer = nn.Conv1d(1, 1, 3, dtype=torch.float64)
    kernel = Convolution.of(layer).kernel
    before = kernel.copy()
    with torch.no_grad():
        layer.weight.zero_()
    assert np.array_equal(kernel, before)


def test_weights_behind_a_parametrization_are_read() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3, bias=False, dtype=torch.float64))
    matrix = Convolution.of(layer).matrix((5,)).toarray()
    np.testing.assert_allclose(matrix, jacobian(layer, 2, (5,)), atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "padding", "expected"),
    [
        ("zeros", (1, 2), [-1, 0, 1, 2, -1, -1]),
        ("circular", (1, 2), [2, 0, 1, 2, 0, 1]),
        ("reflect", (1, 2), [1, 0, 1, 2, 1, 0]),
        ("replicate", (1, 2), [0, 0, 1, 2, 2, 2]),
    ],
)
def test_padding_copies_the_inputs_that_torch_copies(
    mode: str, padding: tuple[int, int], expected: list[int]
) -> None:
    assert padded_index(3, padding, mode).tolist() == expected


@pytest.mark.parametrize(("mode", "padding"), [("circular", (4, 0)), ("reflect", (0, 3))])
def test_padding_that_torch_refuses_is_refused(mode: str, padding: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="too wide"):
        padded_index(3, padding, mode)


def test_what_means_nothing_is_refused_with_its_value() -> None:
    kernel = np.ones((4, 2, 3))
    with pytest.raises(UsageError, match=r"stride is \(1, 1\)"):
        Convolution(kernel, (1, 1), (1,), ((0, 0),))
    with pytest.raises(UsageError, match="groups is 3"):
        Convolution(kernel, (1,), (1,), ((0, 0),), groups=3)
    with pytest.raises(UsageError, match="NaN"):
        Convolution(kernel * np.nan, (1,), (1,), ((0, 0),))
    with pytest.raises(UsageError, match="padding_mode is 'mirror'"):
        Convolution(kernel, (1,), (1,), ((0, 0),), padding_mode="mirror")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leaves no output"):
        Convolution(kernel, (1,), (1,), ((0, 0),)).matrix((2,))
    with pytest.raises(UsageError, match="Linear"):
        Convolution.of(nn.Linear(2, 2))
