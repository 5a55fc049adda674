"""Upper bounds on the norms of linear layers, in float64 and rounded up."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calipers.certificates.lipschitz.cholesky import UNIT, lanczos, prove_banded
from calipers.certificates.lipschitz.convolution import Convolution, PaddingMode, padded_index
from calipers.certificates.lipschitz.gram import ConvolutionGram
from calipers.certificates.lipschitz.matrices import (
    BAND_ENTRIES,
    DENSE_SIDE,
    SVD_SIDE,
    operator_norm,
    power_of_two,
    unscaled,
)
from calipers.certificates.lipschitz.torus import Symbol, circulant_norm, first_grid, torus_norm
from calipers.errors import UsageError
from calipers.threat.threat_model import Norm

__all__ = ["NormBound", "convolution_norm", "pad_norm"]

Method = Literal["auto", "grid", "exact"]

_AUTO_OPERATIONS = 1.2e10
"""Floating-point operations that take about a second."""

_EXACT_OPERATIONS = 2e12
"""Those that are still tried when the exact norm is asked for."""


_SUMMED_ENTRIES = 2e6
"""Most entries of a matrix that is written to add up its rows or columns."""


class NormBound(NamedTuple):
    """An upper bound on the norm of a linear operator.

    Args:
        value: the bound, output per input, rounded up.
        method: what proved it, in words.
    """

    value: float
    method: str


def pad_norm(
    size: tuple[int, ...] | None,
    padding: tuple[tuple[int, int], ...],
    mode: PaddingMode,
    norm: Norm = Norm.L2,
) -> float:
    """Bound the norm of a padding, whose matrix copies inputs and writes zeros.

    Args:
        size: spatial size of the inputs; None for every size.
        padding: positions added before and after, for each axis.
        mode: how they are filled.
        norm: l1, l2 or linf.

    Returns:
        The product over the axes of the largest number of copies of one input (l1), of its square root (l2),
        or 1 (linf), rounded up.

    Raises:
        UsageError: if the norm is l0.
    """
    if norm is Norm.L0:
        raise UsageError("norm is l0: operator norms are given in l1, l2 and linf")
    if norm is Norm.LINF or mode == "zeros":
        return 1.0
    copies = 1
    for axis, (before, after) in enumerate(padding):
        if size is not None:
            copies *= int(np.bincount(padded_index(size[axis], (before, after), mode)).max())
        elif mode == "replicate":
            copies *= 1 + before + after
        else:
            copies *= 1 + (before > 0) + (after > 0)
    return float(copies) if norm is Norm.L1 else math.sqrt(copies) * (1 + 2 * UNIT)


def convolution_norm(
    convolution: Convolution,
    norm: Norm,
    *,
    size: tuple[int, ...] | None = None,
    method: Method = "auto",
) -> NormBound:
    """Bound the operator norm of a convolution, from one norm to the same norm.

    Args:
        convolution: the layer's linear part.
        norm: l1, l2 or linf; l1 and linf are exact with zero padding at a known size.
        size: spatial size of its inputs; None for a bound that holds for every size.
        method: ``"grid"`` reads frequencies and writes no matrix. ``"exact"`` proves the norm at the known size
            within 0.1 % by a factorization. ``"auto"`` is exact where that takes about a second. Where a method
            cannot be used, or is too dear, the next looser one is, and the answer says which.

    Returns:
        The bound and what proved it.

    Raises:
        UsageError: if the norm is l0, or the size does not fit the convolution.
    """
    if norm is Norm.L0:
        raise UsageError("norm is l0: operator norms are given in l1, l2 and linf")
    if size is not None:
        convolution.long_and_short(size)
    if not np.any(convolution.kernel):
        return NormBound(0.0, "all weights are 0")
    scale = power_of_two(convolution.kernel)
    scaled = _scaled(convolution, scale)
    if norm is not Norm.L2:
        value, words = _sums(scaled, norm, size)
        return NormBound(unscaled(value, scale), words)
    exact = None if size is None or method == "grid" else _exact(scaled, size, method)
    value, words = _grid(scaled, size) if exact is None else exact
    return NormBound(unscaled(value, scale), words)


def _scaled(convolution: Convolution, scale: float) -> Convolution:
    return Convolution(
        kernel=convolution.kernel / scale,
        stride=convolution.stride,
        dilation=convolution.dilation,
        padding=convolution.padding,
        groups=convolution.groups,
        padding_mode=convolution.padding_mode,
        transposed=convolution.transposed,
        output_padding=convolution.output_padding,
    )


def _sums(convolution: Convolution, norm: Norm, size: tuple[int, ...] | None) -> NormBound:
    """Bound the l1 or linf norm: the largest sum of magnitudes in a column or in a row."""
    of_short = (norm is Norm.LINF) != convolution.transposed
    magnitude = np.abs(convolution.grouped)
    total = magnitude.sum(axis=2 if of_short else 1)
    for axis in range(convolution.axes):
        links = _links(convolution, axis, of_short, size)
        total = np.tensordot(total, links, axes=(2, 1))
    value = float(total.max()) * (1 + 4 * UNIT * (magnitude[0].size + 8))
    if size is None:
        return NormBound(value, "sums of magnitudes, any size")
    if convolution.padding_mode == "zeros":
        return NormBound(value, f"exact at {_times(size)}")
    _, short = convolution.long_and_short(size)
    if convolution.kernel.size * math.prod(short) <= _SUMMED_ENTRIES:
        # Where padding copies an input, weights of both signs may meet in one entry.
        rounding = 4 * UNIT * math.prod(convolution.taps) * value
        summed = operator_norm(convolution.matrix(size), norm) + rounding
        return NormBound(min(value, summed), f"exact at {_times(size)}")
    return NormBound(value, f"sums of magnitudes, at {_times(size)}")


def _links(
    convolution: Convolution, axis: int, of_short: bool, size: tuple[int, ...] | None
) -> NDArray[np.float64]:
    """Count for each kind of position along an axis how often each tap links it: ``(kinds, taps)``."""
    taps, stride, dilation = (v[axis] for v in (convolution.taps, convolution.stride, convolution.dilation))
    if size is not None:
        index = convolution.index(size)[axis]
        if of_short:
            return np.unique(index >= 0, axis=0).astype(np.float64)
        long = convolution.long_and_short(size)[0][axis]
        counts = np.zeros((long, taps))
        row, tap = np.nonzero(index >= 0)
        np.add.at(counts, (index[row, tap], tap), 1.0)
        return np.unique(counts, axis=0)
    if of_short:
        return np.ones((1, taps))
    residue = dilation * np.arange(taps) % stride
    copies = pad_norm(None, (convolution.padding[axis],), convolution.padding_mode, Norm.L1)
    if copies > 1:
        return np.full((1, taps), copies)
    return np.array(residue[None, :] == np.arange(stride)[:, None], dtype=np.float64)


def _exact(convolution: Convolution, size: tuple[int, ...], method: Method) -> NormBound | None:
    """Prove the norm at a known size, or return None where that is not possible or too dear."""
    where = f"exact at {_times(size)}"
    long, short = convolution.long_and_short(size)
    inputs, outputs = (
        convolution.kernel.shape[1] * convolution.groups * math.prod(long),
        convolution.kernel.shape[0] * math.prod(short),
    )
    budget = _AUTO_OPERATIONS if method == "auto" else _EXACT_OPERATIONS
    dense = min(inputs, outputs) <= SVD_SIDE // 2 and inputs * outputs <= BAND_ENTRIES / 100
    if dense:
        return NormBound(_matrix_l2(convolution, size), f"{where} (SVD)")
    if convolution.padding_mode != "zeros":
        circular = _circular(convolution, size) if convolution.padding_mode == "circular" else None
        if circular is not None and circular[1]:
            return NormBound(circular[0], f"{where} (frequencies)")
        if min(inputs, outputs) <= (SVD_SIDE * 2 if method == "auto" else DENSE_SIDE):
            return NormBound(_matrix_l2(convolution, size), f"{where} (Cholesky)")
        return None
    chosen = min(ConvolutionGram.both(convolution, size), key=lambda g: g.unknowns * (g.width + 1.0) ** 2)
    entries = chosen.unknowns * (chosen.width + 1.0)
    if entries > BAND_ENTRIES or entries * (chosen.width + 1) > budget:
        return None
    estimate = lanczos(chosen.apply, chosen.unknowns)
    one, infinity = (_sums(convolution, norm, size).value for norm in (Norm.L1, Norm.LINF))
    terms = chosen.kernel.shape[1] + chosen.kernel.shape[3] + 8
    value = prove_banded(chosen.band, estimate, formed=4 * UNIT * terms * one * infinity)
    return NormBound(value, f"{where} (Cholesky)") if math.isfinite(value) else None


def _matrix_l2(convolution: Convolution, size: tuple[int, ...]) -> float:
    """Bound the norm by that of the matrix, and the rounding of the sums of weights that padding makes in it."""
    value = operator_norm(convolution.matrix(size), Norm.L2)
    if convolution.padding_mode == "zeros":
        return value
    one, infinity = (_sums(convolution, norm, None).value for norm in (Norm.L1, Norm.LINF))
    return value + 4 * UNIT * math.prod(convolution.taps) * math.sqrt(one * infinity)


def _grid(convolution: Convolution, size: tuple[int, ...] | None) -> NormBound:
    """Bound the norm from frequencies: over the torus times the padding's norm, or on the circle itself."""
    symbol = Symbol(convolution.grouped, convolution.stride, convolution.dilation)
    split = any(s > c for s, c in zip(convolution.stride, symbol.common, strict=True))
    phases = "polyphase " if split else ""
    circles = _circles(convolution, symbol, size) if size and convolution.padding_mode == "zeros" else None
    if circles is not None and symbol.cost(math.prod(circles.points)) > _AUTO_OPERATIONS:
        return NormBound(circles.upper, f"{phases}twisted circles {_times(circles.points)}")
    torus = torus_norm(symbol)
    words = f"{phases}grid {_times(torus.points)}" if any(symbol.degrees) else "matrix of the kernel"
    if convolution.padding_mode == "zeros":
        if circles is not None and circles.upper < torus.upper:
            return NormBound(circles.upper, f"{phases}twisted circles {_times(circles.points)}")
        return NormBound(torus.upper, words)
    copies = pad_norm(size, convolution.padding, convolution.padding_mode)
    value = torus.upper * copies * (1 + 2 * UNIT)
    if copies > 1:
        words = f"{words}, times {copies:.3f} for {convolution.padding_mode} padding"
    circular = _circular(convolution, size) if convolution.padding_mode == "circular" and size else None
    if circular is not None and circular[0] <= value:
        return NormBound(circular[0], f"frequencies at {_times(size or ())}")
    return NormBound(value, words)


class _Circles(NamedTuple):
    """A bound from circular grids, and their size."""

    upper: float
    points: tuple[int, ...]


def _circles(convolution: Convolution, symbol: Symbol, size: tuple[int, ...]) -> _Circles | None:
    """Bound the norm with zero padding by those on the smallest circles that hold it without overlap."""
    long, short = convolution.long_and_short(size)
    points = []
    for a in range(convolution.axes):
        before, reach = convolution.padding[a][0], convolution.dilation[a] * (convolution.taps[a] - 1)
        last = (long[a] - 1 + before, reach - before + convolution.stride[a] * (short[a] - 1))
        points.append(max(last) // convolution.stride[a] + 1)
    turns = list(itertools.product((False, True), repeat=convolution.axes))
    work = symbol.cost(len(turns) * math.prod(points) // 2)
    most = max(_AUTO_OPERATIONS / 2, 1.5 * symbol.cost(math.prod(first_grid(symbol)) // 2))
    if not any(symbol.degrees) or work > most:
        return None
    circles = tuple(points)
    norms = (
        circulant_norm(symbol, circles, dilation=convolution.dilation, turned=turned) for turned in turns
    )
    return _Circles(min(norms), circles)


def _circular(convolution: Convolution, size: tuple[int, ...]) -> tuple[float, bool]:
    """Bound the norm with circular padding from the frequencies of the circle, and say whether it is exact."""
    # Along each axis the outputs are rows of a circulant matrix, of the stride where it divides the length, else
    # of stride 1; a row that occurs m times adds a factor of the square root of m.
    _, short = convolution.long_and_short(size)
    strides, points, repeats, exact = [], [], 1, True
    for n, outputs, stride in zip(size, short, convolution.stride, strict=True):
        step = stride if n % stride == 0 else 1
        rows = np.bincount(np.arange(outputs) * (stride // step) % (n // step), minlength=n // step)
        strides.append(step)
        points.append(n // step)
        repeats *= int(rows.max())
        exact &= bool(np.all(rows == 1))
    symbol = Symbol(convolution.grouped, tuple(strides), convolution.dilation)
    if symbol.cost(math.prod(points)) > 2 * _AUTO_OPERATIONS:
        return math.inf, False
    largest = circulant_norm(symbol, tuple(points), dilation=convolution.dilation)
    return largest * math.sqrt(repeats) * (1 + 4 * UNIT), exact


def _times(size: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in size)
