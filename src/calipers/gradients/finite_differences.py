r"""NES and SPSA: the gradient from scores alone, by differences along random directions.

NES draws :math:`u_i \sim N(0, I)` and estimates

.. math:: \frac{1}{2 n \sigma} \sum_{i=1}^n \bigl(L(x + \sigma u_i) - L(x - \sigma u_i)\bigr)\, u_i ,

SPSA draws signs :math:`v_i \in \{-1, 1\}^d` and estimates

.. math:: \frac{1}{n} \sum_{i=1}^n \frac{L(x + \delta v_i) - L(x - \delta v_i)}{2 \delta} \, v_i .

Both are unbiased for the gradient of a linear L, and of L smoothed by the step otherwise. Of a gradient g, n directions
leave an error of about :math:`\|g\|_2 \sqrt{d / n}` in l2.

References: Ilyas, Engstrom, Athalye and Lin 2018 (arXiv:1804.08598), algorithm 1; Uesato, O'Donoghue, van den Oord and
Kohli 2018 (arXiv:1802.05666), algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from calipers.errors import UsageError
from calipers.gradients.estimator import (
    GradientEstimate,
    GradientEstimator,
    Objective,
    View,
    check_rows,
    goal_of_rows,
    repeat_draws,
)
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.threat_model import Goal

__all__ = ["NES", "SPSA"]


@final
@dataclass(frozen=True)
class NES(GradientEstimator):
    """Natural evolution strategies: differences along normal directions (Ilyas et al. 2018, algorithm 1).

    Points asked lie about ``sigma`` outside the box where an input lies on its faces. Both sides of a difference see
    the same draws of a stochastic classifier.

    Differs from the paper: without ``antithetic`` the difference is that to the input itself, which keeps the estimate
    unbiased and its variance finite.

    Args:
        samples: directions an input: 2 queries each, or 1 if not antithetic, and 1 for the input itself.
        sigma: the step, in input units.
        antithetic: whether each direction is gone both ways.
        max_batch: rows that are run together, at most.

    Raises:
        UsageError: if an argument means nothing.
    """

    samples: int = 100
    sigma: float = 1e-3
    antithetic: bool = True
    max_batch: int = 1024

    def __post_init__(self) -> None:
        _check("nes", self.samples, "sigma", self.sigma, self.max_batch)

    @property
    def access(self) -> Access:
        """Scores."""
        return Access.SCORES

    def describe(self) -> str:
        """Write ``nes(SAMPLES, sigma=STEP)``."""
        one_sided = "" if self.antithetic else ", antithetic=false"
        return f"nes({self.samples}, sigma={self.sigma!r}{one_sided}{_batch(self.max_batch)})"

    def estimate(
        self,
        target: View,
        objective: Objective,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        goal: Goal,
        *,
        draws: Draws,
    ) -> GradientEstimate:
        """Estimate from scores; see :meth:`GradientEstimator.estimate`."""
        asked = _Asked(target, objective, x.detach(), y, goal, draws)
        plan = _Plan(_normal, self.samples, self.sigma, self.max_batch, two_sided=self.antithetic)
        return _from_differences(asked, plan)


@final
@dataclass(frozen=True)
class SPSA(GradientEstimator):
    """Simultaneous perturbation stochastic approximation: differences along signs (Uesato et al. 2018, algorithm 1).

    Args:
        samples: directions an input: 2 queries each, and 1 for the input itself.
        delta: the step in every coordinate, in input units.
        max_batch: rows that are run together, at most.

    Raises:
        UsageError: if an argument means nothing.
    """

    samples: int = 128
    delta: float = 0.01
    max_batch: int = 1024

    def __post_init__(self) -> None:
        _check("spsa", self.samples, "delta", self.delta, self.max_batch)

    @property
    def access(self) -> Access:
        """Scores."""
        return Access.SCORES

    def describe(self) -> str:
        """Write ``spsa(SAMPLES, delta=STEP)``."""
        return f"spsa({self.samples}, delta={self.delta!r}{_batch(self.max_batch)})"

    def estimate(
        self,
        target: View,
        objective: Objective,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        goal: Goal,
        *,
        draws: Draws,
    ) -> GradientEstimate:
        """Estimate from scores; see :meth:`GradientEstimator.estimate`."""
        asked = _Asked(target, objective, x.detach(), y, goal, draws)
        plan = _Plan(_signs, self.samples, self.delta, self.max_batch, two_sided=True)
        return _from_differences(asked, plan)


@dataclass(frozen=True)
class _Asked:
    """What is asked: losses of copies of the inputs, each copy moved a little."""

    target: View
    objective: Objective
    x: Tensor
    y: Tensor
    goal: Goal
    draws: Draws

    def rows(self, part: slice) -> "_Asked":
        rows = range(len(self.x))[part]
        goal = goal_of_rows(self.goal, rows)
        return _Asked(self.target, self.objective, self.x[part], self.y[part], goal, self.draws.of(rows))

    def scores(self, moved: Tensor, draws: Draws) -> Tensor:
        return self.target.logits(moved, draws=draws)

    def losses(self, step: Tensor, draws: Draws) -> Tensor:
        """Compute the loss of every input at steps (inputs, copies, *dims) from it."""
        copies = step.shape[1]
        logits = self.scores((self.x[:, None] + step).flatten(0, 1), draws)
        rows = [row for row in range(len(self.x)) for _ in range(copies)]
        losses = self.objective(logits, self.y.repeat_interleave(copies), goal_of_rows(self.goal, rows))
        return losses.view(len(self.x), copies)


@dataclass(frozen=True)
class _Plan:
    """How directions are drawn and gone along."""

    directions: Callable[[Tensor, Generator], Tensor]
    samples: int
    step: float
    max_batch: int
    two_sided: bool


@torch.no_grad()
def _from_differences(asked: _Asked, plan: _Plan) -> GradientEstimate:
    check_rows(asked.x, asked.y, asked.goal, asked.draws)
    logits = asked.scores(asked.x, asked.draws)
    value = asked.objective(logits, asked.y, asked.goal)
    gradient = torch.empty_like(asked.x)
    size = max(1, plan.max_batch // plan.samples)
    for start in range(0, len(asked.x), size):
        part = slice(start, start + size)
        gradient[part] = _slopes(asked.rows(part), value[part], plan)
    return GradientEstimate(value, gradient, logits)


def _slopes(asked: _Asked, value: Tensor, plan: _Plan) -> Tensor:
    """Average difference quotient times direction over the directions of some inputs."""
    x = asked.x
    directions = torch.empty((len(x), plan.samples, *x.shape[1:]), device=x.device, dtype=x.dtype)
    for row, own in enumerate(directions):
        plan.directions(own, asked.draws[row].generator(0, x.device))
    total = torch.zeros((len(x), x[0].numel()), device=x.device, dtype=torch.float64)
    for number, along in enumerate(torch.split(directions, plan.max_batch, 1)):
        draws = repeat_draws(asked.draws.fold(number), range(len(x)), along.shape[1])
        ahead = asked.losses(plan.step * along, draws).double()
        if plan.two_sided:
            quotient = (ahead - asked.losses(-plan.step * along, draws).double()) / (2 * plan.step)
        else:
            quotient = (ahead - value.double()[:, None]) / plan.step
        total += torch.einsum("bn,bnd->bd", quotient, along.flatten(2).double())
    return (total / plan.samples).view_as(x).to(x.dtype)


def _normal(buffer: Tensor, generator: Generator) -> Tensor:
    return buffer.normal_(generator=generator)


def _signs(buffer: Tensor, generator: Generator) -> Tensor:
    return buffer.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _check(name: str, samples: int, word: str, step: float, max_batch: int) -> None:
    if samples < 1 or max_batch < 1:
        raise UsageError(f"{name} has samples {samples} and max_batch {max_batch}: give at least 1")
    if not 0 < step < inf:
        raise UsageError(f"{word} is {step}: give a finite step above 0, in input units")


def _batch(max_batch: int) -> str:
    return "" if max_batch == 1024 else f", max_batch={max_batch}"
