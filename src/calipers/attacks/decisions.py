"""Decisions: what a search that sees answers alone asks, where it begins, and how it draws near the boundary."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.tracker import Nearest
from calipers.attacks.view import View
from calipers.gradients.estimator import goal_of_rows, repeat_draws
from calipers.randomness import Draws
from calipers.threat.norms import project, size
from calipers.threat.threat_model import ABSTAIN, Goal, Norm, Targeted

__all__ = ["noise_starts", "reaches", "step_aside", "to_boundary"]

_CLEAR = 2 / 3
_SHARES = (1.0, 0.5, 0.25)
_ASIDE = (1e-5, 1e-3, 0.03, 0.1, 0.3, 1.0)
_CONFIRMED = 12


def reaches(
    view: View,
    points: Float[Tensor, "points *dims"],
    y: Int[Tensor, " rows"],
    goal: Goal,
    draws: Draws,
    *,
    votes: int,
) -> Bool[Tensor, " points"]:
    """Ask whether points reach the goal, by the classes that the classifier answers.

    One answer of a randomized classifier decides nothing: there a point is asked ``votes`` times, and counts where at
    least two thirds of the answers reach the goal, since the judge wants a rate that is clearly above one half.

    Args:
        view: the target, seen for the inputs of ``y``.
        points: points, each input's together, equally many for each.
        y: the labels of the inputs.
        goal: what the adversary wants of the inputs.
        draws: streams of the inputs that nothing else uses.
        votes: answers of a randomized classifier for each point.

    Returns:
        One answer a point; an abstention reaches the goal only where that counts as wrong.
    """
    inputs, times = len(y), votes if view.stochastic else 1
    copies = len(points) // max(inputs, 1) * times
    asked = points if times == 1 else points.repeat_interleave(times, 0)
    streams = draws if copies == 1 else repeat_draws(draws, range(inputs), copies)
    answers = view.predict(asked, streams).to(y.device)
    if isinstance(goal, Targeted):
        repeated = goal_of_rows(goal, [row for row in range(inputs) for _ in range(copies)])
        assert isinstance(repeated, Targeted)
        reached = answers == torch.tensor(repeated.classes, device=y.device)
    else:
        abstained = answers == ABSTAIN
        wrong = ~abstained & (answers != y.repeat_interleave(copies))
        reached = wrong | abstained if goal.abstain == "wrong" else wrong
    if times == 1:
        return reached
    return reached.view(-1, times).double().mean(1) >= _CLEAR


def noise_starts(
    view: View,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    goal: Goal,
    draws: Draws,
    *,
    tries: int,
    votes: int,
) -> tuple[Float[Tensor, "batch *dims"], Bool[Tensor, " batch"]]:
    """Look for a point that reaches the goal, however far: noise that is uniform in the box, blended with the input.

    Noise of single coordinates tends to be one class to a classifier of images, whose inputs then have no start. So
    every other try is constant over blocks, of 2, 4, 8, ... coordinates a side. The share of the noise is in turn the
    whole, a half and a quarter.

    Args:
        view: the target.
        x: clean inputs.
        y: their labels.
        goal: what the adversary wants.
        draws: streams of the inputs that nothing else uses.
        tries: noises tried for each input.
        votes: answers of a randomized classifier for each point.

    Returns:
        A point for each input, the clean one where none was found; and where one was found.
    """
    low, high = view.bounds
    start = x.clone()
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for attempt in range(tries):
        rows = (~found).nonzero()[:, 0]
        if not len(rows):
            break
        numbers = rows.tolist()
        noise = torch.stack([_noise(tuple(x.shape[1:]), draws, row, attempt) for row in numbers])
        share = _SHARES[attempt // 2 % len(_SHARES)]
        point = x[rows] + share * (low + (high - low) * noise.to(x) - x[rows])
        point = point.clamp(low, high)
        part = draws.of(numbers).fold(attempt)
        reached = reaches(
            view.of(rows), point, y[rows], goal_of_rows(goal, numbers), part.fold(1), votes=votes
        )
        start[rows[reached]] = point[reached]
        found[rows[reached]] = True
    return start, found


def _noise(shape: tuple[int, ...], draws: Draws, row: int, attempt: int) -> Tensor:
    """Uniform noise in [0, 1], constant over blocks at every other attempt."""
    generator = draws[row].generator(attempt)
    if attempt % 2 == 0:
        return torch.rand(shape, generator=generator)
    sides = max(shape[-1].bit_length() - 1, 1)
    block = 2 ** (1 + attempt // 2 % sides)
    axes = range(max(len(shape) - 2, 0), len(shape))
    coarse = [-(-side // block) if axis in axes else side for axis, side in enumerate(shape)]
    noise = torch.rand(coarse, generator=generator)
    for axis in axes:
        noise = noise.repeat_interleave(block, axis).narrow(axis, 0, shape[axis])
    return noise


def to_boundary(
    view: View,
    x: Float[Tensor, "rows *dims"],
    point: Float[Tensor, "rows *dims"],
    y: Int[Tensor, " rows"],
    goal: Goal,
    draws: Draws,
    *,
    norm: Norm,
    halvings: int,
    votes: int,
) -> Float[Tensor, "rows *dims"]:
    """Draw points that reach the goal towards their inputs by halving, until just before they do not.

    Between the two lie the projections onto smaller balls of the norm: in l2 the segment, in linf its clipped forms.

    Args:
        view: the target, seen for these inputs.
        x: clean inputs.
        point: a point for each that reaches the goal.
        y: labels.
        goal: what the adversary wants of them.
        draws: streams of the inputs that nothing else uses.
        norm: the norm of the balls.
        halvings: points asked about, each of which leaves half of the way open.
        votes: answers of a randomized classifier for each point.

    Returns:
        Points that were asked about and reach the goal.
    """
    delta = point - x
    far = size(delta, norm)
    low, high = torch.zeros_like(far), torch.ones_like(far)
    nearest, bounds = point, view.bounds
    shape = (-1, *[1] * (x.ndim - 1))
    for halving in range(halvings):
        middle = (low + high) / 2
        tried = (x + project(delta, middle * far, norm)).clamp(*bounds)
        reached = reaches(view, tried, y, goal, draws.fold(halving), votes=votes)
        nearest = torch.where(reached.view(shape), tried, nearest)
        high, low = torch.where(reached, middle, high), torch.where(reached, low, middle)
    return nearest


def step_aside(
    view: View,
    best: Nearest,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    goal: Goal,
    draws: Draws,
    *,
    votes: int,
) -> Float[Tensor, "batch *dims"]:
    """Lengthen the best perturbations a little, so that they lie beyond the boundary by more than rounding and luck.

    The judge passes a candidate forward in a batch of another shape, where scores differ in their last digits, and a
    point that was halved onto the boundary may fall back. And a search picks the lucky ones among noisy answers, such
    as those of a smoothed classifier, whose judge draws afresh. So the first of 1e-5, 1e-3, .03, .1, .3 and 1 of the
    distance is taken that reaches the goal twelve times in a row, by fresh draws: a classifier that is a plain function
    confirms the very first.

    Args:
        view: the target.
        best: the nearest points.
        x: clean inputs.
        y: labels.
        goal: what the adversary wants.
        draws: streams of the inputs that nothing else uses.
        votes: answers of a randomized classifier for each point.

    Returns:
        The points to be judged; the best ones where none of the longer ones reaches the goal.
    """
    point = best.point.clone()
    rows = best.found.nonzero()[:, 0]
    for number, share in enumerate(_ASIDE):
        if not len(rows):
            break
        longer = (x[rows] + (best.point[rows] - x[rows]) * (1 + share)).clamp(*view.bounds)
        standing = torch.arange(len(rows), device=rows.device)
        for time in range(_CONFIRMED):
            numbers = rows[standing].tolist()
            reached = reaches(
                view.of(rows[standing]),
                longer[standing],
                y[rows[standing]],
                goal_of_rows(goal, numbers),
                draws.of(numbers).fold(number * _CONFIRMED + time),
                votes=votes,
            )
            standing = standing[reached]
            if not len(standing):
                break
        point[rows[standing]] = longer[standing]
        fell = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        fell[standing] = True
        rows = rows[~fell]
    return point
