"""Latest: where a search against a randomized classifier is, and how it fared on the way there."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Latest"]

_FRESH = 0.3


@final
class Latest:
    """The last point of each input, and a running mean of its leads.

    The largest lead of many single draws is the luckiest draw, so the point is the last one. Which of several searches
    ended best is told by the running mean.

    Args:
        x: the clean inputs.
    """

    def __init__(self, x: Float[Tensor, "batch *dims"]) -> None:
        self.point = x.clone()
        self.value = torch.full((len(x),), -torch.inf, device=x.device)

    def offer(
        self, rows: Int[Tensor, " rows"], point: Float[Tensor, "rows *dims"], value: Float[Tensor, " rows"]
    ) -> None:
        """Offer a point for some inputs.

        Args:
            rows: which inputs.
            point: a point inside the ball and the box for each.
            value: its :func:`~calipers.attacks.tracker.lead`, in one draw or in the mean of a few.
        """
        found = value.masked_fill(value.isnan(), -torch.inf).to(self.value.dtype)
        known = self.value[rows]
        mean = (1 - _FRESH) * known + _FRESH * found
        self.value[rows] = torch.where(known.isfinite() & found.isfinite(), mean, found)
        self.point[rows] = point

    def still(self, rows: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Say which of some inputs are to be searched on.

        Args:
            rows: which inputs.

        Returns:
            All of them: no draw decides.
        """
        return torch.ones_like(rows, dtype=torch.bool)
