"""Normalization of training images: what is subtracted from each channel, and what it is divided by."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from calipers.errors import UsageError

__all__ = ["Normalization", "measure_normalization"]

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, one number a channel, in units of [0, 1]."""


def measure_normalization(
    images: Tensor, *, mean: Iterable[float] | None = None, std: Iterable[float] | None = None
) -> Normalization:
    """Measure mean and standard deviation of each channel, or check those that are given.

    What is measured is rounded to four digits, so that the metadata show the number that is used.

    Args:
        images: of shape (n, channels, height, width), uint8 in 0 to 255 or float32 in [0, 1].
        mean: one number a channel, in units of [0, 1]; measured if None.
        std: one number a channel, in units of [0, 1]; measured if None.

    Returns:
        The two.

    Raises:
        UsageError: a number is missing, not finite, or a deviation is not above 0.
    """
    channels = images.shape[1]
    values = []
    for name, given in (("mean", mean), ("std", std)):
        if given is None:
            measured = _moments(images)[0 if name == "mean" else 1]
            values.append(tuple(round(value, 4) for value in measured.tolist()))
        else:
            values.append(tuple(float(value) for value in given))
        if len(values[-1]) != channels:
            raise UsageError(f"{name} has {len(values[-1])} values: give one for each of {channels} channels")
    if not all(math.isfinite(value) for value in values[0]):
        raise UsageError(f"mean is {values[0]}: give finite numbers")
    if not all(math.isfinite(value) and value > 0 for value in values[1]):
        raise UsageError(f"std is {values[1]}: give numbers above 0")
    return values[0], values[1]


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel, in float64, in units of [0, 1]."""
    scale = 1.0 if images.is_floating_point() else 255.0
    first = torch.zeros(images.shape[1], dtype=torch.float64)
    second = first.clone()
    for part in torch.split(images, 1024):
        part64 = part.double()
        first += part64.sum(dim=(0, 2, 3)).cpu()
        second += part64.square().sum(dim=(0, 2, 3)).cpu()
    count = images.numel() / images.shape[1]
    mean = first / count
    return mean / scale, (second / count - mean.square()).clamp(min=0).sqrt() / scale
