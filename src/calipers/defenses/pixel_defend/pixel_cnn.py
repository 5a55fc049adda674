"""PixelCNN: the density of images as a product over pixels in raster order, by masked convolutions."""

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

    The colours of a pixel come one after the other, red, green, blue, out of one mixture: the network sees the pixels
    before, and says how the mean of each colour moves with the colours before it in the pixel; the weights of a later
    colour are those of the components after the earlier ones were seen.

    Reference: van den Oord et al. 2016, arXiv:1601.06759; Salimans et al. 2017, arXiv:1701.05517, sections 2.1 and 2.2,
    for the mixture and the colours.

    Args:
        channels: of every block, even.
        blocks: residual blocks after the first, 7 x 7 convolution; each lets a pixel see one row further.
        mixtures: logistics a pixel.
        colours: channels of an image: 1, or 3 in the order red, green, blue.
    """

    def __init__(self, channels: int = 64, blocks: int = 6, mixtures: int = 5, *, colours: int = 1) -> None:
        super().__init__()
        self.mixtures, self.colours = mixtures, colours
        self.first = CausalConv(colours, channels, 7, itself=False)
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))
        self.hidden = nn.Conv2d(channels, channels, 1)
        # log weights; a mean and a log scale for each colour; a slope for each pair of colours
        self.last = nn.Conv2d(channels, mixtures * (1 + 2 * colours + colours * (colours - 1) // 2), 1)

    @property
    def reach(self) -> int:
        """How many pixels to the right the widest of its convolutions sees, in the rows above."""
        return max(layer.reach for layer in self.modules() if isinstance(layer, CausalConv))

    def forward(self, x: Float[Tensor, "batch colours h w"]) -> Float[Tensor, "batch parameters colours h w"]:
        """Compute the parameters of the mixture of each colour of each pixel.

        Args:
            x: images in [0, 1], of 256 levels.

        Returns:
            Log weights (not normalized), means and log scales, a third of the parameters each; means and scales in
            units in which the range of the image is [-1, 1].
        """
        return self.parameters_of(self.features(x), x)

    def features(self, x: Float[Tensor, "batch colours h w"]) -> Float[Tensor, "batch channels h w"]:
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

    def parameters_of(
        self, features: Float[Tensor, "batch channels h w"], x: Float[Tensor, "batch colours h w"]
    ) -> Float[Tensor, "batch parameters colours h w"]:
        """Compute the parameters of the mixtures from the features of each pixel, and its own colours.

        Args:
            features: what :meth:`features` gives.
            x: images in [0, 1], of 256 levels.

        Returns:
            The parameters.
        """
        raw, colours = (one.permute(0, 2, 3, 1).flatten(0, 2) for one in (self.last(features), x))
        rows = torch.stack(self.mixtures_of(raw, 2 * colours - 1, count=self.colours), 2)
        batch, _, height, width = x.shape
        return rows.view(batch, height, width, -1, self.colours).permute(0, 3, 4, 1, 2)

    def mixtures_of(
        self, raw: Float[Tensor, "rows outputs"], before: Float[Tensor, "rows known"], *, count: int
    ) -> list[Float[Tensor, "rows parameters"]]:
        """Compute the parameters of the first colours of pixels, each given those before it in the pixel.

        Args:
            raw: what the last layer gives for each pixel.
            before: the pixels' first colours in [-1, 1], ``count`` less one of them at least.
            count: how many colours.

        Returns:
            For each colour the parameters of its mixture.
        """
        sizes = (1, self.colours, self.colours, self.colours * (self.colours - 1) // 2)
        weights, means, scales, slopes = torch.split(raw, [self.mixtures * size for size in sizes], dim=1)
        mean, scale = (each.chunk(self.colours, dim=1) for each in (means, scales))
        slope = iter(torch.split(torch.tanh(slopes), self.mixtures, dim=1))
        found: list[Tensor] = []
        for colour in range(count):
            if found:
                weights = weights + _of_components(found[-1], _level(before[:, colour - 1]), count=1)[..., 0]
            moved = mean[colour]
            for earlier in range(colour):
                moved = moved + next(slope) * before[:, earlier, None]
            found.append(torch.cat([weights, moved, scale[colour]], 1))
        return found


def _level(place: Tensor) -> Tensor:
    return ((place.detach() + 1) * ((LEVELS - 1) / 2)).round().long()


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
    level = lowest[:, None] + torch.arange(count, device=parameters.device)
    weights = torch.log_softmax(parameters.chunk(3, dim=1)[0], dim=1)
    mixed = torch.logsumexp(_of_components(parameters, lowest, count=count) + weights[:, :, None], dim=1)
    return mixed.masked_fill((level < 0) | (level >= LEVELS), -math.inf)


def _of_components(parameters: Tensor, lowest: Tensor, *, count: int) -> Tensor:
    """Compute the log mass of neighbouring levels under each logistic: (rows, mixtures, count)."""
    _, means, scales = parameters[:, :, None].chunk(3, dim=1)
    scales = scales.clamp_min(NARROWEST)
    level = lowest[:, None] + torch.arange(count + 1, device=parameters.device)
    place = (2 * level.to(parameters.dtype) - LEVELS) / (LEVELS - 1)
    ends = (place[:, None] - means) * torch.exp(-scales)
    # the logarithm of sigma at the ends, and that of sigma at their opposites: one less the end
    left = functional.logsigmoid(ends)
    right = left - ends
    width = 2 / (LEVELS - 1) * torch.exp(-scales)
    within = torch.log(-torch.expm1(-width))
    level = level[:, None, :-1]
    inner = left[..., 1:] + right[..., :-1] + within
    return torch.where(level == 0, left[..., 1:], torch.where(level == LEVELS - 1, right[..., :-1], inner))


def nats(
    parameters: Float[Tensor, "batch parameters colours h w"], x: Float[Tensor, "batch colours h w"]
) -> Float[Tensor, " batch"]:
    """Compute the negative log likelihood of images, in nats a pixel and colour.

    Args:
        parameters: what a :class:`PixelCNN` gives for the images.
        x: images in [0, 1], of 256 levels.

    Returns:
        One value an image; over log 2 it is in bits per dimension.
    """
    levels = (x * (LEVELS - 1)).round().long().flatten()
    rows = parameters.permute(0, 2, 3, 4, 1).flatten(0, 3)
    return -log_masses(rows, levels, count=1).view(len(x), -1).mean(1)
