"""Crop and rescale: crops of an image at random places, each rescaled to its size."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from calipers.errors import UsageError

__all__ = ["RandomCrops"]


@final
class RandomCrops(nn.Module):
    r"""Takes crops of random place and rescales them bilinearly to the size of the image, each an image.

    Rows and columns are cropped and rescaled one after the other, so that a crop at (t, l) is
    :math:`R_t\, x\, R_l^\top`, with a fixed matrix R for each place: differentiable, and random.

    Reference: Guo et al. 2018 (arXiv:1711.00117), section 4: 30 crops of 90 x 90 pixels of an image of 224 x 224,
    rescaled. Athalye et al. 2018 (arXiv:1802.00420) take them of 299 x 299 and leave them as they are.

    Differs from the paper: on 28 x 28 pixels a crop of 90/224 of a side is 11 x 11 pixels of a garment, which no
    classifier knows; ``size=24`` is the default, and ``size=11`` the paper's share.

    Args:
        size: the side of a crop, in pixels.
        side: the side of an image, in pixels.
        count: how many crops.

    Raises:
        UsageError: if a crop does not fit into an image.
    """

    matrices: Tensor

    def __init__(self, *, size: int = 24, side: int = 28, count: int = 30) -> None:
        super().__init__()
        if not 1 <= size <= side or count < 1:
            raise UsageError(
                f"crops are {count} of side {size} and an image has {side}: take 1 or more that fit into it"
            )
        self.size, self.side, self.count = size, side, count
        places = torch.eye(side).unfold(0, size, 1).permute(0, 2, 1)
        scaled = functional.interpolate(
            places[:, None], size=(side, side), mode="bilinear", align_corners=False
        )
        # bilinear along the columns of the identity leaves it alone: only rows are rescaled
        self.register_buffer("matrices", scaled[:, 0])

    def forward(
        self, x: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch crops channels side side"]:
        """Crop and rescale.

        Args:
            x: images.

        Returns:
            The crops of each image, of one place each, drawn anew for every row and in every call.
        """
        places = torch.randint(len(self.matrices), (2, len(x), self.count), device=x.device)
        rows, columns = (self.matrices[each][:, :, None] for each in places)
        crops: Tensor = rows @ x[:, None] @ columns.mT
        return crops
