"""DeepFool: steps to the nearest boundary of the linearized classifier, in l2 and linf."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import GradientAttack
from calipers.attacks.segment import draw_in, leads, scores, undone
from calipers.attacks.tracker import Nearest, lead
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows
from calipers.randomness import Draws
from calipers.threat.norms import size, steepest
from calipers.threat.threat_model import Goal, Norm, Targeted, ThreatModel

__all__ = ["DeepFool"]

_DUALS = {Norm.L2: Norm.L2, Norm.LINF: Norm.L1}
_LEAST = 1e-4


@final
@dataclass(frozen=True)
class DeepFool(GradientAttack):
    r"""Goes, step by step, to the nearest of the planes on which another class overtakes in the linearized classifier.

    .. math::
        k &= \arg\min_{k \ne y} |f_k(x_i) - f_y(x_i)| / \|w_k\|_q, \qquad w_k = \nabla (f_k - f_y)(x_i) \\
        \delta_{i+1} &= \delta_i + \frac{|f_k(x_i) - f_y(x_i)|}{\|w_k\|_q}\, s_p(w_k), \qquad
        x_{i+1} = \Pi_{[l, u]}\bigl(x + (1 + \eta)\, \delta_{i+1}\bigr)

    with :math:`s_p` the steepest step of size 1 in the norm and q its dual, until the goal is reached. A step costs one
    gradient for each class considered. A targeted search has one plane, that of the wanted class and its strongest
    rival.

    Reference: Moosavi-Dezfooli, Fawzi and Frossard 2016, arXiv:1511.04599, Algorithm 2 and section 3.3 (other norms).

    Differs from the paper: the box, whose faces are left out of a gradient that points out of it; targeted goals; the
    overshoot is part of each step, as in the authors' program; a plane that was overshot without reaching the goal is
    left by a ten-thousandth of the distance found so far; a plane is where the lead is more than rounding undoes, which
    matters where all scores share a large offset; the result is drawn in by
    :func:`~calipers.attacks.segment.draw_in`.

    Args:
        steps: the most steps; an input leaves when its goal is reached.
        classes: how many classes are considered, those with the largest scores at the clean input.
        overshoot: eta.
        tries: the most points tried in the end between each input and the result; 0 leaves the result as it is.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.L2, Norm.LINF)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 2

    steps: int = 50
    classes: int = 10
    overshoot: float = 0.02
    tries: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.tries < 0:
            raise UsageError(
                f"steps is {self.steps} and tries {self.tries}: give at least 1 step, and 0 tries or more"
            )
        if self.classes < 2:
            raise UsageError(f"classes is {self.classes}: the label's own and one more are needed")
        if not 0 <= self.overshoot < math.inf:
            raise UsageError(f"overshoot is {self.overshoot}: give a share of at least 0, such as 0.02")

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        norm, (low, high) = threat.norm, view.bounds
        wide = (-1, *[1] * (x.ndim - 1))
        best = Nearest(x, norm, last=view.stochastic)
        rows, delta, point = torch.arange(len(x), device=x.device), torch.zeros_like(x), x
        rivals = self._rivals(
            scores(view, x, y, threat.goal, draws.fold(self.steps)), y, threat.goal, view.num_classes
        )
        for step in range(self.steps):
            numbers = rows.tolist()
            goal = goal_of_rows(threat.goal, numbers)
            part, now = view.of(rows), draws.of(numbers).fold(step)
            nearest = torch.full((len(rows),), torch.inf, dtype=x.dtype, device=x.device)
            direction = torch.zeros_like(point)
            for rival in rivals:
                aimed = goal if rival is None else Targeted(tuple(rival[rows].tolist()))
                objective = partial(lead if rival is None else _over_label, num_classes=view.num_classes)
                found = part.estimate(objective, point, y[rows], aimed, now)
                outward = ((point <= low) & (found.gradient < 0)) | ((point >= high) & (found.gradient > 0))
                free = found.gradient.masked_fill(outward, 0)
                gap = (undone(found.logits) - found.value).clamp_min(0) / size(free, _DUALS[norm])
                closer = gap < nearest
                nearest = torch.where(closer, gap, nearest)
                direction = torch.where(closer.view(wide), steepest(free, norm), direction)
            least = _LEAST * size(delta, norm)
            length = torch.where(nearest.isfinite(), torch.maximum(nearest, least), 0)
            delta = delta + length.view(wide) * direction
            point = (x[rows] + (1 + self.overshoot) * delta).clamp(low, high)
            delta = torch.where(
                (point > low) & (point < high), delta, (point - x[rows]) / (1 + self.overshoot)
            )
            logits = scores(part, point, y[rows], goal, draws.of(numbers).fold(self.steps + 1 + step))
            reached = leads(logits, y[rows], goal, num_classes=view.num_classes)
            best.offer(rows, point, reached)
            if not view.stochastic:
                rows, delta, point = rows[~reached], delta[~reached], point[~reached]
            if not len(rows):
                break
        draw_in(view, best, x, y, threat.goal, draws, norm=norm, tries=self.tries)
        return best.point

    def _rivals(self, logits: Tensor, y: Tensor, goal: Goal, num_classes: int) -> list[Tensor | None]:
        """List the classes to be considered, one an input each; None for the wanted class's strongest rival."""
        if isinstance(goal, Targeted):
            return [None]
        scores = logits[:, :num_classes].scatter(1, y[:, None], -torch.inf)
        count = min(self.classes, num_classes) - 1
        return list(scores.argsort(dim=1, descending=True, stable=True)[:, :count].T)


def _over_label(logits: Tensor, y: Tensor, goal: Goal, *, num_classes: int) -> Tensor:
    """Measure by how much the class aimed at leads the label, and a detector's rejection score."""
    assert isinstance(goal, Targeted)
    wanted = torch.tensor(goal.classes, device=logits.device)
    against = torch.cat([logits.gather(1, y[:, None]), logits[:, num_classes:]], 1).amax(1)
    return logits.gather(1, wanted[:, None])[:, 0] - against
