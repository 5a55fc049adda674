"""Merging: which linear maps of features compose, or add, into a single one; what rounding takes is kept as slack."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from calipers.certificates.lipschitz.operators import (
    UNIT,
    Array,
    Convolved,
    Dense,
    Monomial,
    Operator,
    times,
    underflows,
    up,
)

__all__ = ["add", "compose"]

_GEOMETRY: Final = (
    "stride",
    "dilation",
    "padding",
    "groups",
    "padding_mode",
    "transposed",
    "output_padding",
)
"""What two convolutions must share so that their kernels add."""

_CHEAP_PRODUCT: Final = 4e9
"""Multiplications up to which two matrices are merged into one."""


def compose(first: Operator, second: Operator) -> Operator | None:
    """Merge a map with the one that follows it, where the result is again of one of the three kinds.

    Scaling by channel goes into a convolution on either side of it, scaling of single features into a matrix, two
    matrices into their product. Weights whose products may underflow stay apart, since what they lose is not relative.

    Args:
        first: the map that is applied first.
        second: the map that is applied to its outputs.

    Returns:
        The composition, or None where it has no such form.
    """
    if not isinstance(second, Monomial) and isinstance(first, Monomial) and first.is_identity:
        return second
    if not isinstance(first, Monomial) and isinstance(second, Monomial) and second.is_identity:
        return first
    match first, second:
        case Monomial(), Monomial():
            return _compose_monomials(first, second)
        case Monomial(), Convolved():
            return _after_scaling(first, second)
        case Convolved(), Monomial():
            factors = None if second.index is not None else second.channel_factors()
            if factors is None or second.shape != first.output_shape:
                return None
            return _scale_outputs(first, factors, second)
        case Monomial(), Dense():
            factors = first.last_factors()
            if factors is None or underflows(factors, second.matrix):
                return None
            return _rescaled(second, second.matrix * factors[None, :], factors, first.roundings)
        case Dense(), Monomial():
            factors = second.last_factors()
            if factors is None or second.shape[-1] != len(first.matrix) or underflows(factors, first.matrix):
                return None
            return _rescaled(first, first.matrix * factors[:, None], factors, second.roundings)
        case Dense(), Dense():
            return _product(first, second)
        case _:
            return None


def _compose_monomials(first: Monomial, second: Monomial) -> Monomial | None:
    if first.is_identity:
        return second
    before = first.factors
    if before is not None and second.factors is not None and underflows(before, second.factors):
        return None
    if second.index is None:
        index = None if first.index is None else first.index.reshape(second.shape)
        if before is not None and first.shape != second.shape:
            before = np.broadcast_to(before, first.shape).reshape(second.shape)
    else:
        by_channel = first.channel_factors()
        if (
            second.padding is not None
            and first.index is None
            and by_channel is not None
            and before is not None
        ):
            wide = by_channel.reshape(
                -1, *(1,) * (len(second.shape) - 1)
            )  # padding fills each channel by itself
            return replace(second, factors=wide, roundings=first.roundings)
        inside = second.index >= 0
        place = np.where(inside, second.index, 0)
        index = second.index if first.index is None else np.where(inside, first.index.ravel()[place], -1)
        if before is not None:
            before = np.broadcast_to(before, first.shape).ravel()[place]
    roundings = first.roundings + second.roundings
    if before is None or second.factors is None:
        return Monomial(second.shape, index, second.factors if before is None else before, roundings)
    return Monomial(second.shape, index, before * second.factors, roundings + 1)


def _after_scaling(first: Monomial, second: Convolved) -> Convolved | None:
    """Put the scaling of channels, and padding, into the convolution that follows."""
    factors = first.channel_factors()
    if factors is None:
        return None
    padded = second
    if first.padding is not None:
        around, mode = first.padding
        given = second.convolution
        plain = not any(max(pair) for pair in given.padding)
        if given.transposed or given.padding_mode != "zeros" or not (plain or mode == "zeros"):
            return None
        total = tuple((a + c, b + d) for (a, b), (c, d) in zip(around, given.padding, strict=True))
        size = tuple(n - a - b for n, (a, b) in zip(second.size, around, strict=True))
        padded = replace(second, convolution=replace(given, padding=total, padding_mode=mode), size=size)
    return padded if first.factors is None else _scale_inputs(padded, factors, first)


def _scale_inputs(conv: Convolved, factors: Array, scaling: Monomial) -> Convolved | None:
    kernel = conv.convolution.grouped
    if underflows(factors, kernel):
        return None
    split = factors.reshape(len(kernel), -1)
    by = split[:, :, None] if conv.convolution.transposed else split[:, None, :]
    return _rekernelled(conv, kernel * by[(..., *(None,) * (kernel.ndim - 3))], factors, scaling.roundings)


def _scale_outputs(conv: Convolved, factors: Array, scaling: Monomial) -> Convolved | None:
    kernel = conv.convolution.grouped
    if underflows(factors, kernel):
        return None
    split = factors.reshape(len(kernel), -1)
    by = split[:, None, :] if conv.convolution.transposed else split[:, :, None]
    return _rekernelled(conv, kernel * by[(..., *(None,) * (kernel.ndim - 3))], factors, scaling.roundings)


def _rekernelled(conv: Convolved, kernel: Array, factors: Array, roundings: int) -> Convolved:
    shape = conv.convolution.kernel.shape
    scaled = Convolved(replace(conv.convolution, kernel=kernel.reshape(shape)), conv.size)
    return replace(scaled, slack=_scaled_slack(conv.slack, factors, scaled.mass, roundings))


def _rescaled(dense: Dense, matrix: Array, factors: Array, roundings: int) -> Dense:
    scaled = Dense(matrix, dense.whole)
    return replace(scaled, slack=_scaled_slack(dense.slack, factors, scaled.mass, roundings))


def _scaled_slack(slack: float, factors: Array, mass: float, roundings: int) -> float:
    """Bound the error of a scaled map: the old one, scaled, and a relative one in each entry."""
    largest = float(np.abs(factors).max())
    return up(times(slack, largest) + 2.0 * (roundings + 2) * UNIT * mass, operations=roundings + 8)


def _product(first: Dense, second: Dense) -> Dense | None:
    outputs, middle = second.matrix.shape
    inputs = first.matrix.shape[1]
    if middle != len(first.matrix) or float(outputs) * middle * inputs > _CHEAP_PRODUCT:
        return None
    if outputs * inputs > 4 * (outputs * middle + middle * inputs):
        return None  # a bottleneck: the product is far larger than its factors
    if underflows(first.matrix, second.matrix):
        return None
    a, b = first.mass, second.mass
    error = 2.0 * (middle + 2) * UNIT * a * b
    slack = up(error + times(first.slack, up(b + second.slack)) + times(second.slack, a))
    return Dense(second.matrix @ first.matrix, first.whole, slack)


def add(first: Operator, second: Operator, *, sign: float = 1.0) -> Operator | None:
    """Merge the sum (or difference) of two maps of the same features, where it is again of one kind.

    Args:
        first: a map.
        second: another one, of the same inputs and the same shape of outputs.
        sign: what multiplies the second one: 1 or -1.

    Returns:
        The sum, or None where it has no such form.
    """
    match first, second:
        case Monomial(), Monomial():
            return _add_monomials(first, second, sign)
        case Convolved(), Monomial():
            return _add_identity(first, second, sign)
        case Monomial(), Convolved():
            found = _add_identity(second, first, sign)
            return found if found is None or sign > 0 else _negated(found)
        case Convolved(), Convolved():
            return _add_kernels(first, second, sign)
        case Dense(), Dense() if first.matrix.shape == second.matrix.shape and first.whole == second.whole:
            return _sum(first, second.matrix * sign, second.slack)
        case Dense(), Monomial():
            return _add_diagonal(first, second, sign)
        case Monomial(), Dense():
            summed = _add_diagonal(second, first, sign)
            return summed if summed is None or sign > 0 else replace(summed, matrix=-summed.matrix)
        case _:
            return None


def _sum(dense: Dense, other: Array, slack: float) -> Dense:
    summed = Dense(dense.matrix + other, dense.whole)
    return replace(summed, slack=up(dense.slack + slack + 2.0 * UNIT * summed.mass))


def _add_diagonal(dense: Dense, scaling: Monomial, sign: float) -> Dense | None:
    factors = scaling.last_factors()
    if factors is None or dense.matrix.shape != (len(factors), len(factors)):
        return None
    slack = 2.0 * scaling.roundings * UNIT * float(np.abs(factors).max())
    return _sum(dense, sign * np.diag(factors), slack)


def _negated(conv: Convolved) -> Convolved:
    return replace(conv, convolution=replace(conv.convolution, kernel=-conv.convolution.kernel))


def _add_identity(conv: Convolved, scaling: Monomial, sign: float) -> Convolved | None:
    """Add multiples of the input, channel by channel, as one more tap of the kernel."""
    given = conv.convolution
    factors = None if scaling.index is not None else scaling.channel_factors()
    if factors is None or given.transposed or any(side != 1 for side in given.stride):
        return None
    outputs, share = given.kernel.shape[:2]
    if outputs != share * given.groups or scaling.shape != (outputs, *conv.size):
        return None
    taps = []
    for (before, _), dilation, length in zip(given.padding, given.dilation, given.taps, strict=True):
        tap, rest = divmod(before, dilation)
        if rest or tap >= length:
            return None
        taps.append(tap)
    if given.long_and_short(conv.size)[1] != conv.size:
        return None
    kernel = given.kernel.copy()
    channels = np.arange(outputs)
    kernel[(channels, channels % share, *taps)] += sign * factors
    summed = Convolved(replace(given, kernel=kernel), conv.size)
    lost = 2.0 * (scaling.roundings + 2) * UNIT * (summed.mass + float(np.abs(factors).max()))
    return replace(summed, slack=up(conv.slack + lost))


def _add_monomials(first: Monomial, second: Monomial, sign: float) -> Monomial | None:
    """Add multiples of the same features. Where they cancel, the rounding of a factor is no relative one: refused."""
    alike = first.index is second.index
    if first.index is not None and second.index is not None:
        alike = np.array_equal(first.index, second.index)
    if first.shape != second.shape or not alike:
        return None
    one = np.ones(()) if first.factors is None else first.factors
    other = np.ones(()) if second.factors is None else second.factors
    other = sign * other
    rounded = first.roundings + second.roundings
    if rounded and bool((np.sign(one) * np.sign(other) < 0).any()):
        return None
    return Monomial(first.shape, first.index, one + other, max(first.roundings, second.roundings) + 1)


def _add_kernels(first: Convolved, second: Convolved, sign: float) -> Convolved | None:
    one, other = first.convolution, second.convolution
    if one.kernel.shape != other.kernel.shape or first.size != second.size:
        return None
    if any(getattr(one, name) != getattr(other, name) for name in _GEOMETRY):
        return None
    summed = Convolved(replace(one, kernel=one.kernel + sign * other.kernel), first.size)
    return replace(summed, slack=up(first.slack + second.slack + 2.0 * UNIT * summed.mass))
