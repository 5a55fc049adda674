"""Projected gradient descent: many steps along the steepest direction, each projected onto the ball and the box."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import GradientAttack
from calipers.attacks.geometry import Ball, unblocked
from calipers.attacks.latest import Latest
from calipers.attacks.starts import random_starts
from calipers.attacks.tracker import Strongest, lead
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows
from calipers.randomness import Draws
from calipers.threat.norms import steepest
from calipers.threat.objectives import OBJECTIVES
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["PGD"]


@final
@dataclass(frozen=True)
class PGD(GradientAttack):
    r"""Ascends the objective from a random point of the ball.

    .. math:: x_{k+1} = \Pi_{B(x, \varepsilon) \cap [l, u]} (x_k + \eta\, s(\nabla L(f(x_k), y)))

    with :math:`s` the steepest step of size 1 in the norm. With ``restarts``, inputs that have not fallen are begun
    again elsewhere. The candidate is the point of the largest margin seen, so that a step past the boundary and back
    loses nothing. Inputs whose margin is above 0 for the scores seen leave the search, unless ``keep`` is set.

    Reference: Madry et al. 2018, arXiv:1706.06083, section 2.1.

    Differs from the paper: l1 and l2 balls, momentum, restarts, and the best point instead of the last. In l2 and l1
    a step leaves out the coordinates that the box stops.

    Args:
        steps: gradients taken at each restart.
        step_size: size of a step as a share of eps; 2.5 / steps if None.
        restarts: how often the search begins; the first is from a random point too, unless ``random_start`` is off.
        loss: the objective: cross_entropy, margin or dlr.
        momentum: share of the accumulated direction that is kept.
        random_start: whether a search begins at a random point of the ball, or at the clean input.
        keep: whether inputs that have fallen go on to be searched.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2, Norm.L1)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 2

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"
    momentum: float = 0.0
    random_start: bool = True
    keep: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"steps is {self.steps} and restarts {self.restarts}: give at least 1 of each")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise UsageError(f"step_size is {self.step_size}: give a positive share of eps, such as 0.1")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum is {self.momentum}: give a share from 0 to below 1")
        if self.loss not in OBJECTIVES:
            raise UsageError(f"loss is {self.loss!r}: use {', '.join(OBJECTIVES)}")

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        best = Strongest(x, keep=self.keep or view.stochastic)
        for restart in range(self.restarts):
            rows = best.standing()
            if len(rows):
                fresh = draws.fold(restart)
                start = random_starts(x, rows, threat, fresh) if self.random_start else x[rows]
                seen = Latest(x) if view.stochastic else best
                self._ascend(view, x, y, threat, fresh, rows, start.clamp(*view.bounds), seen)
                if isinstance(seen, Latest):
                    best.offer(rows, seen.point[rows], seen.value[rows])
        return best.point

    def _ascend(
        self,
        view: View,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        draws: Draws,
        rows: Tensor,
        point: Tensor,
        best: Strongest | Latest,
    ) -> None:
        eps = threat.eps or 0.0
        step_size = eps * (2.5 / self.steps if self.step_size is None else self.step_size)
        velocity = torch.zeros_like(point)
        objective = OBJECTIVES[self.loss]
        ball, label = Ball(x[rows], threat.norm, eps, view.bounds), y[rows]
        for step in range(self.steps + 1):
            numbers = rows.tolist()
            part, streams = view.of(rows), draws.of(numbers).fold(step)
            goal = goal_of_rows(threat.goal, numbers)
            if step == self.steps and not view.stochastic:
                logits = part.logits(point, streams)
                best.offer(rows, point, lead(logits, label, goal, num_classes=view.num_classes))
                return
            found = part.estimate(objective, point, label, goal, streams)
            best.offer(rows, point, lead(found.logits, label, goal, num_classes=view.num_classes))
            if step == self.steps:
                return
            gradient, left = found.gradient, best.still(rows)
            if not bool(left.all()):
                if not bool(left.any()):
                    return
                rows, ball, label = rows[left], ball.of(left), label[left]
                point, velocity, gradient = point[left], velocity[left], gradient[left]
            if self.momentum > 0:
                velocity = self.momentum * velocity + _unit_l1(gradient)
                gradient = velocity
            if threat.norm is not Norm.LINF:
                gradient = unblocked(gradient, point, view.bounds)
            point = ball.confine(steepest(gradient, threat.norm).mul_(step_size).add_(point))


def _unit_l1(gradient: Tensor) -> Tensor:
    """Scale each gradient to a mean magnitude of 1, as momentum needs (Dong et al. 2018, arXiv:1710.06081, eq. 6)."""
    mean = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
    return gradient / mean.view(-1, *[1] * (gradient.ndim - 1))
