"""Image quilting: an image put together anew from patches of other images, joined along seams of least error."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from calipers.defenses.input_transformations.nearest import Remembered
from calipers.defenses.input_transformations.outside import outside
from calipers.errors import UsageError

__all__ = ["Quilting", "patches_of", "quilt", "seams", "tiles_of"]


@final
class Quilting(nn.Module):
    """Replaces each tile of an image by one of the patches nearest to it, drawn at random, and joins them by seams.

    An image of 28 x 28 pixels is continued by its edge to 29 x 29, which nine tiles of side 5 with an overlap of 2
    cover exactly in each direction; one of 32 x 32 has ten.

    Reference: Guo et al. 2018 (arXiv:1711.00117), section 4: patches of 5 x 5 pixels, a database of 1 000 000 patches
    of training images, a uniform choice among the K = 10 nearest; Efros and Freeman 2001, Image quilting for texture
    synthesis and transfer, section 2.1, for the seam. Run outside autograd.

    Differs from the paper: the seam is found by dynamic programming along each edge, as Efros and Freeman have it,
    instead of a graph cut; the database is smaller and the search in it exact.

    Args:
        patches: the database, (patches, channels, side, side).
        overlap: of neighbouring tiles, in pixels.
        among: from how many nearest patches one is drawn, K.

    Raises:
        UsageError: if the sizes do not fit together.
    """

    patches: Tensor

    def __init__(
        self, patches: Float[Tensor, "patches channels side side"], *, overlap: int = 2, among: int = 10
    ) -> None:
        super().__init__()
        side = patches.shape[-1]
        if not 1 <= overlap <= side // 2 or not 1 <= among <= len(patches):
            raise UsageError(
                f"overlap is {overlap} of patches of side {side}, and one of {among} is drawn among {len(patches)}: an "
                "overlap is from 1 to half a side, and there must be as many patches as are drawn from"
            )
        self.channels, self.side, self.overlap, self.among = patches.shape[1], side, overlap, among
        self.register_buffer("patches", patches.flatten(1).contiguous())
        self._known = Remembered(among)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Quilt.

        Args:
            x: images in [0, 1].

        Returns:
            Images of the same size out of patches; their gradient is 0. The patches are drawn anew for every tile of
            every row, in every call.
        """
        return outside(self._all, x)

    def _all(self, x: Tensor) -> Tensor:
        padded = _continued(x, self.side, self.overlap)
        tiles = tiles_of(padded, self.side, self.overlap)
        batch, rows, columns = tiles.shape[:3]
        known = self._known.nearest(tiles.flatten(1, 2).flatten(2), self.patches)
        drawn = torch.randint(self.among, known.shape[:2], device=x.device)
        chosen = known.gather(2, drawn[..., None])[..., 0]
        found = self.patches[chosen].view(batch, rows, columns, self.channels, self.side, self.side)
        return quilt(found, overlap=self.overlap)[..., : x.shape[2], : x.shape[3]]


def patches_of(
    images: Float[Tensor, "images channels height width"],
    *,
    count: int,
    side: int = 5,
    overlap: int = 2,
    seed: int = 0,
) -> Float[Tensor, "patches channels side side"]:
    """Make a database: some of the different patches of images, from everywhere in them.

    Args:
        images: in [0, 1].
        count: how many at most.
        side: of a patch, in pixels.
        overlap: with which images are quilted; it decides how far they are continued.
        seed: of the choice.

    Returns:
        Patches, no two the same.
    """
    channels = images.shape[1]
    padded = _continued(images, side, overlap)
    every = padded.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5)
    every = torch.unique(every.reshape(-1, channels * side * side), dim=0)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]
    chosen: Tensor = every[order].view(-1, channels, side, side)
    return chosen


def tiles_of(
    x: Float[Tensor, "batch channels height width"], side: int, overlap: int
) -> Float[Tensor, "batch rows columns channels side side"]:
    """Cut images into overlapping tiles.

    Args:
        x: images whose size the tiles cover exactly.
        side: of a tile, in pixels.
        overlap: of neighbours.

    Returns:
        The tiles.
    """
    step = side - overlap
    return x.unfold(2, side, step).unfold(3, side, step).permute(0, 2, 3, 1, 4, 5)


def quilt(
    tiles: Float[Tensor, "batch rows columns channels side side"], *, overlap: int
) -> Float[Tensor, "batch channels height width"]:
    """Join tiles, each laid over what is there, cut along the seams of least squared difference, of all channels.

    A tile waits for the one on its left and the three above it. Those of one wave, at a row r and a column c with
    the same 2 r + c, wait for none of each other, and are joined at once, in all images.

    Args:
        tiles: what is joined, in the order of the rows.
        overlap: of neighbours, at most half a side.

    Returns:
        Images.
    """
    batch, rows, columns, channels, side, _ = tiles.shape
    step = side - overlap
    image = tiles.new_zeros((batch, channels, (rows - 1) * step + side, (columns - 1) * step + side))
    views = image.unfold(2, side, step).unfold(3, side, step).permute(0, 2, 3, 1, 4, 5)
    for wave in range(2 * rows + columns - 2):
        r = torch.tensor([row for row in range(rows) if 0 <= wave - 2 * row < columns])
        c = wave - 2 * r
        new, old = tiles[:, r, c], views[:, r, c]
        squared = (new - old).square().sum(2)
        across, down = seams(
            torch.cat([squared[..., :overlap], squared[..., :overlap, :].mT]).flatten(0, 1)
        ).view(2, batch, len(r), side, 1)
        place = torch.arange(side)
        left = (place < across) & (c > 0)[:, None, None]
        above = (place < down).mT & (r > 0)[:, None, None]
        joined = torch.where((left | above)[:, :, None], old, new)
        for number, (row, column) in enumerate(zip(r.tolist(), c.tolist(), strict=True)):
            views[:, row, column] = joined[:, number]
    return image


def seams(error: Float[Tensor, "strips length width"]) -> Int[Tensor, "strips length"]:
    """Find the path of least error along each strip, one column a row, at most one column to the side a step.

    Args:
        error: of each pixel.

    Returns:
        The column of the path in each row; what lies left of it is kept as it was.
    """
    width = error.shape[2]
    costs = [error[:, 0]]
    for row in range(1, error.shape[1]):
        wide = functional.pad(costs[-1], (1, 1), value=torch.inf)
        costs.append(error[:, row] + wide.unfold(1, 3, 1).amin(2))
    column = costs[-1].argmin(1)
    path = [column]
    places = torch.arange(width, device=error.device)
    for cost in reversed(costs[:-1]):
        far = (places - column[:, None]).abs() > 1
        column = cost.masked_fill(far, torch.inf).argmin(1)
        path.append(column)
    return torch.stack(path[::-1], 1)


def _continued(x: Tensor, side: int, overlap: int) -> Tensor:
    """Continue images by their last row and column until tiles cover them exactly."""
    step = side - overlap
    down, right = ((-(length - side)) % step for length in x.shape[2:])
    return functional.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
