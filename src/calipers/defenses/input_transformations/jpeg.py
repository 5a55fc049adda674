"""JPEG: each image written and read again by Pillow, outside torch."""

from io import BytesIO
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from calipers.defenses.input_transformations.outside import outside
from calipers.errors import UsageError

__all__ = ["Jpeg"]

_BEST, _TOP = 100, 255


@final
class Jpeg(nn.Module):
    """Compresses each image by itself, and decompresses it; the same image always gives the same one.

    Reference: Guo et al. 2018 (arXiv:1711.00117), section 4; quality 75.

    Args:
        quality: Pillow's, 1 to 100.

    Raises:
        UsageError: if the quality is none of Pillow's.
    """

    def __init__(self, *, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= _BEST:
            raise UsageError(f"quality is {quality}: JPEG has 1 to {_BEST}")
        self.quality = quality

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Compress and decompress.

        Args:
            x: images in [0, 1] of 1 or 3 channels.

        Returns:
            The decompressed images, multiples of 1/255; their gradient is 0, since autograd does not see Pillow.
        """
        return outside(self._all, x)

    def _all(self, x: Tensor) -> Tensor:
        bytes_ = (x.clamp(0, 1) * _TOP).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        if not len(bytes_):
            return x
        found = np.stack([self._one(image) for image in bytes_])
        return torch.from_numpy(found).permute(0, 3, 1, 2).to(x.device).float() / _TOP

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        file = BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=self.quality
        )
        with Image.open(file) as opened:
            return np.asarray(opened, dtype=np.uint8).reshape(image.shape)
