"""Bit-depth reduction: the first bits of each pixel, a staircase whose slope is 0."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.errors import UsageError

__all__ = ["BitDepth"]

_BITS, _TOP = 8, 255


@final
class BitDepth(nn.Module):
    r"""Keeps the first bits of each pixel's byte: :math:`g(x) = 2^{8-k} \lfloor b / 2^{8-k} \rfloor / 255`, b the byte.

    Reference: Guo et al. 2018 (arXiv:1711.00117), section 4; 3 bits. Which 8 levels they are is read in the code of
    Athalye et al. 2018 (arXiv:1802.00420): 0, 32/255, ..., 224/255.

    Differs from the paper: a pixel goes to the nearest byte first, instead of the one below, so that an image of bytes
    that went through arithmetic in float32 is read as those bytes.

    Args:
        bits: how many bits stay, 1 to 8.

    Raises:
        UsageError: if a byte has no such number of bits.
    """

    def __init__(self, *, bits: int = 3) -> None:
        super().__init__()
        if not 1 <= bits <= _BITS:
            raise UsageError(f"bits is {bits}: a pixel keeps 1 to {_BITS} of its bits")
        self.bits = bits

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Reduce.

        Args:
            x: images in [0, 1].

        Returns:
            Images of 2 ** bits values; their gradient is 0 everywhere, which is what autograd makes of rounding.
        """
        step = 2 ** (_BITS - self.bits)
        byte = torch.round(x.clamp(0, 1) * _TOP)
        reduced: Tensor = torch.floor(byte / step) * step / _TOP
        return reduced
