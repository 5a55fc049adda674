"""Projected gradient descent: many steps along the steepest direction, each projected onto the ball and the box."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import GradientAttack
from calipers.attacks.tracker import Strongest, lead
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows
from calipers.randomness import Draws
from calipers.threat.norms import project, sample, steepest
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

    Differs from the paper: l1 and l2 balls, momentum, restarts, and the best point instead of the last.

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
    revision: ClassVar[int] = 1

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"
    momentum: float = 0.0
    random_start: bool = True
    keep: bool = False

    def __post_init__(self) -> None:
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
        best = Strongest(x, keep=self.keep or view.stochastic, last=view.stochastic)
        for restart in range(self.restarts):
            rows = best.standing()
            if len(rows):
                start = self._start(x, threat, draws.fold(restart), rows)
                self._ascend(view, x, y, threat, draws.fold(restart), rows, start, best)
        return best.point

    def _start(self, x: Tensor, threat: ThreatModel, draws: Draws, rows: Tensor) -> Tensor:
        if not self.random_start:
            return torch.zeros_like(x[rows])
        one = torch.full((1,), threat.eps or 0.0)
        drawn = [
            sample((1, *x.shape[1:]), one, threat.norm, draws[int(row)].generator(0)) for row in rows.tolist()
        ]
        return torch.cat(drawn).to(x)

    def _ascend(
        self,
        view: View,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        draws: Draws,
        rows: Tensor,
        delta: Tensor,
        best: Strongest,
    ) -> None:
        eps = threat.eps or 0.0
        step_size = eps * (2.5 / self.steps if self.step_size is None else self.step_size)
        velocity = torch.zeros_like(delta)
        objective = OBJECTIVES[self.loss]
        low, high = view.bounds
        for step in range(self.steps + 1):
            point = (x[rows] + delta).clamp(low, high)
            goal = goal_of_rows(threat.goal, rows.tolist())
            if step == self.steps:
                part = draws.of(rows.tolist()).fold(step)
                best.offer(
                    rows,
                    point,
                    lead(view.of(rows).logits(point, part), y[rows], goal, num_classes=view.num_classes),
                )
                return
            found = view.of(rows).estimate(
                objective, point, y[rows], goal, draws.of(rows.tolist()).fold(step)
            )
            best.offer(rows, point, lead(found.logits, y[rows], goal, num_classes=view.num_classes))
            left = best.still(rows)
            if not bool(left.any()):
                return
            rows, point, velocity = rows[left], point[left], velocity[left]
            velocity = self.momentum * velocity + unit_l1(found.gradient[left], when=self.momentum > 0)
            delta = point + step_size * steepest(velocity, threat.norm) - x[rows]
            radius = torch.full((len(rows),), eps, dtype=delta.dtype, device=delta.device)
            delta = project(delta, radius, threat.norm)


def unit_l1(gradient: Tensor, *, when: bool) -> Tensor:
    """Scale each gradient to a mean magnitude of 1, as momentum needs (Dong et al. 2018, arXiv:1710.06081, eq. 6).

    Args:
        gradient: one gradient an input.
        when: whether to; the gradient as it is otherwise.

    Returns:
        The gradients.
    """
    if not when:
        return gradient
    mean = gradient.abs().flatten(1).mean(1).clamp_min(1e-30)
    return gradient / mean.view(-1, *[1] * (gradient.ndim - 1))
