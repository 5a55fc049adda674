"""Segment: the nearest successful point between an input and an adversarial example that a search has found."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.tracker import Nearest, lead
from calipers.attacks.view import View
from calipers.gradients.estimator import goal_of_rows, repeat_draws
from calipers.randomness import Draws
from calipers.threat.norms import project
from calipers.threat.threat_model import Goal, Norm

__all__ = ["draw_in", "leads"]

_SLACK = 1e-5
_FIRST = 0.9
_VOTES = 40
_ENOUGH = 0.75
_OUTWARD = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
_STREAM = 2**31


def leads(
    logits: Float[Tensor, "rows columns"], y: Int[Tensor, " rows"], goal: Goal, *, num_classes: int
) -> Bool[Tensor, " rows"]:
    """Say where the scores reach the goal by more than the rounding of float32 can undo.

    The judge passes a candidate forward in a batch of another shape, so that scores differ in their last digits: a
    lead below 1e-5 of the largest score decides nothing.

    Args:
        logits: scores, with the rejection score last for a detector.
        y: the true classes.
        goal: what the adversary wants.
        num_classes: the number of classes.

    Returns:
        One answer an input; no for NaN.
    """
    found = lead(logits, y, goal, num_classes=num_classes)
    return found > _SLACK * logits.abs().amax(1)


def draw_in(
    view: View,
    best: Nearest,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    goal: Goal,
    draws: Draws,
    *,
    norm: Norm,
    halvings: int,
) -> None:
    """Look between each input and its best point for a nearer one that reaches the goal, and offer what is found.

    The points between are the projections of the perturbation onto smaller balls of the norm: in l2 those of the
    straight segment, in linf its clipped forms, in l1 its soft thresholds, in l0 its largest coordinates. Since a
    search ends near the boundary, the first is at nine tenths of the size; then the gap is halved. Every point that
    counts was passed forward.

    One draw of a randomized classifier decides nothing, and a search on one ends with a direction rather than a
    distance. There the perturbation is first lengthened until three of four draws reach the goal, up to eight times,
    and then drawn in by the same measure.

    Args:
        view: the target.
        best: the best point of each input so far; nearer ones are offered to it.
        x: the clean inputs.
        y: their labels.
        goal: what the adversary wants.
        draws: the search's streams.
        norm: the norm of the distance.
        halvings: points tried for each input; with 0, nothing is done.
    """
    rows = best.found.nonzero()[:, 0]
    if not len(rows) or halvings == 0:
        return
    way = _Way(view, best, x, y, goal, draws, norm, rows)
    low = torch.zeros(len(rows), dtype=x.dtype, device=x.device)
    high = torch.ones_like(low)
    if view.stochastic:
        open_ = torch.ones_like(low, dtype=torch.bool)
        for share in _OUTWARD:
            high = torch.where(open_, share, high)
            reached = way.try_at(high, open_)
            open_ = open_ & ~reached
            low = torch.where(open_, share, low)
    for attempt in range(halvings):
        middle = (low + high) / 2
        if attempt == 0 and not view.stochastic:
            middle = torch.full_like(low, _FIRST)
        reached = way.try_at(middle, torch.ones_like(low, dtype=torch.bool))
        high, low = torch.where(reached, middle, high), torch.where(reached, low, middle)


class _Way:
    """The ways from some inputs to their best points."""

    def __init__(
        self,
        view: View,
        best: Nearest,
        x: Tensor,
        y: Tensor,
        goal: Goal,
        draws: Draws,
        norm: Norm,
        rows: Tensor,
    ) -> None:
        numbers = rows.tolist()
        self._view, self._best, self._norm, self._rows = view.of(rows), best, norm, rows
        self._copies = _VOTES if view.stochastic else 1
        self._x, self._y = x[rows], y[rows]
        self._goal = goal_of_rows(goal, [row for row in numbers for _ in range(self._copies)])
        self._draws = draws.of(numbers).fold(_STREAM)
        self._delta, self._distance = best.point[rows] - x[rows], best.distance[rows]
        self._asked = 0

    def try_at(self, share: Tensor, among: Tensor) -> Tensor:
        """Ask at a share of the distance of each input, and offer what reaches the goal, among some of them."""
        wide = share.view(-1, *[1] * (self._x.ndim - 1))
        inner = project(self._delta, share * self._distance, self._norm)
        delta = torch.where(wide > 1, self._delta * wide, inner)
        point = (self._x + delta).clamp(*self._view.bounds)
        copies, count = self._copies, len(point)
        logits = self._view.logits(
            point.repeat_interleave(copies, 0),
            repeat_draws(self._draws.fold(self._asked), range(count), copies),
        )
        self._asked += 1
        won = leads(logits, self._y.repeat_interleave(copies), self._goal, num_classes=self._view.num_classes)
        reached = among & (won.view(count, copies).double().mean(1) >= (1.0 if copies == 1 else _ENOUGH))
        self._best.offer(self._rows, point, reached)
        return reached
