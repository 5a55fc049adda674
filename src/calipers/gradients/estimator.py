"""GradientEstimator: from a target and an objective to one value and one gradient for each input."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.errors import GradientsUnavailable, UsageError
from calipers.randomness import Draws
from calipers.target import Access, Oracle, Target
from calipers.threat.threat_model import Goal, Targeted

__all__ = [
    "Autograd",
    "GradientEstimate",
    "GradientEstimator",
    "Objective",
    "View",
    "check_rows",
    "goal_of_rows",
    "repeat_draws",
]

Objective = Callable[[Tensor, Tensor, Goal], Tensor]
"""From scores (batch, columns), labels (batch,) and the goal to one value an input, larger nearer the goal."""

View = Target | Oracle
"""What an estimator asks: the target itself, or a view of it that counts."""


@final
@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """What is known of each input at one point of a search.

    Args:
        value: the objective.
        gradient: the direction in which the objective rises, and how steeply: units of the objective per input unit.
        logits: the scores that the value was computed from; where several draws were averaged, their mean.
    """

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch *dims"]
    logits: Float[Tensor, "batch columns"]


class GradientEstimator(ABC):
    r"""Estimates :math:`\nabla_x L(f(x), y)` for each input by itself, in direction and in scale.

    What counts as the gradient is each member's own: autograd's, that of a smooth stand-in, that of an expectation.
    The sign is decided in :mod:`calipers.threat.objectives` alone: an attack ascends. Inputs share nothing, so the
    same input has the same estimate in any batch; only the randomness of a classifier that draws for a whole batch is
    exempt.

    A member is a frozen value. Its repr rebuilds it, and :meth:`describe` writes it for the command line.
    """

    revision: ClassVar[int] = 1
    """Raised when estimates change under the same fields; that of a view rises with that of what is inside."""

    @property
    @abstractmethod
    def access(self) -> Access:
        """What the target must give: GRADIENTS, or SCORES."""

    @abstractmethod
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
        """Estimate the gradient of the objective at each input.

        Args:
            target: the classifier, or a view that counts what it is asked.
            objective: the loss to be raised.
            x: inputs, float32, in input units.
            y: the true classes.
            goal: what the adversary wants.
            draws: the source of all randomness, the classifier's own included: the same draws give the same
                estimate. A search folds the number of its step in for fresh ones, or keeps them as common random
                numbers.

        Returns:
            Value, gradient and scores of each input. Entries that are not finite are passed on as they are.

        Raises:
            GradientsUnavailable: if the target gives less than :attr:`access`, or no gradient reaches the input.
        """

    @abstractmethod
    def describe(self) -> str:
        """Write the estimator as :func:`calipers.gradients.text.parse_gradient` reads it.

        Returns:
            The text.

        Raises:
            UsageError: if it holds a function that has no name.
        """


@final
@dataclass(frozen=True)
class Autograd(GradientEstimator):
    """The gradient of the network as it stands, by backpropagation: one forward and one backward for each input."""

    @property
    def access(self) -> Access:
        """Gradients."""
        return Access.GRADIENTS

    def describe(self) -> str:
        """Write ``autograd``."""
        return "autograd"

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
        """Differentiate the objective; see :meth:`GradientEstimator.estimate`."""
        check_rows(x, y, goal, draws)
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = _differentiable_scores(target, leaf, draws)
            value = objective(logits, y, goal)
            if not value.requires_grad:
                _refuse()
            (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value), allow_unused=True)
        if gradient is None:
            _refuse()
        return GradientEstimate(value.detach(), gradient, logits.detach())


def _differentiable_scores(target: View, leaf: Tensor, draws: Draws) -> Tensor:
    try:
        # a copy, since a network may start with an operation in place
        return target.logits(leaf.clone(), draws=draws)
    except RuntimeError as problem:
        if "numpy()" in str(problem):  # torch refuses to leave the graph without a word
            _refuse(problem)
        raise


def _refuse(problem: Exception | None = None) -> NoReturn:
    raise GradientsUnavailable(
        "no gradient of the scores reaches the input: name the module that stops it, bpda(MODULE=identity), or use "
        "scores alone, nes or spsa"
    ) from problem


def check_rows(x: Tensor, y: Tensor, goal: Goal, draws: Draws) -> None:
    """Check that there is a label, a wanted class and a stream of draws for each input.

    Args:
        x: inputs (batch, *input_shape).
        y: labels (batch,).
        goal: what the adversary wants.
        draws: the source of randomness.

    Raises:
        UsageError: if one of them has another length.
    """
    wanted = len(goal.classes) if isinstance(goal, Targeted) else len(x)
    for word, count in (("labels", len(y)), ("wanted classes", wanted), ("streams of draws", len(draws))):
        if count != len(x):
            raise UsageError(f"there are {count} {word} for {len(x)} inputs: give one each")


def goal_of_rows(goal: Goal, rows: Sequence[int]) -> Goal:
    """Make the goal of a batch of some of the inputs.

    Args:
        goal: the goal of all inputs.
        rows: which input each row of the new batch is; one may come many times.

    Returns:
        The goal.
    """
    if isinstance(goal, Targeted):
        return replace(goal, classes=tuple(goal.classes[row] for row in rows))
    return goal


def repeat_draws(draws: Draws, rows: Sequence[int], copies: int) -> Draws:
    """Make the draws of a batch in which each of some inputs stands many times in a row, each copy with its own.

    Args:
        draws: the draws of all inputs.
        rows: which inputs.
        copies: how often each stands.

    Returns:
        Draws of ``len(rows) * copies`` rows, which share none with those given.
    """
    indices = (draws.indices[row] * 2**32 + copy for row in rows for copy in range(copies))
    return replace(draws.fold(copies), indices=tuple(indices))
