r"""Thermometer encoding, and the ramps that stand in for its steps.

A pixel x falls into the bucket :math:`b = \lfloor x \, l \rfloor` of l, and is shown to the network as l channels of
which the first b + 1 are 1. Channel k = 0, 1, ..., l - 1 jumps at x = k/l and is flat everywhere else, so its
derivative is 0 wherever it exists.

Reference: Buckman et al. 2018 (openreview:S18Su--CW), section 3; bucket numbers as in the code that came with it.
"""

from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "LEVELS",
    "ThermometerEncoder",
    "bucket",
    "encode",
    "lower_buckets",
    "lower_edge",
    "next_bucket",
    "ramp",
    "rise_from_threshold",
    "rise_to_threshold",
]

LEVELS: Final = 16
"""l, as in the paper's experiments."""

_BELOW_ONE = 0.99999


def bucket(x: Float[Tensor, "*dims"], *, levels: int = LEVELS) -> Float[Tensor, "*dims"]:
    """Number the bucket of each pixel.

    Args:
        x: pixels, cut to [0, 1].
        levels: the number of buckets.

    Returns:
        Whole numbers from 0 to ``levels - 1``, in the number format of the pixels; their derivative is 0.
    """
    return (_BELOW_ONE * x.clamp(0, 1) * levels).floor()


def lower_edge(number: Float[Tensor, "*dims"], *, levels: int = LEVELS) -> Float[Tensor, "*dims"]:
    """Say where buckets begin.

    Args:
        number: of the buckets, from 0 to ``levels``.
        levels: how many there are.

    Returns:
        Pixels, up to rounding.
    """
    return number / (_BELOW_ONE * levels)


def encode(
    x: Float[Tensor, "batch channels height width"], *, levels: int = LEVELS
) -> Float[Tensor, "batch codes height width"]:
    """Encode images; autograd finds a way through, whose derivative is 0.

    Args:
        x: images.
        levels: channels for each channel of an image.

    Returns:
        Codes of 0 and 1, the channels of one pixel after another's: ``channels * levels`` in all.
    """
    place = torch.arange(levels, device=x.device, dtype=x.dtype).view(1, 1, -1, 1, 1)
    return (bucket(x, levels=levels)[:, :, None] - place + 1).clamp(0, 1).flatten(1, 2)


@final
class ThermometerEncoder(nn.Module):
    """The encoding as a layer.

    What has ``channels * levels`` channels is a code already and passes as it is: an adversary who knows the network
    may ask what is behind the encoder, as LS-PGA does. The judge asks with images.

    Args:
        levels: channels for each channel of an image.
        channels: of an image.
    """

    def __init__(self, levels: int = LEVELS, *, channels: int = 1) -> None:
        super().__init__()
        self.levels = levels
        self.channels = channels

    def forward(
        self, x: Float[Tensor, "batch some height width"]
    ) -> Float[Tensor, "batch codes height width"]:
        """Encode.

        Args:
            x: images, or codes.

        Returns:
            Codes.
        """
        if x.shape[1] == self.channels * self.levels:
            return x
        return encode(x, levels=self.levels)


def ramp(
    x: Float[Tensor, "batch channels height width"],
    start: Float[Tensor, " levels"],
    slope: Float[Tensor, " levels"],
) -> Float[Tensor, "batch codes height width"]:
    r"""Encode without steps: channel k is :math:`\min(\max(s_k (x - a_k), 0), 1)`.

    Args:
        x: images.
        start: where each channel begins to rise: a.
        slope: how fast: s.

    Returns:
        Codes between 0 and 1, in the order of :func:`encode`.
    """
    wide = (1, 1, -1, 1, 1)
    return ((x[:, :, None] - start.view(wide)) * slope.view(wide)).clamp(0, 1).flatten(1, 2)


def rise_to_threshold(
    x: Float[Tensor, "batch channels height width"], *, levels: int = LEVELS
) -> Float[Tensor, "batch codes height width"]:
    r"""Let each channel rise from 0 to its threshold: :math:`\min(\max(x / (k/l), 0), 1)`, the lecture's ramp.

    The thresholds that are above a pixel get gradient, near and far alike; those below get none. Channel 0, which is 1
    everywhere, has none to give.

    Args:
        x: images.
        levels: l.

    Returns:
        Codes between 0 and 1.
    """
    edge = _edges(x, levels)
    return ramp(x, torch.zeros_like(edge), torch.where(edge > 0, 1 / edge.clamp_min(1 / levels), 0.0))


def rise_from_threshold(
    x: Float[Tensor, "batch channels height width"], *, levels: int = LEVELS
) -> Float[Tensor, "batch codes height width"]:
    r"""Let each channel rise behind the upper edge of its bucket: :math:`\min(\max(x - (k+1)/l, 0), 1)`.

    The formula of Athalye et al. 2018, section 5.1.2, whose k counts from 1. The thresholds below a pixel get gradient,
    but for the nearest.

    Args:
        x: images.
        levels: l.

    Returns:
        Codes between 0 and 1.
    """
    edge = _edges(x, levels)
    return ramp(x, edge + 1 / levels, torch.ones_like(edge))


def next_bucket(
    x: Float[Tensor, "batch channels height width"], *, levels: int = LEVELS
) -> Float[Tensor, "batch codes height width"]:
    r"""Let each channel rise within one bucket, up to its threshold: :math:`\min(\max(l (x - (k-1)/l), 0), 1)`.

    The code of Athalye et al. 2018. The one threshold above a pixel gets gradient.

    Args:
        x: images.
        levels: l.

    Returns:
        Codes between 0 and 1.
    """
    edge = _edges(x, levels)
    return ramp(x, edge - 1 / levels, torch.full_like(edge, float(levels)))


def lower_buckets(
    x: Float[Tensor, "batch channels height width"], *, levels: int = LEVELS
) -> Float[Tensor, "batch codes height width"]:
    r"""Let each channel rise behind its threshold: :math:`\min(\max(x - k/l, 0), 1)`.

    The form that Nicolae et al. 2018 (arXiv:1807.01069) give their encoder. Every threshold below a pixel gets
    gradient, those above it none.

    Args:
        x: images.
        levels: l.

    Returns:
        Codes between 0 and 1.
    """
    edge = _edges(x, levels)
    return ramp(x, edge, torch.ones_like(edge))


def _edges(x: Tensor, levels: int) -> Tensor:
    """List the thresholds k/l."""
    return torch.arange(levels, device=x.device, dtype=x.dtype) / levels
