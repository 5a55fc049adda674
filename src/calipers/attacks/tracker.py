"""Trackers: the best candidate of each input so far, within a size or of the least size."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.threat.norms import size
from calipers.threat.threat_model import Goal, Norm, Targeted

__all__ = ["Nearest", "Strongest", "lead"]

_SLACK = 1e-5


def lead(
    logits: Float[Tensor, "rows columns"], y: Int[Tensor, " rows"], goal: Goal, *, num_classes: int
) -> Float[Tensor, " rows"]:
    """Measure by how much the scores reach the goal: above 0 where they do.

    For a detector (a last column beyond the classes), the class that the adversary wants must lead the rejection score
    as well: a rejected input is no success, unless the goal says that it counts as wrong.

    Args:
        logits: scores, with the rejection score last for a detector.
        y: the true classes.
        goal: what the adversary wants.
        num_classes: the number of classes.

    Returns:
        One value an input; NaN where scores are.
    """
    scores = logits[:, :num_classes]
    if isinstance(goal, Targeted):
        wanted = torch.tensor(goal.classes, device=logits.device)[:, None]
        others = logits.scatter(1, wanted, -torch.inf).amax(1)
        return logits.gather(1, wanted)[:, 0] - others
    if goal.abstain == "wrong":
        scores = logits
    best = scores.scatter(1, y[:, None], -torch.inf).amax(1)
    against = logits.gather(1, y[:, None])[:, 0]
    if logits.shape[1] > scores.shape[1]:
        against = torch.maximum(against, logits[:, num_classes:].amax(1))
    return best - against


@final
class Strongest:
    """The point of the largest lead of each input: what an attack within a size ends with.

    Args:
        x: the clean inputs.
        keep: whether an input stays in the search when its goal is reached.
        last: whether the point is the last one offered, for classifiers whose single draws mean little.
    """

    def __init__(self, x: Float[Tensor, "batch *dims"], *, keep: bool = False, last: bool = False) -> None:
        self.point = x.clone()
        self.value = torch.full((len(x),), -torch.inf, device=x.device)
        self.reached = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._keep = keep
        self._last = last

    def offer(
        self, rows: Int[Tensor, " rows"], point: Float[Tensor, "rows *dims"], value: Float[Tensor, " rows"]
    ) -> None:
        """Offer a point for some inputs.

        Args:
            rows: which inputs.
            point: a point inside the ball and the box for each.
            value: its :func:`lead`.
        """
        found = value.masked_fill(value.isnan(), -torch.inf).to(self.value.dtype)
        better = torch.ones_like(found, dtype=torch.bool) if self._last else found > self.value[rows]
        if self._all(rows):
            self.point = torch.where(better.view(-1, *[1] * (point.ndim - 1)), point, self.point)
        else:
            self.point[rows[better]] = point[better]
        self.value[rows[better]] = found[better]
        self.reached[rows] |= found > _SLACK

    def _all(self, rows: Tensor) -> bool:
        """Say whether these are all rows in order, for which a copy can be spared."""
        return len(rows) == len(self.value) and torch.equal(rows, torch.arange(len(rows), device=rows.device))

    def still(self, rows: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Say which of some inputs are to be searched on.

        Args:
            rows: which inputs.

        Returns:
            A mask of them.
        """
        return torch.ones_like(self.reached[rows]) if self._keep else ~self.reached[rows]

    def standing(self) -> Int[Tensor, " rows"]:
        """List the inputs that are to be searched on.

        Returns:
            Their numbers.
        """
        rows = torch.arange(len(self.reached), device=self.reached.device)
        return rows[self.still(rows)]


@final
class Nearest:
    """The nearest point of each input that reaches the goal: what a search for the least size ends with.

    Args:
        x: the clean inputs.
        norm: the norm of the distance.
        last: whether the point is the last one that reached the goal, near or not, for classifiers whose single draws
            mean little.
    """

    def __init__(self, x: Float[Tensor, "batch *dims"], norm: Norm, *, last: bool = False) -> None:
        self._x = x
        self._norm = norm
        self._last = last
        self.point = x.clone()
        self.distance = torch.full((len(x),), torch.inf, device=x.device)

    def offer(
        self,
        rows: Int[Tensor, " rows"] | None,
        point: Float[Tensor, "rows *dims"],
        reached: Bool[Tensor, " rows"],
    ) -> None:
        """Offer a point for some inputs.

        Args:
            rows: which inputs; all of them, in order, if None.
            point: a point inside the box for each.
            reached: whether it reaches the goal.
        """
        clean, known = (self._x, self.distance) if rows is None else (self._x[rows], self.distance[rows])
        distance = size(point - clean, self._norm).to(known.dtype)
        better = reached & (distance > 0) if self._last else reached & (distance < known)
        if rows is None:
            self.distance = torch.where(better, distance, known)
            self.point = torch.where(better.view(-1, *[1] * (point.ndim - 1)), point, self.point)
        else:
            self.distance[rows[better]] = distance[better]
            self.point[rows[better]] = point[better]

    def forget(self, rows: Int[Tensor, " rows"]) -> None:
        """Take the points of some inputs for none; they stay until another is offered.

        Args:
            rows: which inputs.
        """
        self.distance[rows] = torch.inf

    @property
    def found(self) -> Bool[Tensor, " batch"]:
        """Which inputs have a point at all."""
        return torch.isfinite(self.distance)
