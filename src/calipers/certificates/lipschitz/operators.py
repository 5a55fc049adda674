"""Linear maps inside a network, and their norms.

A map acts on one input's features in row-major order, so that reshaping them is no map at all. Three kinds suffice:
copies and multiples of features (:class:`Monomial`), a matrix on the last axis (:class:`Dense`), and a convolution
(:class:`Convolved`). Composing rounds; what it may have lost is kept as ``slack``, a bound in each of the l1,
l2 and linf operator norms, and is added to the norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from calipers.certificates.lipschitz.convolution import Convolution, PaddingMode
from calipers.certificates.lipschitz.matrices import matrix_norm, power_of_two
from calipers.certificates.lipschitz.spectral import NormBound, convolution_norm
from calipers.threat.threat_model import Norm

__all__ = [
    "UNIT",
    "ConvolutionMethod",
    "Convolved",
    "Dense",
    "Monomial",
    "Operator",
    "times",
    "underflows",
    "up",
]

ConvolutionMethod = Literal["auto", "grid", "exact"]
Array = NDArray[np.float64]

UNIT: Final = 2.0**-53
"""Half the distance from 1 to the next float64."""

_SMALL: Final = 2.0**-900
"""Least product of weights that are merged: errors of its rounding, and of theirs, are normal floats too."""


def up(value: float, *, operations: int = 8) -> float:
    """Round a positive number up after a few operations of float64.

    Args:
        value: the number that was computed.
        operations: how many roundings, each of a relative half ulp, went into it.

    Returns:
        A number that is at least the true one.
    """
    return (
        math.nextafter(value * (1.0 + 2.0 * operations * UNIT), math.inf) if value > 0.0 else max(value, 0.0)
    )


def times(first: float, second: float) -> float:
    """Multiply two bounds, rounded up; a product of two positive ones is positive.

    Args:
        first: 0 or more.
        second: 0 or more.

    Returns:
        At least the product; exactly it where one of them is 0 or 1.
    """
    if first == 1.0 or second == 0.0:
        return second
    if second == 1.0 or first == 0.0:
        return first
    return up(max(first * second, math.ulp(0.0)))


def underflows(first: Array, second: Array) -> bool:
    """Say whether a product of an entry of one array with one of the other may be rounded to less than a normal float.

    Relative errors bound the rounding of all other products, with room for a factor of 2^-53.

    Args:
        first: weights.
        second: weights.

    Returns:
        True if it may be.
    """
    return _least(first) * _least(second) < _SMALL


def _least(array: Array) -> float:
    size = np.abs(array)
    return float(np.min(size, where=size > 0.0, initial=math.inf))


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
        padding: positions added before and after on each spatial axis and how they are filled, where the index says
            nothing else; None otherwise.
    """

    shape: tuple[int, ...]
    index: NDArray[np.int64] | None = None
    factors: Array | None = None
    roundings: int = 0
    padding: tuple[tuple[tuple[int, int], ...], PaddingMode] | None = None

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
        # so that squares neither vanish nor overflow
        scale = 1.0 if self.factors is None else power_of_two(weights)
        weights = weights / scale
        weights = weights**2 if norm is Norm.L2 else weights
        sums = np.bincount(self.index.ravel()[copied], weights=weights)
        most = float(sums.max(initial=0.0))
        found = math.sqrt(most) if norm is Norm.L2 else most
        exact = found == round(found) and self.factors is None
        longest = int(np.bincount(self.index.ravel()[copied]).max(initial=0))
        raised = found if exact else up(found, operations=2 * self.roundings + longest + 8)
        return NormBound(times(raised, scale), text)

    def channel_factors(self) -> Array | None:
        """Give one factor a channel (the first axis), where the factors depend on nothing else.

        Returns:
            Factors of shape (channels,), or None where outputs are copied from elsewhere (by more than padding) or
            vary within a channel.
        """
        if self.index is not None and self.padding is None:
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
