"""PixelCNN: the density of grey images as a product over pixels in raster order, by masked convolutions."""

import math
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LEVELS", "NARROWEST", "CausalConv", "PixelCNN", "ResidualBlock", "log_masses", "nats"]

LEVELS: Final = 256
NARROWEST: Final = -6.0
"""The least log scale of a logistic, in units in which the range of the image is [-1, 1]."""


@final
class CausalConv(nn.Module):
    """A convolution that sees the pixels above and to the left: the upper half of a square kernel.

    Mask A leaves the pixel itself out, mask B keeps it. Only the rows of the kernel that are used are stored; what is
    masked of the last of them is multiplied by zero.

    Reference: van den Oord et al. 2016, arXiv:1601.06759, section 3.4.

    Args:
        before: channels of the input.
        after: channels of the output.
        side: of the square kernel, odd.
        itself: whether the pixel itself is seen (mask B).
    """

    mask: Tensor

    def __init__(self, before: int, after: int, side: int, *, itself: bool) -> None:
        super().__init__()
        self.reach = side // 2
        mask = torch.ones(self.reach + 1, side)
        mask[-1, self.reach + int(itself) :] = 0
        fan = before * float(mask.sum())
        self.weight = nn.Parameter(torch.empty(after, before, *mask.shape).uniform_(-1, 1) * fan**-0.5)
        self.bias = nn.Parameter(torch.zeros(after))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Float[Tensor, "batch before h w"]) -> Float[Tensor, "batch after h w"]:
        """Convolve, with zeros around the image."""
        reach = self.reach
        padded = functional.pad(x, (reach, reach, reach, 0))
        return functional.conv2d(padded, self.weight * self.mask, self.bias)


@final
class ResidualBlock(nn.Module):
    """Half the channels, a masked 3 x 3 convolution, all channels again, around a shortcut.

    Reference: van den Oord et al. 2016, arXiv:1601.06759, figure 5.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, channels // 2, 1)
        self.causal = CausalConv(channels // 2, channels // 2, 3, itself=True)
        self.widen = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Add what the three convolutions make of the input to it."""
        inner: Tensor = self.narrow(functional.relu(x))
        inner = self.causal(functional.relu(inner))
        wide: Tensor = self.widen(functional.relu(inner))
        return x + wide


@final
class PixelCNN(nn.Module):
    r"""The distribution of each pixel given those before it: a mixture of logistics over the 256 levels.

    The mass of level u is that of the interval of half a level to both sides of it, with all that is beyond the ends at
    levels 0 and 255. It stands in for a softmax over 256 levels because neighbouring levels share what is learnt, so
    that a few passes over the data give a usable density.

    Reference: van den Oord et al. 2016, arXiv:1601.06759; Salimans et al. 2017, arXiv:1701.05517, section 2.1, for the
    mixture.

    Args:
        channels: of every block, even.
        blocks: residual blocks after the first, 7 x 7 convolution; each lets a pixel see one row further.
        mixtures: logistics a pixel.
    """

    def __init__(self, channels: int = 64, blocks: int = 6, mixtures: int = 5) -> None:
        super().__init__()
        self.first = CausalConv(1, channels, 7, itself=False)
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))
        self.hidden = nn.Conv2d(channels, channels, 1)
        self.last = nn.Conv2d(channels, 3 * mixtures, 1)

    def forward(self, x: Float[Tensor, "batch 1 h w"]) -> Float[Tensor, "batch parameters h w"]:
        """Compute the parameters of each pixel's mixture.

        Args:
            x: images in [0, 1].

        Returns:
            Log weights (not normalized), means and log scales, a third of the channels each; means and scales in units
            in which the range of the image is [-1, 1].
        """
        parameters: Tensor = self.last(self.features(x))
        return parameters

    def features(self, x: Float[Tensor, "batch 1 h w"]) -> Float[Tensor, "batch channels h w"]:
        """Compute what the last layer sees.

        Args:
            x: images in [0, 1].

        Returns:
            Features of each pixel, from the pixels before it.
        """
        features: Tensor = self.first(2 * x - 1)
        for block in self.blocks:
            features = block(features)
        return functional.relu(self.hidden(functional.relu(features)))


def log_masses(
    parameters: Float[Tensor, "rows parameters"], lowest: Int[Tensor, " rows"], *, count: int
) -> Float[Tensor, "rows count"]:
    r"""Compute the log mass of neighbouring levels under mixtures of logistics.

    With a the upper and b the lower end of a level's interval in units of the scale, no digits cancel in
    :math:`\sigma(a) - \sigma(b) = \sigma(a)\,\sigma(-b)\,(1 - e^{b - a})` .

    Args:
        parameters: of one mixture a row, as :class:`PixelCNN` gives them along axis 1.
        lowest: the first level of each row.
        count: how many levels; of those outside 0 to 255 there is none.

    Returns:
        Natural logarithms, minus infinity outside 0 to 255.
    """
    weights, means, scales = parameters[:, :, None].chunk(3, dim=1)
    scales = scales.clamp_min(NARROWEST)
    steps = torch.arange(count + 1, device=parameters.device)
    level = lowest[:, None] + steps
    place = (2 * level.to(parameters.dtype) - LEVELS) / (LEVELS - 1)
    ends = (place[:, None] - means) * torch.exp(-scales)
    # the logarithm of sigma at the ends, and that of sigma at their opposites: one less the end
    left = functional.logsigmoid(ends)
    right = left - ends
    width = 2 / (LEVELS - 1) * torch.exp(-scales)
    within = torch.log(-torch.expm1(-width))
    level = level[:, None, :-1]
    inner = left[..., 1:] + right[..., :-1] + within
    logs = torch.where(level == 0, left[..., 1:], torch.where(level == LEVELS - 1, right[..., :-1], inner))
    mixed = torch.logsumexp(logs + torch.log_softmax(weights, dim=1), dim=1)
    return mixed.masked_fill((level[:, 0] < 0) | (level[:, 0] >= LEVELS), -math.inf)


def nats(
    parameters: Float[Tensor, "batch parameters h w"], x: Float[Tensor, "batch 1 h w"]
) -> Float[Tensor, " batch"]:
    """Compute the negative log likelihood of images, in nats a pixel.

    Args:
        parameters: what a :class:`PixelCNN` gives for the images.
        x: images in [0, 1], of 256 levels.

    Returns:
        One value an image; over log 2 it is in bits per dimension.
    """
    levels = (x * (LEVELS - 1)).round().long().flatten()
    rows = parameters.permute(0, 2, 3, 1).flatten(0, 2)
    return -log_masses(rows, levels, count=1).view(len(x), -1).mean(1)
