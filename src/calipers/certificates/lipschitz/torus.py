"""Norms of convolutions on infinite and on circular grids, read from their frequencies."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Symbol", "TorusBound", "circulant_norm", "first_grid", "torus_norm"]

UNIT = float(np.finfo(np.float64).eps) / 2
"""Unit roundoff of float64."""

_CHUNK = 2**21
"""Complex numbers held at once."""

_WIDER = 1 + 1e-12
"""Share by which cells are taken wider than they are, for centres that are rounded."""

_FIRST_GRID = 1e12
"""Most floating-point operations of a grid of 8 points a degree: about a minute."""


class Symbol:
    r"""The matrix of a convolution at each frequency, on the torus.

    On the infinite grid with stride :math:`s` and dilation 1 along an axis, the inputs split into :math:`s` phases, and
    with the taps :math:`j = s a + b` of phase :math:`b`

    .. math:: K(\omega) = \bigl[\, \sum_a K_{sa + b}\, e^{i \omega a} \,\bigr]_b .

    The norm of the operator on the infinite grid is the largest :math:`\|K(\omega)\|_2` over the torus. A
    dilation :math:`d` leaves it that of stride :math:`s / \gcd(s, d)` and dilation 1.

    Args:
        kernel: ``(groups, rows, columns, *k)``, float64.
        stride: stride along each axis.
        dilation: dilation along each axis.
    """

    def __init__(
        self, kernel: NDArray[np.float64], stride: tuple[int, ...], dilation: tuple[int, ...]
    ) -> None:
        groups, rows, columns, *taps = kernel.shape
        self.common = tuple(math.gcd(s, d) for s, d in zip(stride, dilation, strict=True))
        phases = [s // c for s, c in zip(stride, self.common, strict=True)]
        lengths = [-(-k // s) for k, s in zip(taps, phases, strict=True)]
        padded = np.pad(
            kernel, [(0, 0)] * 3 + [(0, q * s - k) for q, s, k in zip(lengths, phases, taps, strict=True)]
        )
        split = padded.reshape(groups, rows, columns, *itertools.chain(*zip(lengths, phases, strict=True)))
        axes = len(taps)
        order = [*(3 + 2 * a for a in range(axes)), 0, 1, 2, *(4 + 2 * a for a in range(axes))]
        self.lengths = tuple(lengths)
        self.degrees = tuple(q - 1 for q in lengths)
        table = split.transpose(order).reshape(math.prod(lengths), groups, rows, columns * math.prod(phases))
        self._table = table if rows <= table.shape[3] else table.transpose(0, 1, 3, 2)
        # Error of one matrix K(omega) in the Frobenius norm: sums of a product of phases and weights, each
        # phase wrong by a few units of its angle, which is below 2 pi times the degree.
        mass = float(np.sqrt(np.square(self._table).sum(axis=(2, 3))).sum(axis=0).max())
        self._error = UNIT * (4 * math.prod(lengths) + 64 * sum(lengths) + 64) * mass

    def cost(self, points: int) -> float:
        """Estimate the work of evaluating norms.

        Args:
            points: number of frequencies.

        Returns:
            Floating-point operations, counted as at the speed of a product of large matrices.
        """
        taps, groups, small, large = self._table.shape
        solve = 12.0 * small * small * large + 1000.0 * small * small if small > 1 else 500.0
        return points * groups * (8.0 * taps * small * large + solve)

    def norms(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bound the norm at each frequency, the largest over the groups.

        Args:
            points: angles, ``(points, axes)``.

        Returns:
            Lower and upper bounds, ``(points,)`` each, that differ by rounding alone.
        """
        taps, groups, small, large = self._table.shape
        step = max(1, _CHUNK // (groups * small * large))
        lower, upper = np.empty(len(points)), np.empty(len(points))
        for start in range(0, len(points), step):
            chosen = points[start : start + step]
            wave = np.ones((len(chosen), 1), dtype=np.complex128)
            for axis, length in enumerate(self.lengths):
                phase = np.exp(1j * chosen[:, axis, None] * np.arange(length))
                wave = (wave[:, :, None] * phase[:, None, :]).reshape(len(chosen), -1)
            flat: NDArray[np.complex128] = wave @ self._table.reshape(taps, -1)
            low, high = _largest(flat.reshape(len(chosen), groups, small, large), self._error)
            lower[start : start + step], upper[start : start + step] = low.max(axis=1), high.max(axis=1)
        return lower, upper


def _largest(matrix: NDArray[np.complex128], error: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Enclose the largest singular value of each wide matrix, itself known up to an error."""
    small, large = matrix.shape[-2:]
    square = np.square(matrix.real).sum(axis=(-2, -1)) + np.square(matrix.imag).sum(axis=(-2, -1))
    if small == 1:
        value = square
    else:
        gram = matrix @ matrix.conj().swapaxes(-1, -2)
        value = np.linalg.eigvalsh(gram)[..., -1]
    slack = 16 * UNIT * (small + large + 8) * square
    lower = np.sqrt(np.maximum(value - slack, 0.0)) * (1 - 4 * UNIT) - error
    upper = np.sqrt(np.maximum(value, 0.0) + slack) * (1 + 4 * UNIT) + error
    return np.maximum(lower, 0.0), upper


class TorusBound(NamedTuple):
    """An upper bound on the norm over the whole torus.

    Args:
        upper: the bound.
        points: points along each axis of a grid as fine as the one the bound rests on.
        peak: the angles of the largest norm that was seen.
    """

    upper: float
    points: tuple[int, ...]
    peak: NDArray[np.float64]


def torus_norm(symbol: Symbol, *, tolerance: float = 1e-4, operations: float = 1.2e10) -> TorusBound:
    r"""Bound the norm of a convolution on the infinite grid, which bounds it for every input size.

    Let :math:`M_i` be the degrees of the symbol, and the largest norm be at :math:`\omega^*`. By M. Riesz's
    inequality for trigonometric polynomials, a point at distance :math:`h_i` along each axis has at least the
    share :math:`\cos(\sum_i M_i h_i / 2)` of it. So among the cells of a grid, those whose centre has less than
    this share of the largest norm seen cannot hold :math:`\omega^*`; the others are halved along each axis,
    and the largest norm at their centres over that cosine is a bound. For a whole grid of :math:`N_i` points
    there is also the product :math:`\prod_i \cos(\pi M_i / 2 N_i)` in place of the cosine of the sum.

    Args:
        symbol: the matrices.
        tolerance: stop when the cosine is within this of 1.
        operations: refine no further than this many floating-point operations in all. The first grid may take
            many more, since a coarser one costs tightness.

    Returns:
        The bound, rounded up.

    Reference:
        M. Riesz 1914, Eine trigonometrische Interpolationsformel; derived for matrices and cells in
        ``docs/theory/lipschitz.md``.
    """
    degrees = np.array(symbol.degrees, dtype=np.float64)
    cells = first_grid(symbol)
    half = np.array([math.pi / n for n in cells]) * _WIDER
    axes = [np.arange(n // 2 + 1 if a == 0 else n) * (2 * math.pi / n) for a, n in enumerate(cells)]
    centres = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    share = math.prod(math.cos(m * h / 2) for m, h in zip(degrees, half, strict=True))
    upper, seen, spent = math.inf, 0.0, 0.0
    peak = centres[0]
    while True:
        spent += symbol.cost(len(centres))
        low, high = symbol.norms(centres)
        if low.max() >= seen:
            seen, peak = float(low.max()), centres[int(low.argmax())]
        upper = min(upper, _over(float(high.max()), share))
        angle = float(degrees @ half) / 2
        # A cell is given up where even the upper bound of its centre is below the share of the lower bound.
        kept = centres[high >= math.cos(angle) * seen * (1 - 8 * UNIT)] if angle < math.pi / 2 else centres
        if angle <= math.sqrt(2 * tolerance) or spent + symbol.cost(len(kept) * 2 ** len(half)) > operations:
            points = tuple(round(math.pi / h) for h in half)
            return TorusBound(upper, points, peak)
        split = degrees > 0
        half = np.where(split, half / 2, half)
        moves = [(-h, h) if way else (0.0,) for h, way in zip(half, split, strict=True)]
        steps = np.array(list(itertools.product(*moves)))
        centres = (kept[:, None, :] + steps[None, :, :]).reshape(-1, len(half))
        share = math.cos(float(degrees @ half) / 2)


def first_grid(symbol: Symbol) -> list[int]:
    """Choose the points of the first grid: 8 a degree, fewer where that would take minutes, never too few.

    Args:
        symbol: the matrices.

    Returns:
        The number of points along each axis.
    """
    cells = [1 for _ in symbol.degrees]
    for each in (8, 4, 2):
        cells = [max(1, each * degree) for degree in symbol.degrees]
        if symbol.cost(math.prod(cells) // 2 + 1) <= _FIRST_GRID:
            break
    return cells


def _over(value: float, share: float) -> float:
    """Divide a bound by a cosine, rounded up (the cosine is wrong by less than 8 units)."""
    return value / (share - 8 * UNIT) * (1 + 4 * UNIT)


def circulant_norm(
    symbol: Symbol, points: tuple[int, ...], *, dilation: tuple[int, ...], turned: tuple[bool, ...] = ()
) -> float:
    r"""Bound the norm of a convolution on a circular grid, at its own frequencies.

    The frequencies are :math:`2 \pi l / N`, or :math:`\pi (2 l + 1) / N` along an axis around which a value
    changes its sign.

    Args:
        symbol: the matrices.
        points: positions of the short side along each axis.
        dilation: dilation along each axis.
        turned: the axes around which a value changes its sign; () for none.

    Returns:
        The largest norm over the frequencies, rounded up.
    """
    axes = [
        (2 * np.arange(n) + turn) * (d // g) % (2 * n) * (math.pi / n)
        for n, turn, d, g in zip(
            points, turned or (False,) * len(points), dilation, symbol.common, strict=True
        )
    ]
    # Real weights: opposite frequencies have the same norm, and the frequencies come in opposite pairs.
    axes[0] = axes[0][: points[0] // 2 + 1]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    return float(symbol.norms(grid)[1].max())
