"""The Gram matrix of a convolution at a known input size, as a band for the factorization that proves its norm."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from calipers.certificates.lipschitz.convolution import Convolution

__all__ = ["ConvolutionGram"]

_PAIRS = 2**22
"""Entries added to the band at once."""


@final
@dataclass(frozen=True, eq=False)
class ConvolutionGram:
    """One of the two Gram matrices of a convolution with zero padding: its band and its action.

    Unknowns are ordered as ``(group, position, channel)``, positions with the longest axis slowest, so that all
    entries lie within one kernel's reach. Taps of one output read different inputs and the other way round,
    since zero padding copies nothing.

    Args:
        kernel: ``(groups, other channels, own channels, taps)``.
        forward: for each own position and tap the other position, or -1.
        back: for each other position and tap the own position, or -1.
    """

    kernel: NDArray[np.float64] = field(repr=False)
    forward: NDArray[np.int64] = field(repr=False)
    back: NDArray[np.int64] = field(repr=False)

    @staticmethod
    def both(convolution: Convolution, size: tuple[int, ...]) -> tuple[ConvolutionGram, ConvolutionGram]:
        """Prepare both Gram matrices.

        Args:
            convolution: a convolution that pads with zeros, or a transposed one.
            size: spatial size of the inputs.

        Returns:
            That of the long side and that of the short side.
        """
        assert convolution.padding_mode == "zeros"
        long, _ = convolution.long_and_short(size)
        order = sorted(range(len(long)), key=lambda axis: -long[axis])
        maps = [convolution.index(size)[axis] for axis in order]
        kernel = convolution.grouped.transpose(0, 1, 2, *(3 + axis for axis in order))
        kernel = kernel.reshape(*kernel.shape[:3], -1)
        target = np.zeros((1, 1), dtype=np.int64)
        for index, axis in zip(maps, order, strict=True):
            step = target[:, None, :, None] * long[axis] + index[None, :, None, :]
            bad = (target < 0)[:, None, :, None] | (index < 0)[None, :, None, :]
            target = np.where(bad, -1, step).reshape(target.shape[0] * index.shape[0], -1)
        source = np.full((math.prod(long), target.shape[1]), -1, dtype=np.int64)
        position, tap = np.nonzero(target >= 0)
        source[target[position, tap], tap] = position
        return (
            ConvolutionGram(kernel, forward=source, back=target),
            ConvolutionGram(kernel.transpose(0, 2, 1, 3), forward=target, back=source),
        )

    @property
    def unknowns(self) -> int:
        """Number of rows of the Gram matrix."""
        return int(self.kernel.shape[0] * self.forward.shape[0] * self.kernel.shape[2])

    @property
    def width(self) -> int:
        """Number of its diagonals below the main one."""
        top = self.back.max(axis=1)
        bottom = np.where(self.back < 0, np.iinfo(np.int64).max, self.back).min(axis=1)
        reach = int((top - bottom)[top >= 0].max(initial=0))
        return min((reach + 1) * int(self.kernel.shape[2]), self.unknowns) - 1

    def apply(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Multiply a vector by the Gram matrix.

        Args:
            vector: ``(unknowns,)``.

        Returns:
            The product, to the usual accuracy.
        """
        groups, other, own, taps = self.kernel.shape
        there = self.kernel.transpose(0, 3, 2, 1).reshape(groups, taps * own, other)
        here = self.kernel.transpose(0, 3, 1, 2).reshape(groups, taps * other, own)
        start = np.zeros((groups, self.forward.shape[0] + 1, own))
        start[:, :-1] = vector.reshape(groups, -1, own)
        image = np.zeros((groups, self.back.shape[0] + 1, other))
        image[:, :-1] = start[:, self.back].reshape(groups, -1, taps * own) @ there
        return (image[:, self.forward].reshape(groups, -1, taps * other) @ here).ravel()

    def band(self) -> NDArray[np.float64]:
        """Form the lower band.

        Returns:
            ``(width + 1, unknowns)`` in Fortran order: row ``r`` holds the entries ``(i + r, i)``. Each entry is
            a float64 sum of at most taps sums over the other channels.
        """
        groups, _, own, taps = self.kernel.shape
        positions, width = self.forward.shape[0], self.width
        buffer = np.zeros(self.unknowns * (width + 1))
        channel = np.arange(own)
        # Entry (u, v) of the lower triangle stands at v (width + 1) + u - v = v width + u.
        every = (channel[:, None] + width * channel[None, :]).ravel()
        triangle = np.flatnonzero(channel[:, None] >= channel[None, :])
        groups_at = (np.arange(groups) * positions * own * (width + 1))[:, None, None]
        step = max(1, _PAIRS // (groups * own * own))
        for j, i in itertools.product(range(taps), range(taps)):
            shared = (self.back[:, j] >= 0) & (self.back[:, i] >= 0) & (self.back[:, j] >= self.back[:, i])
            if not shared.any():
                continue
            block = np.einsum("goc,god->gcd", self.kernel[..., j], self.kernel[..., i]).reshape(groups, 1, -1)
            chosen = triangle if i == j else np.arange(own * own)
            start = (self.back[shared, j] + width * self.back[shared, i]) * own
            for begin in range(0, len(start), step):
                place = groups_at + start[begin : begin + step, None] + every[chosen]
                buffer[place] += block[..., chosen]
        return buffer.reshape(self.unknowns, width + 1).T
