"""The generator of Defense-GAN and the critic that it is trained against, for grey images of 28 x 28."""

from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LATENT", "Critic", "Generator"]

LATENT: Final = 64
"""Coordinates of the generator's input z, which is drawn from a standard normal distribution."""

_SLOPE = 0.2


@final
class Generator(nn.Module):
    """A dense layer to 4 x 4 and three transposed 5 x 5 convolutions, each of which doubles the image.

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, the network for MNIST, which Samangouei et al. 2018
    (arXiv:1805.06605, appendix) take over with 128 latent coordinates and width 64.

    Args:
        latent: coordinates of z.
        width: channels before the last layer; twice and four times as many before that.
    """

    def __init__(self, latent: int = LATENT, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.dense = nn.Linear(latent, 4 * 4 * 4 * width)
        self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 5, stride=2, padding=2, output_padding=0)
        self.up2 = nn.ConvTranspose2d(2 * width, width, 5, stride=2, padding=2, output_padding=1)
        self.up3 = nn.ConvTranspose2d(width, 1, 5, stride=2, padding=2, output_padding=1)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 1 28 28"]:
        """Compute the images of latent points.

        Args:
            z: latent points.

        Returns:
            Images in (0, 1).
        """
        features = functional.relu(self.dense(z)).view(len(z), 4 * self.width, 4, 4)
        features = functional.relu(self.up1(features))
        features = functional.relu(self.up2(features))
        return torch.sigmoid(self.up3(features))


@final
class Critic(nn.Module):
    """Three strided 4 x 4 convolutions and a dense layer to one number.

    It has no normalization, as its gradient at one image must not depend on the others of the batch.

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, section 4 and the network for MNIST.

    Differs from the paper: kernels of 4 x 4 in place of 5 x 5, which halves the time of a step.

    Args:
        width: channels after the first layer.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, width, 4, stride=2, padding=1)
        self.down2 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.down3 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.dense = nn.Linear(3 * 3 * 4 * width, 1)

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, " batch"]:
        """Rate images: higher for those of the data.

        Args:
            x: images.

        Returns:
            One number an image.
        """
        features = functional.leaky_relu(self.down1(x), _SLOPE)
        features = functional.leaky_relu(self.down2(features), _SLOPE)
        features = functional.leaky_relu(self.down3(features), _SLOPE)
        rating: Tensor = self.dense(features.flatten(1))
        return rating[:, 0]
