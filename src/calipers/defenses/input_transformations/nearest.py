"""Nearest neighbours among fixed points: exact, by matrix products, and remembered for images that come again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Remembered", "nearest_points"]

_BLOCK, _QUERIES = 32, 32
_REMEMBERED = 4096


@final
class Remembered:
    """Finds the points nearest to each query of each row, and remembers the latest 4096 rows.

    A judge asks about the same image many times. What is remembered changes no answer, is no part of a fingerprint, and
    is not copied with the module that holds it.

    Args:
        count: how many points are found for each query.
    """

    __slots__ = ("_found", "count")

    def __init__(self, count: int) -> None:
        self.count = count
        self._found: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        return Remembered(self.count)

    def __reduce__(self) -> tuple[type[Remembered], tuple[int]]:
        return Remembered, (self.count,)

    def nearest(
        self,
        queries: Float[Tensor, "batch queries dimensions"],
        points: Float[Tensor, "points dimensions"],
    ) -> Int[Tensor, "batch queries count"]:
        """Find neighbours.

        Args:
            queries: those of each row.
            points: among which they are found, the same in every call.

        Returns:
            The numbers of the nearest points, the nearest first.
        """
        keys = [row.tobytes() for row in queries.detach().cpu().numpy()]
        places = {key: row for row, key in enumerate(keys) if key not in self._found}
        known = {key: self._found[key] for key in keys if key in self._found}
        if places:
            new = queries[list(places.values())]
            found = nearest_points(new.flatten(0, 1), points, count=self.count)
            known.update(zip(places, found.view(*new.shape[:2], self.count), strict=True))
            self._found.update((key, known[key]) for key in places)
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return torch.stack([known[key] for key in keys])


def nearest_points(
    queries: Float[Tensor, "queries dimensions"], points: Float[Tensor, "points dimensions"], *, count: int
) -> Int[Tensor, "queries count"]:
    """Find the nearest of some points in l2, exactly up to the rounding of a matrix product.

    Points stand in blocks. The nearest ``count`` lie in the ``count`` blocks whose nearest point is nearest, so that
    only distances in those are put in order. Queries are taken a few at a time, whose distances fit into the cache.

    Args:
        queries: what neighbours are found for.
        points: among which they are found.
        count: how many, at most as many as there are points.

    Returns:
        The numbers of the points, the nearest first.
    """
    blocks = -(-len(points) // _BLOCK)
    padded = points.new_zeros((blocks * _BLOCK, points.shape[1]))
    padded[: len(points)] = points
    half = padded.square().sum(1) / 2
    half[len(points) :] = torch.inf  # what fills the last block is near to nothing
    found = [_few(part, padded, half, min(count, blocks), count) for part in torch.split(queries, _QUERIES)]
    return torch.cat(found) if found else queries.new_zeros((0, count), dtype=torch.int64)


def _few(queries: Tensor, points: Tensor, half: Tensor, blocks: int, count: int) -> Tensor:
    # half the squared distance, less what all points have in common
    far = torch.addmm(half, queries, points.T, alpha=-1).view(len(queries), -1, _BLOCK)
    chosen = far.amin(2).topk(blocks, dim=1, largest=False, sorted=False).indices
    numbers = (chosen[..., None] * _BLOCK + torch.arange(_BLOCK, device=points.device)).flatten(1)
    inside = far.gather(1, chosen[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    return numbers.gather(1, inside.topk(count, dim=1, largest=False, sorted=True).indices)
