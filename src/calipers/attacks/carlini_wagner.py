"""Carlini-Wagner: the perturbation's length and a penalty minimized together over an unconstrained variable, in l2."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import GradientAttack
from calipers.attacks.segment import draw_in, leads
from calipers.attacks.tracker import Nearest, lead
from calipers.attacks.view import View
from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.reparameterization import SearchVariable, TanhBox
from calipers.randomness import Draws
from calipers.threat.norms import size
from calipers.threat.threat_model import Goal, Norm, ThreatModel

__all__ = ["CarliniWagner"]

_SHRINK = 0.999
_MEAN, _SQUARE, _TINY = 0.9, 0.999, 1e-12
_LAST_STEP = 0.01
_FACTOR = 4.0
_PROBE = 1e-3


@final
@dataclass(frozen=True)
class CarliniWagner(GradientAttack):
    r"""Minimizes length and penalty together, and searches for the weight at which the goal is just reached.

    .. math:: \min_z\; \|h(z) - x\|_2^2 + c\, \max(-L(h(z)), 0)

    by Adam, with L the lead of the wanted class over the others and h the search variable's way to an input: the tanh
    of the box, or, for a defense that projects onto a generator's range, the generator itself. A weight c that reaches
    the goal is made smaller, and one that does not larger.

    Reference: Carlini and Wagner 2017, arXiv:1608.04644, sections V and VI.A, with the penalty f6 and confidence 0.

    Differs from the paper: the first weight is that at which the linearized problem is solved, instead of one
    hundredth of a thousandth, and a bracket of weights is halved in its logarithm; steps of Adam are measured in input
    units and fall along a half cosine to 1/100; the result is drawn in
    by :func:`~calipers.attacks.segment.draw_in`.

    Coordinates at a face of the box move slowly in the tanh: where there are many, DDN and FMN end nearer.

    Args:
        steps: gradients taken for each weight.
        weights: how many weights are tried.
        step_size: the l2 length, in input units, of the first step, as a share of the distance to the boundary of the
            linearized classifier.
        over: what is searched over; the tanh of the target's box if None.
        tries: the most points tried in the end between each input and the result; 0 leaves the result as it is.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.L2,)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    steps: int = 100
    weights: int = 6
    step_size: float = 1.0
    over: SearchVariable | None = None
    tries: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.weights < 1 or self.tries < 0:
            raise UsageError(
                f"steps is {self.steps}, weights {self.weights} and tries {self.tries}: give at least 1 step and "
                "1 weight, and 0 tries or more"
            )
        if not 0 < self.step_size < math.inf:
            raise UsageError(
                f"step_size is {self.step_size}: give a positive share of the distance, such as 1"
            )

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
        over = self.over or TanhBox(low, high, _SHRINK)
        best = Nearest(x, Norm.L2, last=view.stochastic)
        penalty = partial(_hinge, num_classes=view.num_classes)
        start = over.start(x)
        weight, rate = self._scales(view, over, start, x, y, goal, draws)
        below, above = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        for attempt in range(self.weights):
            z, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
            won = torch.zeros_like(weight, dtype=torch.bool)
            for step in range(self.steps):
                leaf, point = _decode(over, z, x, view.bounds)
                at = draws.fold(1 + attempt * self.steps + step)
                found = view.estimate(penalty, point.detach(), y, goal, at)
                reached = leads(found.logits, y, goal, num_classes=view.num_classes)
                best.offer(None, point.detach(), reached)
                won |= reached
                rise = weight.view(wide) * found.gradient - 2 * (point.detach() - x)
                (gradient,) = torch.autograd.grad(point, leaf, rise)
                mean = _MEAN * mean + (1 - _MEAN) * gradient
                square = _SQUARE * square + (1 - _SQUARE) * gradient.square()
                share = (1 + math.cos(math.pi * step / self.steps)) / 2
                length = (_LAST_STEP + (1 - _LAST_STEP) * share) / (1 - _MEAN ** (step + 1))
                spread = (square / (1 - _SQUARE ** (step + 1))).sqrt() + _TINY
                z = z + rate.view(-1, *[1] * (z.ndim - 1)) * length * mean / spread
            above = torch.where(won, weight, above)
            below = torch.where(won, below, weight)
            open_ = torch.where(won, weight / _FACTOR, weight * _FACTOR)
            weight = torch.where((below > 0) & above.isfinite(), (below * above).sqrt(), open_)
        draw_in(view, best, x, y, goal, draws, norm=Norm.L2, tries=self.tries)
        return best.point

    def _scales(
        self, view: View, over: SearchVariable, start: Tensor, x: Tensor, y: Tensor, goal: Goal, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Find the weight that solves the linearized problem, and Adam's rate for steps of a given length there."""
        found = view.estimate(partial(lead, num_classes=view.num_classes), x, y, goal, draws.fold(0))
        steep = size(found.gradient, Norm.L2)
        distance = found.value.abs() / steep
        weight = 2 * distance / steep
        leaf, point = _decode(over, start, x, view.bounds)
        (uphill,) = torch.autograd.grad(point, leaf, found.gradient)
        _, moved = _decode(over, start + _PROBE * uphill.sign(), x, view.bounds)
        rate = self.step_size * distance * _PROBE / size((moved - point).detach(), Norm.L2)
        usable = torch.isfinite(weight) & torch.isfinite(rate) & (weight > 0)
        return torch.where(usable, weight, 1.0), torch.where(usable, rate, _PROBE)


def _decode(over: SearchVariable, z: Tensor, x: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Give the variable as a leaf of a graph, and the inputs that it stands for."""
    leaf = z.detach().requires_grad_(True)
    with torch.enable_grad():
        point = over.point(leaf).to(x.dtype).clamp(*bounds)
    if not point.requires_grad:
        raise GradientsUnavailable(
            f"{over!r} decodes without a gradient: give a decode that is differentiable in z"
        )
    if point.shape != x.shape:
        raise UsageError(
            f"{over!r} decodes to {tuple(point.shape[1:])} and an input has {tuple(x.shape[1:])}"
        )
    return leaf, point


def _hinge(logits: Tensor, y: Tensor, goal: Goal, *, num_classes: int) -> Tensor:
    return lead(logits, y, goal, num_classes=num_classes).clamp_max(0)
