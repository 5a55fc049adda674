"""A pretrained network behind a defense: fed as it was trained, after what the defense makes of an image."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.sources.network import Network

__all__ = ["Normalized"]


@final
class Normalized(nn.Module):
    """A network with the normalization of its inputs, for images in [0, 1].

    A target normalizes before everything else; what stands before the network here wants the image as it is.

    Args:
        network: the network and how it is fed.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        mean, std = network.feeding.normalization()
        self.net = network.net
        self.register_buffer("shift", torch.tensor(mean or (0.0,)).view(1, -1, 1, 1))
        self.register_buffer("scale", torch.tensor(std or (1.0,)).view(1, -1, 1, 1))

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch classes"]:
        """Normalize and classify.

        Args:
            x: images in [0, 1].

        Returns:
            Scores.
        """
        scores: Tensor = self.net((x - self.shift) / self.scale)
        return scores
