"""Images that are made outside autograd: the exact values forward, and backward the zeros that are all it knows."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["outside"]


class _Outside(torch.autograd.Function):
    """Values from a program that carries no gradient, kept in the graph of their input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, made: Tensor) -> Tensor:
        return made.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(gradients[0]), None


def outside(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "batch *dims"]
) -> Float[Tensor, "batch *dims"]:
    """Run a program on images as a graph sees a program that it cannot look into: its derivative is 0.

    Args:
        function: from images to images of the same shape; it is run without a graph.
        x: images, float32.

    Returns:
        What the program makes of them, float32, with the gradient 0 everywhere.
    """
    with torch.no_grad():
        made = function(x.detach()).to(x.dtype)
    found: Tensor = _Outside.apply(x, made)  # type: ignore[no-untyped-call]
    return found
