"""Tensors: inputs of a data set as tensors, for those who measure from Python."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.errors import UsageError
from calipers.sources.inputs import Dataset

__all__ = ["Tensors", "read_tensors"]


class Tensors(NamedTuple):
    """Inputs with their labels.

    Args:
        images: float32, in input units, channels first.
        labels: their classes, int64, -1 where one is not known.
    """

    images: Float[Tensor, "batch *dims"]
    labels: Int[Tensor, " batch"]


def read_tensors(data: Dataset, limit: int | None = None) -> Tensors:
    """Read the first inputs of a data set.

    Args:
        data: the data set, or a subset.
        limit: how many at most; all of them if None.

    Returns:
        The inputs and their labels, in order.

    Raises:
        UsageError: if the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}: give at least 1 input")
    rows = [data[place] for place in range(len(data) if limit is None else min(limit, len(data)))]
    images = torch.stack([torch.from_numpy(row.image) for row in rows])
    return Tensors(images, torch.tensor([row.label for row in rows], dtype=torch.int64))
