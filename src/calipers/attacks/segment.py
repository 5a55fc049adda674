"""Segment: the nearest successful point between an input and an adversarial example that a search has found."""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.tracker import Nearest, lead
from calipers.attacks.view import View
from calipers.gradients.estimator import goal_of_rows, repeat_draws
from calipers.randomness import Draws
from calipers.threat.norms import project
from calipers.threat.threat_model import Goal, Norm

__all__ = ["draw_in", "leads", "scores", "undone"]

_SLACK = 1e-5
_FIRST = 0.9
_ASIDE = 0.02
_NEAR = 2.5e-3
_VOTES = 40
_ENOUGH = 0.75
_OUTWARD = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
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
    return found > undone(logits)


def undone(logits: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    """Measure how large a lead the rounding of float32 may undo.

    Args:
        logits: scores.

    Returns:
        One value an input: 1e-5 of its largest score.
    """
    return _SLACK * logits.abs().amax(1)


def scores(
    view: View,
    x: Float[Tensor, "rows *dims"],
    y: Int[Tensor, " rows"],
    goal: Goal,
    draws: Draws,
) -> Float[Tensor, "rows columns"]:
    """Ask for the scores by which the goal is seen to be reached.

    They are the classifier's own. Where a smoothed classifier is searched through its base, those at the point itself
    would be of another classifier: the estimator's mean over the noise is taken.

    Args:
        view: the target.
        x: one point for each input of this view.
        y: labels.
        goal: what the adversary wants.
        draws: the streams of this step.

    Returns:
        Scores.
    """
    if not view.indirect:
        return view.logits(x, draws)
    return view.estimate(partial(lead, num_classes=view.num_classes), x, y, goal, draws).logits


def draw_in(
    view: View,
    best: Nearest,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    goal: Goal,
    draws: Draws,
    *,
    norm: Norm,
    tries: int,
) -> None:
    """Look between each input and its best point for a nearer one that reaches the goal, and offer what is found.

    The points between are the projections of the perturbation onto smaller balls of the norm: in l2 those of the
    straight segment, in linf its clipped forms, in l1 its soft thresholds, in l0 its largest coordinates. Since a
    search ends near the boundary, the first is at nine tenths of the size; then the gap is divided where a straight
    line through the leads at its ends crosses 0, a little outward of that and a little inward in turns, until that line
    leaves no more than a four-hundredth to gain. Every point that counts was passed forward.

    The best point itself is asked first. A search that sees other scores than the classifier's own, such as means over
    transformations, may have been wrong about it, and one draw of a randomized classifier decides nothing: there three
    of four draws must reach the goal, and the gap is halved. Where the best point fails, the perturbation is lengthened
    first, up to eight times.

    Args:
        view: the target.
        best: the best point of each input so far; nearer ones are offered to it.
        x: the clean inputs.
        y: their labels.
        goal: what the adversary wants.
        draws: the search's streams.
        norm: the norm of the distance.
        tries: the most points tried for each input, the best point first; with 0, nothing is done.
    """
    rows = best.found.nonzero()[:, 0]
    if not len(rows) or tries == 0:
        return
    way = _Way(view, best, x, y, goal, draws, norm, rows)
    low = torch.zeros(len(rows), dtype=x.dtype, device=x.device)
    high, below = torch.ones_like(low), torch.full_like(low, torch.nan)
    every = torch.ones_like(low, dtype=torch.bool)
    reached, above = way.ask(high, every)
    failed = ~reached
    best.forget(rows[failed])
    for share in _OUTWARD:
        if not bool(failed.any()):
            break
        low, high = torch.where(failed, high, low), torch.where(failed, share, high)
        reached, ahead = way.ask(high, failed)
        below, above = torch.where(failed, above, below), torch.where(failed, ahead, above)
        failed = failed & ~reached
    straight = not view.stochastic and norm is not Norm.L0
    for attempt in range(1, tries):
        crossing = below / (below - above) if straight else torch.full_like(low, torch.nan)
        left = (high - low) * torch.where(crossing.isfinite(), 1 - crossing, 1)
        wide = ~failed & (left > _NEAR * high)
        if not bool(wide.any()):
            break
        aside = _ASIDE if attempt % 2 == 0 else -_ASIDE
        crossing = torch.where(crossing.isfinite(), (crossing + aside).clamp(_ASIDE, 1 - _ASIDE), 0.5)
        middle = low + (high - low) * crossing
        if attempt == 1:
            middle = torch.where(low == 0, _FIRST, middle)
        reached, ahead = way.ask(middle, wide)
        missed = wide & ~reached
        high, low = torch.where(reached, middle, high), torch.where(missed, middle, low)
        above, below = torch.where(reached, ahead, above), torch.where(missed, ahead, below)


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
        self._view, self._best, self._goal, self._norm, self._rows = view, best, goal, norm, rows
        self._x, self._y, self._draws = x[rows], y[rows], draws.fold(_STREAM)
        self._delta, self._distance = best.point[rows] - self._x, best.distance[rows]
        self._asked = 0

    def ask(self, share: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        """Ask some of the inputs at a share of their distance, and offer what reaches the goal.

        Returns:
            Where the goal is reached, and the lead (of the last draw, where there are several).
        """
        part = among.nonzero()[:, 0]
        delta, x = self._delta[part], self._x[part]
        wide = share[part].view(-1, *[1] * (x.ndim - 1))
        inner = project(delta, share[part] * self._distance[part], self._norm)
        point = (x + torch.where(wide > 1, delta * wide, inner)).clamp(*self._view.bounds)
        copies, rows, classes = (
            _VOTES if self._view.stochastic else 1,
            self._rows[part],
            self._view.num_classes,
        )
        numbers = [row for row in rows.tolist() for _ in range(copies)]
        draws = repeat_draws(self._draws.fold(self._asked), rows.tolist(), copies)
        labels, goal = self._y[part].repeat_interleave(copies), goal_of_rows(self._goal, numbers)
        if copies == 1:
            logits = scores(self._view.of(rows), point, labels, goal, draws)
        else:
            logits = self._view.of(rows).logits(point.repeat_interleave(copies, 0), draws)
        won = leads(logits, labels, goal, num_classes=classes).view(-1, copies).double().mean(1)
        ahead = lead(logits, labels, goal, num_classes=classes).view(-1, copies)[:, -1]
        self._asked += 1
        self._best.offer(rows, point, won >= (_ENOUGH if copies > 1 else 1))
        reached, found = torch.zeros_like(among), torch.full_like(share, torch.nan)
        reached[part], found[part] = won >= (_ENOUGH if copies > 1 else 1), ahead.to(share.dtype)
        return reached, found
