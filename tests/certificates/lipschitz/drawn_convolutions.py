"""Convolutions of torch drawn at random, each with its Jacobian read from torch itself."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

CONVOLUTIONS: dict[tuple[int, bool], Any] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
LONGEST_KERNEL = {1: 7, 2: 7, 3: 3}
LARGEST_SIZE = {1: 12, 2: 7, 3: 4}


class Drawn(NamedTuple):
    """A layer without bias, a spatial size that it takes, and its Jacobian there."""

    module: Any
    size: tuple[int, ...]
    jacobian: np.ndarray


def jacobian(module: nn.Module, channels: int, size: tuple[int, ...]) -> np.ndarray:
    """Read the matrix of a linear layer: one forward pass over a batch of unit vectors, in float64."""
    units = torch.eye(channels * math.prod(size), dtype=torch.float64).reshape(-1, channels, *size)
    with torch.no_grad():
        return module(units).flatten(1).T.numpy()


def _whole(generator: np.random.Generator, low: int, high: int, count: int) -> tuple[int, ...]:
    return tuple(int(value) for value in generator.integers(low, high + 1, size=count))


def _attempt(generator: np.random.Generator) -> Drawn | None:
    axes = int(generator.choice([1, 2, 2, 2, 2, 3]))
    transposed = generator.random() < 0.25
    mode = str(generator.choice(["zeros", "zeros", "circular", "reflect", "replicate"]))
    taps = _whole(generator, 1, LONGEST_KERNEL[axes], axes)
    size = _whole(generator, 1, LARGEST_SIZE[axes], axes)
    stride = _whole(generator, 1, 3, axes)
    dilation = tuple(int(d) for d in generator.choice([1, 1, 1, 2, 3], size=axes))
    groups = int(generator.choice([1, 1, 1, 2, 3]))
    inputs, outputs = (groups * int(n) for n in generator.integers(1, 4, size=2))
    padding: Any = _whole(generator, 0, 3, axes)
    settings: dict[str, Any] = {"stride": stride, "groups": groups, "dilation": dilation, "bias": False}
    if transposed:
        limit = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
        settings["output_padding"] = tuple(int(generator.integers(0, most)) for most in limit)
    else:
        settings["padding_mode"] = mode
        if set(stride) == {1} and generator.random() < 0.4:
            padding = "same"
    try:
        layer = CONVOLUTIONS[axes, transposed](
            inputs, outputs, taps, padding=padding, dtype=torch.float64, **settings
        )
        weight = generator.standard_normal(layer.weight.shape)
        weight = np.abs(weight) if generator.random() < 0.2 else weight
        weight = np.sign(weight) if generator.random() < 0.2 else weight
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
        matrix = jacobian(layer, inputs, size)
    except (RuntimeError, ValueError):  # torch refuses the setting, or the kernel does not fit the input
        return None
    return Drawn(layer, size, matrix) if matrix.size else None


def draw(seed: int, count: int) -> list[Drawn]:
    """Draw layers that torch takes: sizes, strides, paddings, groups, dilations, one to three axes."""
    generator = np.random.default_rng(seed)
    found: list[Drawn] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of "same" with even kernels
        while len(found) < count:
            drawn = _attempt(generator)
            if drawn is not None:
                found.append(drawn)
    return found
