"""Norms on the torus: grid bounds, circular convolutions, strides by phases."""

import itertools
import math

import numpy as np
import pytest

from calipers.certificates.lipschitz.torus import Symbol, circulant_norm, torus_norm


def _symbol(kernel: np.ndarray, stride: int = 1, dilation: int = 1) -> Symbol:
    axes = kernel.ndim - 3
    return Symbol(kernel, (stride,) * axes, (dilation,) * axes)


def _grid_maximum(symbol: Symbol, points: int) -> float:
    axis = 2 * math.pi * np.arange(points) / points
    angles = np.array(list(itertools.product(axis, repeat=len(symbol.degrees))))
    return float(symbol.norms(angles)[0].max())


@pytest.mark.parametrize(
    ("taps", "axes", "fine"), [(2, 1, 1024), (5, 1, 1024), (2, 2, 80), (3, 2, 80), (4, 2, 80)]
)
def test_riesz_factor_bounds_the_torus_and_is_needed(taps: int, axes: int, fine: int) -> None:
    """The largest value on a grid, over one cosine an axis, on random kernels and coarse grids."""
    generator = np.random.default_rng(taps + 10 * axes)
    missed = 0
    for points in range(taps, taps + 4):
        for _ in range(20):
            kernel = generator.standard_normal((1, 2, 3, *(taps,) * axes))
            symbol = _symbol(kernel)
            true, seen = _grid_maximum(symbol, fine), _grid_maximum(symbol, points)
            missed += seen < 0.999 * true
            assert seen / math.cos(math.pi * (taps - 1) / (2 * points)) ** axes >= true * (1 - 1e-12)
    assert missed > 20


def test_riesz_factor_is_attained() -> None:
    """|1 - exp(i M w)| is 2 at pi / M, half a cell from the nearest point of a grid of N = M (2 j + 1) points."""
    for degree, turns in itertools.product((1, 2, 5), (1, 2, 3)):
        kernel = np.zeros((1, 1, 1, degree + 1))
        kernel[..., 0], kernel[..., -1] = 1.0, -1.0
        points = degree * (2 * turns + 1)
        seen = _grid_maximum(_symbol(kernel), points)
        assert seen / math.cos(math.pi * degree / (2 * points)) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("operations", [0.0, 1e6, 1e9])
@pytest.mark.parametrize(("taps", "axes", "fine"), [(4, 1, 2048), (3, 2, 160), (2, 3, 30)])
def test_torus_norm_is_above_every_frequency_and_near_the_largest(
    taps: int, axes: int, fine: int, operations: float
) -> None:
    generator = np.random.default_rng(7)
    for _ in range(8):
        symbol = _symbol(generator.standard_normal((2, 2, 2, *(taps,) * axes)))
        true = _grid_maximum(symbol, fine)
        found = torus_norm(symbol, operations=operations)
        assert true <= found.upper <= true * (1.15 if operations < 1e9 else 1.003)
        assert symbol.norms(found.peak[None])[1][0] <= found.upper


def test_a_flat_spectrum_does_not_cost_for_ever() -> None:
    """An orthogonal kernel has norm 1 at every frequency, so no cell can be given up."""
    kernel = np.zeros((1, 4, 4, 3, 3))
    for row, (i, j) in enumerate(((0, 0), (0, 2), (1, 1), (2, 1))):
        kernel[0, row, row, i, j] = 1.0
    found = torus_norm(_symbol(kernel), operations=1e7)
    assert 1.0 <= found.upper <= 1.04


def test_a_kernel_of_length_one_has_one_frequency() -> None:
    kernel = np.random.default_rng(0).standard_normal((1, 5, 3, 1, 1))
    found = torus_norm(_symbol(kernel))
    assert found.points == (1, 1)
    assert found.upper == pytest.approx(np.linalg.norm(kernel[0, :, :, 0, 0], 2), rel=1e-12)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 3), (2, 1), (3, 2), (2, 2), (4, 6), (6, 4)])
def test_a_circle_has_the_norms_of_the_symbol(stride: int, dilation: int) -> None:
    """The matrix on a circle of N strides, written out, for plain circles and for those that change sign."""
    generator = np.random.default_rng(stride + 10 * dilation)
    for taps, points, turned in itertools.product((2, 3, 5), (2, 3, 7), (False, True)):
        kernel = generator.standard_normal((1, 2, 2, taps))
        length = points * stride
        matrix = np.zeros((points, 2, length, 2))
        for output, tap in itertools.product(range(points), range(taps)):
            turns, position = divmod(stride * output + dilation * tap, length)
            matrix[output, :, position, :] += (-1.0) ** (turned * turns) * kernel[0, :, :, tap]
        true = np.linalg.norm(matrix.reshape(2 * points, -1), 2)
        symbol = _symbol(kernel, stride, dilation)
        found = circulant_norm(symbol, (points,), dilation=(dilation,), turned=(turned,))
        assert found == pytest.approx(true, rel=1e-10)
        assert found >= true * (1 - 1e-15)


def test_the_largest_of_several_groups_counts() -> None:
    kernel = np.zeros((3, 1, 1, 2))
    kernel[:, 0, 0, 0] = (1.0, 5.0, 2.0)
    assert torus_norm(_symbol(kernel)).upper == pytest.approx(5.0, rel=1e-3)
