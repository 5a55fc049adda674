"""Boundary: from answers alone, a walk along the boundary that drifts towards the input."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.decisions import noise_starts, reaches, step_aside, to_boundary
from calipers.attacks.tracker import Nearest
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.norms import size
from calipers.threat.threat_model import Goal, Norm, ThreatModel

__all__ = ["Boundary"]

_HALVINGS = 20
_CONVERGED = 1e-6
_LARGEST = 1.0
_ASIDE_RATE, _CLOSER_RATE = 0.5, 0.25
_ASIDE_PACE, _CLOSER_PACE = 0.1, 0.2
_START, _NEAR, _WALK, _LAST = range(4)


@final
@dataclass(frozen=True)
class Boundary(Attack):
    r"""Searches for the least l2 size by classes alone: no score is asked for.

    From a point that reaches the goal, at the distance r of the input, a step draws a direction at random, keeps the
    part that is orthogonal to the way to the input, and goes :math:`\delta r` along it on the sphere around the input.
    If that point reaches the goal, it is moved towards the input by :math:`\epsilon r`; if it still does, that point
    is taken, and otherwise the one before. The two lengths follow how often each is right: one half of the time for
    the first, a quarter for the second, given the first.

    A step costs one query, and one more if the first succeeded. On half-spaces the distance found is at most, as a
    multiple of the exact one: of 12 coordinates 1.02 after 300 steps (470 queries); of 784 coordinates 1.5 after 2000
    steps (3 000 queries) and 1.13 after 5000 (7 600).

    Of a randomized classifier each point is asked ``votes`` times, and counts where two thirds of the answers reach the
    goal; the number of queries grows by as much.

    Reference: Brendel, Rauber and Bethge 2018, arXiv:1712.04248, Algorithm 1 and sections 2.2 to 2.3.

    Differs from the paper: a search begins at uniform noise of single coordinates and of blocks in turn, blended with
    the input, drawn to the boundary by halving; the lengths change a little after each step, and not by the record of
    many; the orthogonal step is kept where the one towards the input fails; the nearest point is lengthened by a
    hundred-thousandth.

    Args:
        steps: steps of the walk.
        aside: length of the first step along the sphere, as a share of the distance.
        closer: length of the first step towards the input, likewise.
        tries: noises tried for a start.
        votes: answers of a randomized classifier for each point.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.L2,)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    steps: int = 5000
    aside: float = 0.1
    closer: float = 0.1
    tries: int = 100
    votes: int = 12

    def __post_init__(self) -> None:
        for name in ("steps", "tries", "votes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("aside", "closer"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(
                    f"{name} is {getattr(self, name)}: give a share of the distance inside (0, 1)"
                )

    @property
    def access(self) -> Access:
        """Classes."""
        return Access.DECISIONS

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        best = Nearest(x, threat.norm)
        point, found = noise_starts(
            view, x, y, threat.goal, draws.fold(_START), tries=self.tries, votes=self.votes
        )
        rows = found.nonzero()[:, 0]
        if len(rows):
            numbers = rows.tolist()
            part, goal = draws.of(numbers), goal_of_rows(threat.goal, numbers)
            some = (x[rows], y[rows])
            start = to_boundary(
                view.of(rows),
                some[0],
                point[rows],
                some[1],
                goal,
                part.fold(_NEAR),
                norm=threat.norm,
                halvings=_HALVINGS,
                votes=self.votes,
            )
            walked = self._walk(view.of(rows), some[0], start, some[1], goal, part.fold(_WALK))
            best.offer(rows, walked, torch.ones_like(found[rows]))
        return step_aside(view, best, x, y, threat.goal, draws.fold(_LAST), votes=self.votes)

    def _walk(self, view: View, x: Tensor, point: Tensor, y: Tensor, goal: Goal, draws: Draws) -> Tensor:
        """Walk from points that reach the goal to nearer ones that do."""
        point = point.clone()
        generators = [draws[row].generator(0) for row in range(len(x))]
        aside = torch.full((len(x),), self.aside, dtype=x.dtype, device=x.device)
        closer = torch.full_like(aside, self.closer)
        shape = (-1, *[1] * (x.ndim - 1))
        bounds = view.bounds
        for step in range(self.steps):
            rows = (closer > _CONVERGED).nonzero()[:, 0]
            if not len(rows):
                break
            numbers = rows.tolist()
            clean, delta = x[rows], point[rows] - x[rows]
            distance = size(delta, Norm.L2)
            noise = torch.stack([torch.randn(x.shape[1:], generator=generators[row]) for row in numbers])
            around = _along_sphere(delta, distance, noise.to(x), aside[rows])
            tried = (clean + around).clamp(*bounds)
            streams = draws.fold(step + 1)
            reached = reaches(
                view.of(rows),
                tried,
                y[rows],
                goal_of_rows(goal, numbers),
                streams.of(numbers),
                votes=self.votes,
            )
            aside[rows] = _paced(aside[rows], reached, _ASIDE_RATE, _ASIDE_PACE)
            rows, tried, clean = rows[reached], tried[reached], clean[reached]
            if not len(rows):
                continue
            # the box may have cut the step short, never lengthened it by more than rounding
            point[rows] = tried
            numbers = rows.tolist()
            tried = clean + (1 - closer[rows].view(shape)) * (tried - clean)
            reached = reaches(
                view.of(rows),
                tried,
                y[rows],
                goal_of_rows(goal, numbers),
                streams.of(numbers).fold(1),
                votes=self.votes,
            )
            closer[rows] = _paced(closer[rows], reached, _CLOSER_RATE, _CLOSER_PACE)
            point[rows[reached]] = tried[reached]
        return point


def _along_sphere(delta: Tensor, distance: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Turn perturbations by a random direction orthogonal to them, and keep their length."""
    flat, wanted = delta.flatten(1), noise.flatten(1)
    length = distance.clamp_min(1e-30)[:, None]
    unit = flat / length
    wanted = wanted - (wanted * unit).sum(1, keepdim=True) * unit
    wanted = wanted / wanted.norm(dim=1, keepdim=True).clamp_min(1e-30) * length * share[:, None]
    turned: Tensor = (flat + wanted) / (1 + share[:, None].square()).sqrt()
    return turned.view_as(delta)


def _paced(length: Tensor, success: Tensor, rate: float, pace: float) -> Tensor:
    """Lengthen steps that succeed and shorten those that fail, so that they stay where they succeed at the rate."""
    factor = torch.where(success, 1 + pace * (1 - rate), 1 - pace * rate)
    paced: Tensor = (length * factor).clamp(max=_LARGEST)
    return paced
