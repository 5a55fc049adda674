"""APGD: projected gradient descent with momentum whose step sizes are decided by the progress that it makes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
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
from calipers.threat.norms import size, steepest
from calipers.threat.objectives import OBJECTIVES
from calipers.threat.threat_model import Goal, Norm, Targeted, ThreatModel

__all__ = ["APGD"]

_MOMENTUM = 0.75
_RISES = 0.75
_SPARSER = 1.5
_SETTLED = 0.95
_LEAST_STEP = 0.1
_LARGER = 2**32
_LARGER_SHARE = 0.6


@final
@dataclass(frozen=True)
class APGD(GradientAttack):
    r"""Ascends the objective with momentum, and halves the step of each input when it stops paying.

    In linf and l2, with :math:`z = \Pi(x_k + \eta\, s(\nabla L))` and :math:`a = 3/4`,

    .. math:: x_{k+1} = \Pi(x_k + a (z - x_k) + (1 - a)(x_k - x_{k-1})) .

    The step size :math:`\eta` begins at 2 eps. At each checkpoint it is halved, and the search goes back to the best
    point, where fewer than 3/4 of the steps raised the objective, or neither step size nor best value has changed since
    the last one.

    In l1 a step moves the coordinates of the largest gradients, equally far and by eps in all: two thirds as many as
    the best point has changed, a fifth of all at first. The step size is divided by 1.5, down to eps / 10, when that
    number settles, and begins again at eps, at the best point, when it falls. There is no momentum.

    The search first goes through larger balls, of 4 eps and of 2 eps, three tenths of the steps each, and begins in the
    next one at the best point of the last. Where scores are flat around an input, as they are in other norms on a
    network trained against linf, the slope that leads out is found from further away. ``radii=(1,)`` leaves the larger
    balls out.

    With ``targets`` the search runs for each of the most likely other classes in turn, with the targeted objective; to
    reach any class other than the label is a success. Inputs whose goal is reached leave the search.

    References: Croce and Hein 2020, arXiv:2003.01690, Algorithm 1; in l1 Croce and Hein 2021, arXiv:2103.01208,
    section 3.

    Differs from the papers: the balls are of 4, 2 and 1 eps in every norm, where the paper of 2021 has 3, 2 and 1 in l1
    and that of 2020 eps alone; the random start is uniform in the first ball. An input leaves the search as soon as it
    has fallen, and the candidate is the point of the largest margin, which is not always that of the largest objective.

    Args:
        steps: gradients taken at each restart and for each class.
        restarts: how often the search begins.
        loss: the objective: cross_entropy, margin or dlr. dlr needs 3 classes, and 4 where it is targeted.
        targets: for how many of the most likely other classes the search runs; 0 for the untargeted objective. Without
            effect where the goal names the class.
        random_start: whether a search begins at a random point of the ball, or at the clean input.
        radii: the balls that are searched one after the other, as multiples of eps, falling to 1.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2, Norm.L1)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 4

    steps: int = 100
    restarts: int = 1
    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"
    targets: int = 0
    random_start: bool = True
    radii: tuple[float, ...] = (4.0, 2.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"steps is {self.steps} and restarts {self.restarts}: give at least 1 of each")
        if self.targets < 0:
            raise UsageError(f"targets is {self.targets}: give a number of classes, or 0")
        falling = all(one > next_ for one, next_ in pairwise(self.radii))
        if not self.radii or not falling or self.radii[-1] != 1 or not math.isfinite(self.radii[0]):
            raise UsageError(
                f"radii is {self.radii}: give falling multiples of eps that end at 1, such as (4, 2, 1)"
            )
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
        best = Strongest(x, keep=view.stochastic)
        for turn, aim in enumerate(self._aims(view, x, y, threat.goal, draws)):
            for restart in range(self.restarts):
                rows, fresh = best.standing(), draws.fold(turn).fold(restart)
                if len(rows):
                    widest = replace(threat, eps=self._balls(threat)[0][0])
                    start = random_starts(x, rows, widest, fresh) if self.random_start else x[rows]
                    seen = Latest(x) if view.stochastic else best
                    self._narrow(view, x, y, threat, aim, fresh, rows, start.clamp(*view.bounds), seen)
                    if isinstance(seen, Latest):
                        best.offer(rows, seen.point[rows], seen.value[rows])
        return best.point

    def _aims(self, view: View, x: Tensor, y: Tensor, goal: Goal, draws: Draws) -> Iterator[Goal]:
        """Give the goals of the objective, one after the other."""
        if isinstance(goal, Targeted) or not self.targets:
            yield goal
            return
        scores = view.logits(x, draws.fold(self.steps))[:, : view.num_classes]
        likely = scores.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        for turn in range(min(self.targets, view.num_classes - 1)):
            yield Targeted(tuple(likely[:, turn].tolist()), abstain=goal.abstain)

    def _balls(self, threat: ThreatModel) -> list[tuple[float, int]]:
        """List the radii that are searched one after the other, and the steps that each gets."""
        eps, (*larger, _) = threat.eps or 0.0, self.radii
        steps = int(_LARGER_SHARE * self.steps / len(larger)) if larger else 0
        return [*((times * eps, steps) for times in larger if steps), (eps, self.steps - steps * len(larger))]

    def _narrow(
        self,
        view: View,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        aim: Goal,
        draws: Draws,
        rows: Tensor,
        start: Tensor,
        best: Strongest | Latest,
    ) -> None:
        """Ascend in each of the balls, from the best point of the one before; the last one offers what it finds."""
        *larger, last = self._balls(threat)
        for phase, (radius, steps) in enumerate(larger, start=1):
            ball, fresh = replace(threat, eps=radius), draws.fold(_LARGER).fold(phase)
            start = self._ascend(view.outside(), x, y, ball, aim, fresh, rows, start, None, steps)
        self._ascend(view, x, y, threat, aim, draws, rows, start, best, last[1])

    def _ascend(
        self,
        view: View,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        aim: Goal,
        draws: Draws,
        rows: Tensor,
        start: Tensor,
        best: Strongest | Latest | None,
        steps: int,
    ) -> Tensor:
        """Search one ball; without ``best`` a larger one, in which nothing is offered and all inputs stay."""
        eps, sparse = threat.eps or 0.0, threat.norm is Norm.L1
        ball, label = Ball(x[rows], threat.norm, eps, view.bounds), y[rows]
        state = _State.begin(ball.confine(start), eps if sparse else 2 * eps)
        checkpoints = _every(steps) if sparse else _checkpoints(steps)
        for step in range(steps + (best is not None)):
            numbers = rows.tolist()
            part, streams = view.of(rows), draws.of(numbers).fold(step)
            goal = goal_of_rows(threat.goal, numbers)
            if best is not None and step == steps and not view.stochastic:
                logits = part.logits(state.point, streams)
                best.offer(rows, state.point, lead(logits, label, goal, num_classes=view.num_classes))
                break
            found = part.estimate(
                OBJECTIVES[self.loss], state.point, label, goal_of_rows(aim, numbers), streams
            )
            if best is not None:
                value = lead(found.logits, label, goal, num_classes=view.num_classes)
                best.offer(rows, state.point, value)
            if step == steps:
                break
            state.see(found.value, found.gradient)
            left = torch.ones_like(rows, dtype=torch.bool) if best is None else best.still(rows)
            if not bool(left.all()):
                if not bool(left.any()):
                    break
                rows, ball, label, state = rows[left], ball.of(left), label[left], state.of(left)
            if step in checkpoints and step:
                if sparse:
                    state.settle_sparse(x[rows], eps)
                else:
                    state.halve(checkpoints[step])
            state.move(ball, threat.norm, view.bounds, first=step == 0)
        return state.best_point


@dataclass(eq=False)
class _State:
    """One run for each input: where it is, where it was, what was best, and how far a step goes."""

    point: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best_point: Tensor
    best_gradient: Tensor
    best_value: Tensor
    step_size: Tensor
    rises: Tensor
    halved: Tensor
    best_before: Tensor
    changed: Tensor
    share: Tensor

    @staticmethod
    def begin(point: Tensor, step_size: float) -> "_State":
        each = torch.zeros(len(point), device=point.device)
        never, none = torch.full_like(each, -torch.inf), torch.zeros_like(point)
        return _State(
            point=point,
            previous=point,
            gradient=none,
            value=-never,  # the first value is no rise
            best_point=point,
            best_gradient=none,
            best_value=never,
            step_size=torch.full_like(each, step_size),
            rises=each,
            halved=torch.ones_like(each, dtype=torch.bool),
            best_before=never,
            changed=torch.full_like(each, float(point[0].numel()) if len(point) else 0.0),
            share=torch.full_like(each, 0.2),
        )

    def of(self, left: Tensor) -> "_State":
        return replace(self, **{name: held[left] for name, held in vars(self).items()})

    def see(self, value: Tensor, gradient: Tensor) -> None:
        value = value.masked_fill(value.isnan(), -torch.inf).to(self.value.dtype)
        self.rises = self.rises + (value > self.value)
        better = value > self.best_value
        wide = _wide(better, self.point)
        self.best_point = torch.where(wide, self.point, self.best_point)
        self.best_gradient = torch.where(wide, gradient, self.best_gradient)
        self.best_value = torch.where(better, value, self.best_value)
        self.value, self.gradient = value, gradient

    def halve(self, span: int) -> None:
        """Conditions 1 and 2 of section 3.2: halve where the last steps paid too seldom, or nothing changed."""
        seldom = self.rises < _RISES * span
        idle = ~self.halved & (self.best_value == self.best_before)
        self._return_to_best(seldom | idle)
        self.step_size = torch.where(seldom | idle, self.step_size / 2, self.step_size)
        self.halved, self.best_before = seldom | idle, self.best_value
        self.rises = torch.zeros_like(self.rises)

    def settle_sparse(self, x: Tensor, eps: float) -> None:
        """In l1: fewer coordinates and a whole step where the perturbation has become sparser, else a smaller step."""
        changed = size(self.best_point - x, Norm.L0).to(self.changed)
        sparser = changed < _SETTLED * self.changed
        self._return_to_best(sparser)
        smaller = (self.step_size / _SPARSER).clamp_min(_LEAST_STEP * eps)
        self.step_size = torch.where(sparser, eps, smaller)
        self.share, self.changed = changed / x[0].numel() / _SPARSER, changed

    def move(self, ball: Ball, norm: Norm, bounds: tuple[float, float], *, first: bool) -> None:
        gradient = self.gradient if norm is Norm.LINF else unblocked(self.gradient, self.point, bounds)
        direction = _sparse_step(gradient, self.share) if norm is Norm.L1 else steepest(gradient, norm)
        far = self.step_size.view(-1, *[1] * (direction.ndim - 1))
        moved = ball.confine(direction.mul_(far).add_(self.point))
        if norm is not Norm.L1 and not first:
            drift = _MOMENTUM * (moved - self.point) + (1 - _MOMENTUM) * (self.point - self.previous)
            moved = ball.confine(drift.add_(self.point))
        self.previous, self.point = self.point, moved

    def _return_to_best(self, back: Tensor) -> None:
        wide = _wide(back, self.point)
        self.point = torch.where(wide, self.best_point, self.point)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.value = torch.where(back, self.best_value, self.value)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.ndim - 1))


def _checkpoints(steps: int) -> dict[int, int]:
    """List the steps at which step sizes are decided, and how many went before: section 3.2 of the paper of 2020."""
    shares, found = [0.0, 0.22], {}
    while shares[-1] < 1:
        here, before = (math.ceil(round(share * steps, 9)) for share in (shares[-1], shares[-2]))
        if here > before:
            found[here] = here - before
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return found


def _every(steps: int) -> dict[int, int]:
    """List the steps at which the sparsity of an l1 search is decided: each 25th part."""
    span = max(steps // 25, 1)
    return dict.fromkeys(range(span, steps, span), span)


def _sparse_step(gradient: Tensor, share: Tensor) -> Tensor:
    """Step of l1 size 1 along the signs of the largest shares of a gradient, at least one coordinate."""
    flat = gradient.abs().flatten(1)
    count = (share * flat.shape[1]).long().clamp(1, flat.shape[1])
    least = flat.sort(1, descending=True).values.gather(1, (count - 1)[:, None])
    signs = torch.where((flat >= least) & (flat > 0), gradient.flatten(1).sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)
