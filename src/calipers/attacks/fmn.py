"""Fast minimum norm: gradient steps inside a ball whose radius follows the boundary, in l0, l1, l2 and linf."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import GradientAttack
from calipers.attacks.segment import draw_in, leads, scores
from calipers.attacks.tracker import Nearest, lead
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.randomness import Draws
from calipers.threat.norms import project, size, steepest
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["FMN"]

_DUALS = {Norm.L1: Norm.LINF, Norm.L2: Norm.L2, Norm.LINF: Norm.L1}
_LAST_STEP = 0.01
_LAST_GAMMA = 0.001


@final
@dataclass(frozen=True)
class FMN(GradientAttack):
    r"""Finds a small perturbation by gradient steps inside a ball that grows and shrinks around the boundary.

    .. math::
        \varepsilon_k &= \begin{cases}
            \|\delta_k\|_p + |L(x + \delta_k)| / \|\nabla L\|_q & \text{before the goal was ever reached} \\
            \varepsilon_{k-1}(1 + \gamma_k) & \text{where the goal is not reached now} \\
            \min(\varepsilon_{k-1}(1 - \gamma_k), \|\delta^\star\|_p) & \text{where it is} \end{cases} \\
        \delta_{k+1} &= \Pi_{[l, u]}\, \Pi_{\varepsilon_k}\bigl(\delta_k + \alpha_k \nabla L / \|\nabla L\|_2\bigr)

    with L the lead of the wanted class over the others, q the dual of p, and :math:`\alpha_k, \gamma_k` falling along
    a half cosine to 1/100 of the first and to 0.001. In l0 the radius changes by at least one coordinate.

    Reference: Pintor et al. 2021, arXiv:2102.12827, Algorithm 1.

    Differs from the paper: steps are a share of the current radius, so that the scale of the inputs does not matter;
    before the goal is reached the radius grows at each step, by gamma or to the distance extrapolated, since a search
    whose gradient turns to and fro stands still otherwise, and on a randomized classifier it does so to the end, since
    a lucky draw proves nothing; for a detector L minds the rejection score; in l0, the result is held against the
    fewest coordinates that reach the goal when they are moved to the faces of the box, those first that gain most by
    the gradient; the result is drawn in by :func:`~calipers.attacks.segment.draw_in`.

    Args:
        steps: points at which the classifier is asked; at all but the last for a gradient.
        step_size: the l2 length of the first step, as a share of that of the ball: of its radius in l1 and l2, of a
            corner's length in linf, of that many widths of the box in l0.
        gamma: the share by which the radius changes at first.
        tries: the most points tried in the end between each input and the result; 0 leaves the result as it is.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.L2, Norm.LINF, Norm.L1, Norm.L0)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    steps: int = 100
    step_size: float = 2.0
    gamma: float = 0.05
    tries: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2 or self.tries < 0:
            raise UsageError(
                f"steps is {self.steps} and tries {self.tries}: give at least 2 steps, and 0 tries or more"
            )
        if not 0 < self.step_size < math.inf:
            raise UsageError(f"step_size is {self.step_size}: give a positive share of the radius, such as 2")
        if not 0 < self.gamma < 1:
            raise UsageError(f"gamma is {self.gamma}: give a share inside (0, 1), such as 0.05")

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        norm, goal, (low, high) = threat.norm, threat.goal, view.bounds
        wide = (-1, *[1] * (x.ndim - 1))
        objective = partial(lead, num_classes=view.num_classes)
        best = Nearest(x, norm, last=view.stochastic)
        furthest = size(torch.maximum(x - low, high - x), norm)
        radius = torch.zeros_like(furthest)
        delta = torch.zeros_like(x)
        for step in range(self.steps - 1):
            share = (1 + math.cos(math.pi * step / self.steps)) / 2
            found = view.estimate(objective, x + delta, y, goal, draws.fold(step))
            reached = leads(found.logits, y, goal, num_classes=view.num_classes)
            best.offer(None, x + delta, reached)
            gamma = _LAST_GAMMA + (self.gamma - _LAST_GAMMA) * share
            if norm is Norm.L0:
                inward = torch.minimum(
                    torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), best.distance
                )
                outward = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
                radius = torch.where(reached, inward, outward).clamp_min(1)
            else:
                steep = size(found.gradient, _DUALS[norm])
                linear = size(delta, norm) + torch.nan_to_num(found.value.abs() / steep, nan=0.0)
                inward = torch.minimum(radius * (1 - gamma), best.distance)
                outward = radius * (1 + gamma)
                known = best.found & (not view.stochastic)
                outward = torch.where(known, outward, torch.maximum(outward, linear))
                radius = torch.where(reached, inward, outward)
            radius = torch.minimum(radius, furthest)
            step_size = self.step_size * (_LAST_STEP + (1 - _LAST_STEP) * share)
            length = step_size * _length(radius, norm, high - low, x[0].numel())
            delta = delta + length.view(wide) * steepest(found.gradient, Norm.L2)
            delta = (x + project(delta, radius, norm)).clamp(low, high) - x
        logits = scores(view, x + delta, y, goal, draws.fold(self.steps - 1))
        best.offer(None, x + delta, leads(logits, y, goal, num_classes=view.num_classes))
        if norm is Norm.L0 and not view.stochastic and self.tries:
            _try_faces(view, best, x, y, threat, draws.fold(self.steps))
        draw_in(view, best, x, y, goal, draws, norm=norm, tries=self.tries)
        return best.point


def _try_faces(view: View, best: Nearest, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> None:
    """Halve the number of coordinates that are moved to the faces of the box, those that gain most first."""
    low, high = view.bounds
    objective = partial(lead, num_classes=view.num_classes)
    found = view.estimate(objective, best.point, y, threat.goal, draws)
    room = torch.where(found.gradient > 0, high - x, low - x).flatten(1)
    gain = found.gradient.flatten(1) * room
    rank = gain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    most = best.distance.clamp_max(room.shape[1])
    least = torch.zeros_like(most)
    for step in range(math.ceil(math.log2(room.shape[1] + 1))):
        middle = ((least + most) / 2).floor()
        point = (x + torch.where(rank < middle[:, None], room, 0).view_as(x)).clamp(low, high)
        logits = scores(view, point, y, threat.goal, draws.fold(step))
        reached = leads(logits, y, threat.goal, num_classes=view.num_classes)
        best.offer(None, point, reached)
        most, least = torch.where(reached, middle, most), torch.where(reached, least, middle)


def _length(radius: Tensor, norm: Norm, width: float, dimension: int) -> Tensor:
    """Measure balls by the l2 length of their furthest points."""
    match norm:
        case Norm.LINF:
            return radius * math.sqrt(dimension)
        case Norm.L0:
            return radius * width
        case _:
            return radius
