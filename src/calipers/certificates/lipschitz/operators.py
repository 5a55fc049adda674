"""Linear maps inside a network: their norms, and which of them compose or add into a single one.

A map acts on one input's features in row-major order, so that reshaping them is no map at all. Three kinds suffice:
copies and multiples of features (:class:`Monomial`), a matrix on the last axis (:class:`Dense`), and a convolution
(:class:`Convolved`). Composing rounds; what it may have lost is kept as ``slack``, a bound in each of the l1, l2 and linf
operator norms, and is added to the norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.spectral import NormBound, convolution_norm, matrix_norm
from calipers.threat.threat_model import Norm

__all__ = [
    "ConvolutionMethod",
    "Convolved",
    "Dense",
    "Monomial",
    "Operator",
    "add",
    "compose",
    "up",
]

ConvolutionMethod = Literal["auto", "grid", "exact"]
Array = NDArray[np.float64]

_UNIT: Final = 2.0**-53
"""Half the distance from 1 to the next float64."""

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


def up(value: float, *, operations: int = 8) -> float:
    """Round a positive number up after a few operations of float64.

    Args:
        value: the number that was computed.
        operations: how many roundings, each of a relative half ulp, went into it.

    Returns:
        A number that is at least the true one.
    """
    return (
        math.nextafter(value * (1.0 + 2.0 * operations * _UNIT), math.inf) if value > 0.0 else max(value, 0.0)
    )


@final
@dataclass(frozen=True, eq=False)
class Monomial:
    """Each output is a multiple of one input, or a constant: slices, permutations, padding, scaling by channel.

    Args:
        shape: the shape of one output.
        index: the input that each output copies, in row-major order, of shape ``shape``; -1 for a constant. None
            where output i copies input i.
        factors: what multiplies it, broadcastable to ``shape``; None for 1.
        roundings: how many rounded operations each factor may have seen.
    """

    shape: tuple[int, ...]
    index: NDArray[np.int64] | None = None
    factors: Array | None = None
    roundings: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether every output is its input."""
        return self.index is None and self.factors is None

    def norm(self, norm: Norm, *, method: ConvolutionMethod = "auto") -> NormBound:
        """Find the operator norm, exact but for rounding: the largest weight with which an input is copied.

        Args:
            norm: the norm of inputs and of outputs.
            method: of no concern to this kind.

        Returns:
            An upper bound.
        """
        del method
        text = "copies" if self.factors is None else "scaling"
        if math.prod(self.shape) == 0:
            return NormBound(0.0, text)
        factors = np.ones(()) if self.factors is None else np.abs(self.factors)
        if self.index is None or norm is Norm.LINF:
            kept = factors if self.index is None else np.where(self.index >= 0, factors, 0.0)
            found = float(np.max(kept))
            return NormBound(
                found if self.factors is None else up(found, operations=self.roundings + 4), text
            )
        copied = self.index.ravel() >= 0
        weights = np.broadcast_to(factors, self.shape).ravel()[copied]
        weights = weights**2 if norm is Norm.L2 else weights
        sums = np.bincount(self.index.ravel()[copied], weights=weights)
        most = float(sums.max(initial=0.0))
        found = math.sqrt(most) if norm is Norm.L2 else most
        exact = found == round(found) and self.factors is None
        longest = int(np.bincount(self.index.ravel()[copied]).max(initial=0))
        return NormBound(found if exact else up(found, operations=2 * self.roundings + longest + 8), text)

    def channel_factors(self) -> Array | None:
        """Give one factor a channel (the first axis), where the factors depend on nothing else.

        Returns:
            Factors of shape (channels,), or None where outputs are copied from elsewhere or vary within a channel.
        """
        if self.index is not None:
            return None
        if self.factors is None:
            return np.ones(self.shape[0])
        full = self.factors.reshape((1,) * (len(self.shape) - self.factors.ndim) + self.factors.shape)
        if any(side != 1 for side in full.shape[1:]):
            return None
        return np.broadcast_to(full.reshape(-1), (self.shape[0],))

    def last_factors(self) -> Array | None:
        """Give one factor an entry of the last axis, where the factors depend on nothing else.

        Returns:
            Factors of shape (last,), or None.
        """
        if self.index is not None:
            return None
        if self.factors is None:
            return np.ones(self.shape[-1])
        if any(side != 1 for side in self.factors.shape[:-1]):
            return None
        return np.broadcast_to(self.factors.reshape(-1), (self.shape[-1],))


@final
@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix applied to the last axis of the features.

    Args:
        matrix: weights (outputs, inputs), float64.
        whole: whether the last axis is the only one, so that the matrix is the whole map.
        slack: what rounding may have taken from the operator, in each norm.
    """

    matrix: Array
    whole: bool
    slack: float = 0.0

    def norm(self, norm: Norm, *, method: ConvolutionMethod = "auto") -> NormBound:
        """Bound the operator norm: that of the matrix, however often it is applied.

        Args:
            norm: the norm of inputs and of outputs.
            method: of no concern to this kind.

        Returns:
            An upper bound.
        """
        del method
        text = {Norm.L1: "largest column sum", Norm.LINF: "largest row sum"}.get(norm, "SVD")
        return NormBound(_plus(matrix_norm(self.matrix, norm), self.slack), text)

    @property
    def mass(self) -> float:
        """The larger of the l1 and linf norms of the matrix of magnitudes, which bounds all three norms."""
        size = np.abs(self.matrix)
        return up(float(max(size.sum(0).max(), size.sum(1).max())), operations=max(size.shape) + 2)


@final
@dataclass(frozen=True, eq=False)
class Convolved:
    """A convolution at one input size.

    Args:
        convolution: its linear part.
        size: the spatial size of its inputs.
        slack: what rounding may have taken from the operator, in each norm.
    """

    convolution: Convolution
    size: tuple[int, ...]
    slack: float = 0.0

    def norm(self, norm: Norm, *, method: ConvolutionMethod = "auto") -> NormBound:
        """Bound the operator norm.

        Args:
            norm: the norm of inputs and of outputs.
            method: how l2 norms are found; see :func:`calipers.certificates.lipschitz.spectral.convolution_norm`.

        Returns:
            An upper bound.
        """
        found = convolution_norm(self.convolution, norm, size=self.size, method=method)
        return NormBound(_plus(found.value, self.slack), found.method)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The channels and the spatial size of its outputs."""
        given = self.convolution
        long, short = given.long_and_short(self.size)
        if given.transposed:
            return (given.kernel.shape[1] * given.groups, *long)
        return (given.kernel.shape[0], *short)

    @property
    def mass(self) -> float:
        """A bound on all three norms of the operator with the kernel's magnitudes."""
        kernel = np.abs(self.convolution.grouped)
        axes = tuple(range(3, kernel.ndim))
        sums = kernel.sum(axes)
        copies = math.prod(1 + before + after for before, after in self.convolution.padding)
        if self.convolution.padding_mode == "zeros":
            copies = 1
        most = max(float(sums.sum(1).max()), float(sums.sum(2).max()))
        return up(most * copies, operations=kernel.size + 2)


Operator = Monomial | Dense | Convolved


def _plus(value: float, slack: float) -> float:
    return up(value + slack) if slack else value


def compose(first: Operator, second: Operator) -> Operator | None:
    """Merge a map with the one that follows it, where the result is again of one of the three kinds.

    Scaling by channel goes into a convolution on either side of it, scaling of single features into a matrix, two
    matrices into their product.

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
            factors = first.channel_factors()
            return None if factors is None else _scale_inputs(second, factors, first)
        case Convolved(), Monomial():
            factors = second.channel_factors()
            if factors is None or second.shape != first.output_shape:
                return None
            return _scale_outputs(first, factors, second)
        case Monomial(), Dense():
            factors = first.last_factors()
            if factors is None:
                return None
            return _rescaled(second, second.matrix * factors[None, :], factors, first.roundings)
        case Dense(), Monomial():
            factors = second.last_factors()
            if factors is None or second.shape[-1] != len(first.matrix):
                return None
            return _rescaled(first, first.matrix * factors[:, None], factors, second.roundings)
        case Dense(), Dense():
            return _product(first, second)
        case _:
            return None


def _compose_monomials(first: Monomial, second: Monomial) -> Monomial:
    before = first.factors
    if second.index is None:
        index = None if first.index is None else first.index.reshape(second.shape)
        if before is not None and first.shape != second.shape:
            before = np.broadcast_to(before, first.shape).reshape(second.shape)
    else:
        inside = second.index >= 0
        place = np.where(inside, second.index, 0)
        index = second.index if first.index is None else np.where(inside, first.index.ravel()[place], -1)
        if before is not None:
            before = np.broadcast_to(before, first.shape).ravel()[place]
    both = before is not None and second.factors is not None
    factors = before * second.factors if both else (second.factors if before is None else before)
    return Monomial(second.shape, index, factors, first.roundings + second.roundings + int(both))


def _scale_inputs(conv: Convolved, factors: Array, scaling: Monomial) -> Convolved:
    kernel = conv.convolution.grouped
    split = factors.reshape(len(kernel), -1)
    by = split[:, :, None] if conv.convolution.transposed else split[:, None, :]
    return _rekernelled(conv, kernel * by[(..., *(None,) * (kernel.ndim - 3))], factors, scaling.roundings)


def _scale_outputs(conv: Convolved, factors: Array, scaling: Monomial) -> Convolved:
    kernel = conv.convolution.grouped
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
    return up(slack * largest + 2.0 * (roundings + 2) * _UNIT * mass, operations=roundings + 8)


def _product(first: Dense, second: Dense) -> Dense | None:
    outputs, middle = second.matrix.shape
    inputs = first.matrix.shape[1]
    if middle != len(first.matrix) or float(outputs) * middle * inputs > _CHEAP_PRODUCT:
        return None
    if outputs * inputs > 4 * (outputs * middle + middle * inputs):
        return None  # a bottleneck: the product is far larger than its factors
    a, b = first.mass, second.mass
    error = 2.0 * (middle + 2) * _UNIT * a * b
    slack = up(error + first.slack * (b + second.slack) + second.slack * a)
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
    return replace(summed, slack=up(dense.slack + slack + 2.0 * _UNIT * summed.mass))


def _add_diagonal(dense: Dense, scaling: Monomial, sign: float) -> Dense | None:
    factors = scaling.last_factors()
    if factors is None or dense.matrix.shape != (len(factors), len(factors)):
        return None
    slack = 2.0 * scaling.roundings * _UNIT * float(np.abs(factors).max())
    return _sum(dense, sign * np.diag(factors), slack)


def _negated(conv: Convolved) -> Convolved:
    return replace(conv, convolution=replace(conv.convolution, kernel=-conv.convolution.kernel))


def _add_identity(conv: Convolved, scaling: Monomial, sign: float) -> Convolved | None:
    """Add multiples of the input, channel by channel, as one more tap of the kernel."""
    given = conv.convolution
    factors = scaling.channel_factors()
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
    lost = 2.0 * (scaling.roundings + 2) * _UNIT * (summed.mass + float(np.abs(factors).max()))
    return replace(summed, slack=up(conv.slack + lost))


def _add_kernels(first: Convolved, second: Convolved, sign: float) -> Convolved | None:
    one, other = first.convolution, second.convolution
    if one.kernel.shape != other.kernel.shape or first.size != second.size:
        return None
    if any(getattr(one, name) != getattr(other, name) for name in _GEOMETRY):
        return None
    summed = Convolved(replace(one, kernel=one.kernel + sign * other.kernel), first.size)
    return replace(summed, slack=up(first.slack + second.slack + 2.0 * _UNIT * summed.mass))
