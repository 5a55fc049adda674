"""Convolution: the linear part of a convolutional layer, as a kernel and as a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, final, get_args

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from torch import nn

from calipers.errors import UsageError

__all__ = ["Convolution", "PaddingMode", "padded_index", "tap_index"]

PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]

_NUMPY_MODES: dict[str, Literal["wrap", "reflect", "edge"]] = {
    "circular": "wrap",
    "reflect": "reflect",
    "replicate": "edge",
}

_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def padded_index(length: int, padding: tuple[int, int], mode: str) -> NDArray[np.int64]:
    """Say which input each position of one padded axis copies.

    Args:
        length: number of inputs along the axis.
        padding: number of positions added before and after.
        mode: how they are filled: ``zeros``, ``circular``, ``reflect`` or ``replicate``, as torch does it.

    Returns:
        For each of the ``before + length + after`` positions the index of its input, or -1 for a zero.

    Raises:
        UsageError: if torch would not pad so: ``circular`` by more than the length, ``reflect`` by the length
            or more.
    """
    before, after = padding
    most = {"circular": length, "reflect": length - 1}.get(mode, max(before, after))
    if max(before, after) > most:
        raise UsageError(
            f"padding {padding} is too wide for {mode} padding of {length} inputs: at most {most}"
        )
    inputs = np.arange(length, dtype=np.int64)
    if mode == "zeros":
        return np.pad(inputs, padding, constant_values=-1)
    return np.pad(inputs, padding, mode=_NUMPY_MODES[mode])


def tap_index(
    inputs: int, outputs: int, *, taps: int, stride: int, dilation: int, padding: tuple[int, int], mode: str
) -> NDArray[np.int64]:
    """Say which input each tap of the kernel reads for each output, along one axis.

    Args:
        inputs: number of inputs along the axis.
        outputs: number of outputs along the axis.
        taps: length of the kernel.
        stride: step from one output to the next.
        dilation: step from one tap to the next.
        padding: positions before and after.
        mode: how they are filled.

    Returns:
        Indices of shape ``(outputs, taps)``; -1 where the tap reads a zero.
    """
    source = padded_index(inputs, padding, mode)
    position = stride * np.arange(outputs)[:, None] + dilation * np.arange(taps)[None, :]
    inside = (position >= 0) & (position < len(source))
    return np.where(inside, source[np.where(inside, position, 0)], -1)


@final
@dataclass(frozen=True, eq=False)
class Convolution:
    """The linear part of a convolution with one, two or three spatial axes.

    A transposed convolution is the transpose of a convolution with the same kernel, so everything here is said
    of that convolution, from the *long* side (inputs of a convolution, outputs of a transposed one) to the
    *short* side.

    Args:
        kernel: weights in torch's order: ``(out, in / groups, *k)`` for a convolution and
            ``(in, out / groups, *k)`` for a transposed one; float64.
        stride: step from one output to the next, for each axis.
        dilation: step from one tap to the next, for each axis.
        padding: positions added before and after, for each axis (a transposed convolution removes them).
        groups: number of groups of channels that do not mix.
        padding_mode: how the padding is filled.
        transposed: whether it is a transposed convolution.
        output_padding: positions that a transposed convolution adds at the end, for each axis; () for none.

    Raises:
        UsageError: if the fields do not fit together, or a weight is not finite.
    """

    kernel: NDArray[np.float64] = field(repr=False)
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kernel.ndim not in (3, 4, 5) or not self.kernel.size:
            raise UsageError(
                f"kernel has shape {self.kernel.shape}: it is (out, in, *k) with 1 to 3 spatial axes"
            )
        if not np.all(np.isfinite(self.kernel)):
            raise UsageError("kernel holds NaN or infinite weights: no bound can be given")
        axes = self.axes
        given = {"stride": self.stride, "dilation": self.dilation, "padding": self.padding}
        for name, value in given.items():
            if len(value) != axes:
                raise UsageError(f"{name} is {value}: the kernel has {axes} spatial axes")
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(min(pair) for pair in self.padding) < 0:
            raise UsageError(
                f"stride {self.stride}, dilation {self.dilation}, padding {self.padding}: too small"
            )
        if self.groups < 1 or self.kernel.shape[0] % self.groups:
            raise UsageError(f"groups is {self.groups}: it must divide the {self.kernel.shape[0]} channels")
        if self.padding_mode not in get_args(PaddingMode):
            raise UsageError(f"padding_mode is {self.padding_mode!r}: it is one of {get_args(PaddingMode)}")
        if self.transposed and self.padding_mode != "zeros":
            raise UsageError(
                f"padding_mode is {self.padding_mode!r}: a transposed convolution pads with zeros"
            )
        if self.output_padding and (not self.transposed or len(self.output_padding) != axes):
            raise UsageError(f"output_padding is {self.output_padding}: only transposed, one for each axis")

    @staticmethod
    def of(module: nn.Module) -> Convolution:
        """Read a convolution of torch; its bias plays no part.

        Args:
            module: a ``Conv1d``, ``Conv2d``, ``Conv3d`` or one of the three transposed ones.

        Returns:
            The linear part, its weights exactly in float64.

        Raises:
            UsageError: if it is another module, or its weights are complex or not there yet.
        """
        if not isinstance(module, _MODULES):
            raise UsageError(f"{type(module).__name__} is not one of torch's convolutions")
        if isinstance(module.weight, nn.parameter.UninitializedParameter) or module.weight.is_complex():
            raise UsageError(f"{type(module).__name__} has no real weights")
        taps, dilation = module.kernel_size, module.dilation
        if module.padding == "valid":
            padding = tuple((0, 0) for _ in taps)
        elif module.padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
            padding = tuple((extra // 2, extra - extra // 2) for extra in total)
        else:
            padding = tuple((int(p), int(p)) for p in module.padding)
        return Convolution(
            kernel=module.weight.detach().cpu().double().numpy().copy(),
            stride=tuple(module.stride),
            dilation=tuple(dilation),
            padding=padding,
            groups=module.groups,
            padding_mode=module.padding_mode,
            transposed=module.transposed,
            output_padding=tuple(module.output_padding) if module.transposed else (),
        )

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return self.kernel.ndim - 2

    @property
    def taps(self) -> tuple[int, ...]:
        """Length of the kernel along each axis."""
        return self.kernel.shape[2:]

    @property
    def grouped(self) -> NDArray[np.float64]:
        """The kernel as ``(groups, short channels, long channels, *k)``, channels of one group."""
        short, long = self.kernel.shape[:2]
        return self.kernel.reshape(self.groups, short // self.groups, long, *self.taps)

    def long_and_short(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Find the sizes of both sides.

        Args:
            size: spatial size of the inputs.

        Returns:
            The spatial sizes of the long and of the short side: inputs and outputs, or for a transposed
            convolution outputs and inputs.

        Raises:
            UsageError: if the size has other axes than the kernel, or there would be no output.
        """
        if len(size) != self.axes or min(size) < 1:
            raise UsageError(f"input size is {size}: the kernel has {self.axes} spatial axes")
        other = []
        extra = self.output_padding or (0,) * self.axes
        for n, k, s, d, (before, after), more in zip(
            size, self.taps, self.stride, self.dilation, self.padding, extra, strict=True
        ):
            if self.transposed:
                other.append((n - 1) * s - before - after + d * (k - 1) + more + 1)
            else:
                other.append((n + before + after - d * (k - 1) - 1) // s + 1)
        if min(other) < 1:
            raise UsageError(
                f"input size {size} leaves no output ({tuple(other)}) for a kernel of {self.taps}"
            )
        return (tuple(other), size) if self.transposed else (size, tuple(other))

    def index(self, size: tuple[int, ...]) -> list[NDArray[np.int64]]:
        """Say for each axis which position of the long side each tap links to each one of the short side.

        Args:
            size: spatial size of the inputs.

        Returns:
            For each axis the indices of :func:`tap_index`, of shape ``(short, taps)``.
        """
        long, short = self.long_and_short(size)
        return [
            tap_index(
                long[a],
                short[a],
                taps=self.taps[a],
                stride=self.stride[a],
                dilation=self.dilation[a],
                padding=self.padding[a],
                mode=self.padding_mode,
            )
            for a in range(self.axes)
        ]

    def matrix(self, input_size: tuple[int, ...]) -> scipy.sparse.csr_array:
        """Write the operator as a matrix.

        Args:
            input_size: spatial size of the inputs, without the channels.

        Returns:
            The matrix that takes a flattened input of shape ``(channels, *input_size)`` to the flattened output.
            Its entries are weights; where padding copies an input, they are float64 sums of weights.
        """
        long, short = self.long_and_short(input_size)
        maps = self.index(input_size)
        # positions: for each tap (all axes) and each short position, the flat long position or -1
        flat = np.zeros((1, 1), dtype=np.int64)
        valid = np.ones((1, 1), dtype=bool)
        for index, length in zip(maps, long, strict=True):
            step = flat[:, None, :, None] * length + np.maximum(index, 0)[None, :, None, :]
            good = valid[:, None, :, None] & (index >= 0)[None, :, None, :]
            flat = step.reshape(flat.shape[0] * index.shape[0], -1)
            valid = good.reshape(flat.shape)
        position, tap = np.nonzero(valid)
        target = flat[position, tap]
        kernel = self.grouped
        groups, n_short, n_long = kernel.shape[:3]
        n_row, n_column = math.prod(short), math.prod(long)
        weights = kernel.reshape(groups, n_short, n_long, -1)[..., tap]
        row = (np.arange(groups * n_short) * n_row).reshape(groups, n_short, 1, 1) + position
        column = (np.arange(groups * n_long) * n_column).reshape(groups, 1, n_long, 1) + target
        row, column = np.broadcast_to(row, weights.shape), np.broadcast_to(column, weights.shape)
        shape = (groups * n_short * n_row, groups * n_long * n_column)
        entries = (weights.ravel(), (row.ravel(), column.ravel()))
        matrix = scipy.sparse.coo_array(entries, shape=shape)
        return scipy.sparse.csr_array(matrix.T if self.transposed else matrix)
