"""Preprocessing: each channel normalized in float32, then the cast to the number format of the network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from calipers.errors import UsageError

__all__ = ["Preprocessed", "channel_buffers"]


class Preprocessed(nn.Module):
    """Normalization in float32, then the cast, then the network.

    Args:
        net: the network, in its number format.
        shift: subtracted from the inputs, float32 of shape (1, channels or 1, 1, ...); None for no normalization.
        scale: divides them after that, of the same kind of shape; None for no normalization.
        dtype: the number format of the network.
    """

    def __init__(
        self, net: nn.Module, shift: Tensor | None, scale: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.net = net
        self.dtype = dtype
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Compute scores.

        Args:
            x: raw inputs (batch, *input_shape), float32, in input units.

        Returns:
            Scores (batch, columns) in the number format of the network.
        """
        if isinstance(self.shift, Tensor) and isinstance(self.scale, Tensor):
            x = (x - self.shift) / self.scale
        logits: Tensor = self.net(x.to(self.dtype))
        return logits


def channel_buffers(
    mean: Sequence[float] | None, std: Sequence[float] | None, input_shape: Sequence[int]
) -> tuple[Tensor | None, Tensor | None]:
    """Lay out what is subtracted from each channel, and what divides it.

    Args:
        mean: one value for each channel or one for all, in input units; 0 if None.
        std: the same for what divides; 1 if None.
        input_shape: the shape of one input, channels first.

    Returns:
        Both, float32 of shape (1, channels or 1, 1, ...); None twice where neither is given.

    Raises:
        UsageError: if the values do not fit the channels, one is not finite, or one of ``std`` is not above 0.
    """
    if mean is None and std is None:
        return None, None
    channels = input_shape[0]
    rest = (1,) * (len(input_shape) - 1)
    buffers = []
    for word, values, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
        row = [neutral] if values is None else [float(value) for value in values]
        if len(row) not in (1, channels):
            raise UsageError(f"{word} has {len(row)} values for {channels} channels: give 1 or {channels}")
        if not all(math.isfinite(value) for value in row) or (word == "std" and min(row) <= 0):
            raise UsageError(f"{word} is {row}: give finite values, and above 0 for std")
        buffers.append(torch.tensor(row, dtype=torch.float32).view(1, -1, *rest))
    return buffers[0], buffers[1]
