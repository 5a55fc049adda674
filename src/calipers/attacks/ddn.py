"""Decoupled direction and norm: gradient steps on the direction, while the norm follows the boundary, in l2."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import GradientAttack
from calipers.attacks.segment import draw_in, leads, scores
from calipers.attacks.tracker import Nearest, lead
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.randomness import Draws
from calipers.threat.norms import size, steepest
from calipers.threat.objectives import OBJECTIVES
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["DDN"]

_LAST_STEP = 0.01
_TINY = 1e-30


@final
@dataclass(frozen=True)
class DDN(GradientAttack):
    r"""Finds a small l2 perturbation: its length shrinks where the goal is reached and grows where it is not.

    .. math::
        \delta_{k+1} &= \delta_k + \alpha_k \nabla L / \|\nabla L\|_2 \\
        \varepsilon_{k+1} &= (1 \mp \gamma)\, \varepsilon_k \\
        x_{k+1} &= \Pi_{[l, u]}\bigl(x + \varepsilon_{k+1}\, \delta_{k+1} / \|\delta_{k+1}\|_2\bigr)

    with the minus where :math:`x_k` reaches the goal, and :math:`\alpha_k` falling along a half cosine to 1/100 of
    the first.

    Reference: Rony et al. 2019, arXiv:1811.09600, Algorithm 1.

    Differs from the paper: the first length is the distance to the boundary of the linearized lead instead of 1, and
    steps are a share of the current length, so that the scale of the inputs does not matter; nothing is rounded to
    bytes (the judge does that, if it is to); the result is drawn in by :func:`~calipers.attacks.segment.draw_in`.

    Args:
        steps: points at which the classifier is asked; at all but the last for a gradient.
        step_size: the length of the first step, as a share of that of the perturbation.
        gamma: the share by which the length changes at each step.
        loss: the objective: cross_entropy, margin or dlr.
        tries: the most points tried in the end between each input and the result; 0 leaves the result as it is.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.L2,)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"
    tries: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2 or self.tries < 0:
            raise UsageError(
                f"steps is {self.steps} and tries {self.tries}: give at least 2 steps, and 0 tries or more"
            )
        if not 0 < self.step_size < math.inf:
            raise UsageError(f"step_size is {self.step_size}: give a positive share of the length, such as 1")
        if not 0 < self.gamma < 1:
            raise UsageError(f"gamma is {self.gamma}: give a share inside (0, 1), such as 0.05")
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
        goal, (low, high) = threat.goal, view.bounds
        wide = (-1, *[1] * (x.ndim - 1))
        best = Nearest(x, Norm.L2, last=view.stochastic)
        furthest = size(torch.maximum(x - low, high - x), Norm.L2)
        first = view.estimate(partial(lead, num_classes=view.num_classes), x, y, goal, draws.fold(0))
        linear = first.value.abs() / size(first.gradient, Norm.L2)
        radius = torch.minimum(torch.nan_to_num(linear, nan=0.0), furthest)
        delta = radius.view(wide) * steepest(first.gradient, Norm.L2)
        for step in range(1, self.steps - 1):
            delta = (x + delta).clamp(low, high) - x
            found = view.estimate(OBJECTIVES[self.loss], x + delta, y, goal, draws.fold(step))
            reached = leads(found.logits, y, goal, num_classes=view.num_classes)
            best.offer(None, x + delta, reached)
            share = (1 + math.cos(math.pi * step / self.steps)) / 2
            step_size = self.step_size * (_LAST_STEP + (1 - _LAST_STEP) * share)
            delta = delta + (step_size * radius).view(wide) * steepest(found.gradient, Norm.L2)
            radius = radius * torch.where(reached, 1 - self.gamma, 1 + self.gamma)
            radius = torch.minimum(radius, furthest)
            delta = delta * (radius / size(delta, Norm.L2).clamp_min(_TINY)).view(wide)
        point = (x + delta).clamp(low, high)
        logits = scores(view, point, y, goal, draws.fold(self.steps - 1))
        best.offer(None, point, leads(logits, y, goal, num_classes=view.num_classes))
        draw_in(view, best, x, y, goal, draws, norm=Norm.L2, tries=self.tries)
        return best.point
