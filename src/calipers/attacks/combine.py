"""Combinations: the worst of several attacks, and the least size at which an attack within a size succeeds."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.geometry import settle
from calipers.attacks.judge import reaches
from calipers.attacks.tracker import Nearest, lead
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.threat_model import Goal, Norm, ThreatModel

__all__ = ["MinimizeEps", "WorstOf", "ask", "minimize_eps", "worst_of"]

_WITHIN = (20, 0.9)
_LEAST = (100, 0.75)
"""How often a randomized classifier is asked, and which share of the answers suffices: within a size, where an input
that is down is searched no more, and for the least size, where the search ends as near as the judge lets it."""

_SLACK = 1e-5
_SCALES = 1e6
_ASKING = 2**32


def worst_of(*attacks: Attack) -> "WorstOf":
    """Combine attacks: each input gets the best that any of them finds.

    Args:
        attacks: the members, the cheapest first.

    Returns:
        An attack whose members run in order, each on what still stands.

    Example:
        >>> from calipers.attacks.fgsm import FGSM
        >>> from calipers.attacks.pgd import PGD
        >>> len(worst_of(FGSM(), PGD(loss="margin")).attacks)
        2
    """
    return WorstOf(tuple(attacks))


def minimize_eps(attack: Attack, *, tolerance: float = 0.01) -> "MinimizeEps":
    """Make an attack within a size look for the least size.

    Args:
        attack: the attack.
        tolerance: by which share of itself the size found may exceed the least one at which the attack succeeds.

    Returns:
        An attack without a size.
    """
    return MinimizeEps(attack, tolerance)


@final
@dataclass(frozen=True)
class WorstOf(Attack):
    """Runs its members in order, and keeps the best candidate of each input.

    Within a size, a member runs on the inputs that no member before it has brought down; each candidate is moved into
    the ball and asked for once more, and the one of the largest margin is kept. A randomized classifier is asked 20
    times, and an input is down where nine tenths of the answers reach the goal.

    Without a size every member runs on every input, and the nearest candidate is kept; of a randomized classifier the
    nearest of which three quarters of 100 answers reach the goal, or where there is none, the one of which the most do.

    Members see no more of the target than each says it needs, and what they ask is counted together.

    Args:
        attacks: the members, the cheapest first; all within a size, or all without, unless a size is given to each.
    """

    norms: ClassVar[tuple[Norm, ...]] = tuple(Norm)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 2

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        if not self.attacks:
            raise UsageError("worst_of has no attacks: give at least one")
        shared = tuple(norm for norm in Norm if all(norm in one.norms for one in self.attacks))
        if not shared:
            raise UsageError("the attacks of worst_of search in no norm together: choose others")
        # what a class says of itself, a combination says of its members
        object.__setattr__(self, "norms", shared)
        object.__setattr__(self, "sized", any(one.sized for one in self.attacks))
        object.__setattr__(self, "revision", self.revision + sum(one.revision - 1 for one in self.attacks))

    @property
    def access(self) -> Access:
        """The most that a member needs."""
        return max(one.access for one in self.attacks)

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        best, most = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        down = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        nearest = Nearest(x, threat.norm)
        for turn, attack in enumerate(self.attacks):
            rows = (~down).nonzero()[:, 0]
            if not len(rows):
                break
            found, value, reached = _attempt(
                attack,
                view,
                x,
                y,
                threat,
                draws.fold(turn),
                rows,
                asking=_LEAST if threat.eps is None else _WITHIN,
            )
            better = value > most[rows]
            best[rows[better]], most[rows[better]] = found[better], value[better]
            if threat.eps is None:
                nearest.offer(rows, found, reached)
            else:
                down[rows] |= reached
        if threat.eps is not None:
            return best
        if view.stochastic:  # what most answers make of it is for the judge to say
            return torch.where(nearest.found.view(-1, *[1] * (x.ndim - 1)), nearest.point, best)
        return nearest.point


@final
@dataclass(frozen=True)
class MinimizeEps(Attack):
    """Runs an attack within a size at sizes that close in on the least one that brings each input down.

    The sizes are a geometric grid from a millionth of the box up to the box, each larger than the one before by
    ``tolerance``; in l0 all numbers of coordinates. Each input halves its own part of the grid: down to the size of
    what was found after a success, up after a failure. The nearest point that was found and asked for again is kept.

    It takes an attack to succeed at every size above the least; where it does not, what is found is larger, and is
    still found.

    Args:
        attack: the attack within a size.
        tolerance: the ratio of neighbouring sizes, less 1.
    """

    norms: ClassVar[tuple[Norm, ...]] = tuple(Norm)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 2

    attack: Attack
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not self.attack.sized:
            raise UsageError(
                f"{type(self.attack).__name__} looks for the least size already: leave minimize_eps out"
            )
        if not 1e-6 <= self.tolerance <= 1:
            raise UsageError(f"tolerance is {self.tolerance}: give a share from 1e-6 to 1, such as 0.01")
        object.__setattr__(self, "norms", self.attack.norms)
        object.__setattr__(self, "revision", self.revision + self.attack.revision - 1)

    @property
    def access(self) -> Access:
        """What the attack needs."""
        return self.attack.access

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        sizes = self._sizes(x[0].numel(), threat, view.bounds)
        nearest = Nearest(x, threat.norm)
        failed, fallen = np.full(len(x), -1), np.full(len(x), len(sizes))
        while (fallen - failed > 1).any():
            middle = (failed + fallen) // 2
            for place in np.unique(middle[fallen - failed > 1]).tolist():
                chosen = np.flatnonzero((middle == place) & (fallen - failed > 1))
                rows = torch.from_numpy(chosen).to(x.device)
                part = replace(threat, eps=float(sizes[place]))
                found, _, reached = _attempt(
                    self.attack, view, x, y, part, draws.fold(place), rows, asking=_LEAST
                )
                nearest.offer(rows, found, reached)
                down = reached.cpu().numpy()
                failed[chosen[~down]] = place
                distance = nearest.distance[rows].cpu().numpy()[down]
                fallen[chosen[down]] = np.minimum(place, np.searchsorted(sizes, distance))
            # a size that failed may lie above one at which a nearer point was found
            failed = np.minimum(failed, fallen - 1)
        return nearest.point

    def _sizes(self, inputs: int, threat: ThreatModel, bounds: tuple[float, float]) -> NDArray[np.float64]:
        """List the sizes, rising; the last is the whole box, or the size that is allowed."""
        span = bounds[1] - bounds[0]
        order = {Norm.L0: 0.0, Norm.L1: 1.0, Norm.L2: 0.5, Norm.LINF: 0.0}[threat.norm]
        most = float(inputs) if threat.norm is Norm.L0 else span * inputs**order
        most = most if threat.eps is None else min(most, threat.eps)
        if threat.norm is Norm.L0:
            return np.arange(1.0, math.floor(most) + 1)
        count = math.ceil(math.log(_SCALES) / math.log1p(self.tolerance))
        return np.asarray(most / (1 + self.tolerance) ** np.arange(count, -1.0, -1.0), dtype=np.float64)


def _attempt(
    attack: Attack,
    view: View,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    draws: Draws,
    rows: Tensor,
    *,
    asking: tuple[int, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a member on some inputs: its candidates inside ball and box, how far they go, and whether that suffices."""
    numbers = rows.tolist()
    goal, streams = goal_of_rows(threat.goal, numbers), draws.of(numbers)
    member = view.of(rows).by(attack.access, attack._estimator)
    found = attack._search(member, x[rows], y[rows], replace(threat, goal=goal), streams)
    found = settle(found.detach(), x[rows], threat.norm, threat.eps, view.bounds)
    value, reached = ask(view.of(rows), found, y[rows], goal, streams.fold(_ASKING), asking=asking)
    return found, value, reached


def ask(
    view: View,
    point: Float[Tensor, "rows *dims"],
    y: Int[Tensor, " rows"],
    goal: Goal,
    draws: Draws,
    *,
    asking: tuple[int, float] = _WITHIN,
) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Ask for points once more, as the judge will.

    Args:
        view: the target.
        point: points inside the ball and the box.
        y: labels.
        goal: what the adversary wants.
        draws: the search's streams.
        asking: of a randomized classifier, how many answers are had and which share of them suffices.

    Returns:
        How far the goal is reached: the margin, or the share of answers that reach it; and whether that suffices.
    """
    if view.direct and not view.stochastic:
        logits = view.logits(point, draws)
        value = lead(logits, y, goal, num_classes=view.num_classes).float()
        value = value.masked_fill(value.isnan(), -torch.inf)
        return value, value > _SLACK * logits.abs().amax(1)
    count, suffices = asking
    times = count if view.stochastic else 1
    answers = torch.stack([view.predict(point, draws.fold(time)) for time in range(times)])
    rate = reaches(answers, y, goal).float().mean(0)
    return rate, rate >= suffices
