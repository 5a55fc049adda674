"""What a caller hands over, checked before anything is measured: a target, tensors, a label for each input."""

from __future__ import annotations

from torch import Tensor

from calipers.errors import UsageError
from calipers.target.target import Target

__all__ = ["check_arguments"]


def check_arguments(target: object, x: object, y: object = None) -> None:
    """Check what a method is called with from Python.

    Args:
        target: what should be a classifier.
        x: what should be its inputs (batch, *input_shape).
        y: what should be their labels (batch,); None where a method asks for none.

    Raises:
        UsageError: if one of them is of another type, or there is not one label an input.

    Example:
        >>> import torch
        >>> check_arguments(torch.nn.Identity(), torch.zeros(1, 2))
        Traceback (most recent call last):
        ...
        calipers.errors.UsageError: the classifier is of type Identity: wrap it, Target(module, num_classes=..., ...)
    """
    if not isinstance(target, Target):
        raise UsageError(
            f"the classifier is of type {type(target).__name__}: wrap it, Target(module, num_classes=..., ...)"
        )
    for name, given in (("inputs", x), ("labels", y)):
        if not isinstance(given, Tensor) and (given is not None or name == "inputs"):
            raise UsageError(
                f"the {name} are of type {type(given).__name__}: give a tensor, such as torch.as_tensor(...)"
            )
    if isinstance(x, Tensor) and isinstance(y, Tensor) and len(y) != len(x):
        raise UsageError(f"there are {len(y)} labels for {len(x)} inputs: give one each")
