"""View: the only way in which a search asks its target; it counts for each input, and traces where one wants to see."""

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.tracker import lead
from calipers.errors import UsageError
from calipers.gradients.estimator import GradientEstimate, GradientEstimator, Objective
from calipers.randomness import Draws
from calipers.target import Access, Counts, Oracle, Target
from calipers.threat.threat_model import Goal

__all__ = ["Counted", "Trace", "View"]


@final
@dataclass(eq=False)
class Counted:
    """What was asked for each input.

    Args:
        queries: inputs answered, by scores or decisions.
        forwards: inputs passed forward.
        backwards: inputs passed backward.
    """

    queries: Int[Tensor, " batch"]
    forwards: Int[Tensor, " batch"]
    backwards: Int[Tensor, " batch"]


@final
@dataclass
class Trace:
    """What a search saw at each of its estimates, filled in as it goes.

    Every list has one entry an estimate; an entry has one value for each input that was asked about then.

    Args:
        rows: which inputs these were.
        value: the objective.
        reached: whether the goal was reached by the scores seen.
        gradient: the l2 size of the gradient.
    """

    rows: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    reached: list[Tensor] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)


@final
class View:
    """A target as a search may see it.

    Args:
        target: the classifier.
        access: the most that may be seen.
        estimator: how gradients are had.
        count: the number of inputs of the batch.
        trace: filled in at each estimate, if given.
    """

    def __init__(
        self,
        target: Target,
        access: Access,
        estimator: GradientEstimator | None,
        *,
        count: int,
        trace: Trace | None = None,
    ) -> None:
        self._target = target
        self._access = access
        self._estimator = estimator
        self._trace = trace
        self._rows = torch.arange(count)
        zeros = torch.zeros(count, dtype=torch.int64)
        self.counts = Counted(zeros.clone(), zeros.clone(), zeros.clone())
        self.flat = torch.ones(count, dtype=torch.bool)
        """Inputs whose gradient was asked for and was 0, or no number, each time."""
        if estimator is None:
            self.flat[:] = False
        Oracle(target, access)

    def of(self, rows: Tensor) -> "View":
        """See some of the inputs: what is asked through the new view is counted for them.

        Args:
            rows: places among the inputs of this view, or a mask of them.

        Returns:
            A view that shares counts and trace with this one.
        """
        part = object.__new__(View)
        part.__dict__.update(self.__dict__)
        part._rows = self._rows[rows.cpu()]
        return part

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self._target.num_classes

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value of a valid input."""
        return self._target.bounds

    @property
    def stochastic(self) -> bool:
        """Whether the classifier draws randomness of its own, so that one draw decides nothing."""
        return self._target.stochastic

    @property
    def device(self) -> torch.device:
        """Where the classifier runs."""
        return self._target.device

    def estimate(
        self,
        objective: Objective,
        x: Float[Tensor, "rows *dims"],
        y: Int[Tensor, " rows"],
        goal: Goal,
        draws: Draws,
    ) -> GradientEstimate:
        """Estimate the gradient of an objective, in the way that the attack was told to.

        Args:
            objective: the loss to be raised.
            x: one point for each input of this view.
            y: labels.
            goal: what the adversary wants.
            draws: the streams of this step: ``draws.fold(step)``.

        Returns:
            Value, gradient and scores. A gradient that is no number is 0.

        Raises:
            UsageError: if the attack has no estimator.
        """
        if self._estimator is None:
            raise UsageError("this search asks for a gradient and its attack has no estimator")
        oracle = Oracle(self._target, self._estimator.access)
        found = self._estimator.estimate(oracle, objective, x, y, goal, draws=draws)
        self._count(oracle.counts)
        gradient = torch.nan_to_num(found.gradient, nan=0.0, posinf=0.0, neginf=0.0)
        moving = (gradient.flatten(1) != 0).any(1).cpu()
        self.flat[self._rows[moving]] = False
        if self._trace is not None:
            self._trace.rows.append(self._rows.clone())
            self._trace.value.append(found.value.detach().cpu())
            self._trace.reached.append((lead(found.logits, y, goal, num_classes=self.num_classes) > 0).cpu())
            self._trace.gradient.append(gradient.flatten(1).norm(dim=1).cpu())
        return GradientEstimate(found.value, gradient, found.logits)

    def logits(
        self, x: Float[Tensor, "rows *dims"], draws: Draws | None = None
    ) -> Float[Tensor, "rows columns"]:
        """Ask for scores, without a gradient; several points an input may stand in a row.

        Args:
            x: points, each input's together, equally many for each.
            draws: the streams of a stochastic target.

        Returns:
            Scores.
        """
        oracle = Oracle(self._target, self._access)
        with torch.no_grad():
            found = oracle.logits(x, draws=draws)
        self._count(oracle.counts)
        return found

    def predict(self, x: Float[Tensor, "rows *dims"], draws: Draws | None = None) -> Int[Tensor, " rows"]:
        """Ask for classes.

        Args:
            x: points, each input's together, equally many for each.
            draws: the streams of a stochastic target.

        Returns:
            Classes, or ABSTAIN.
        """
        oracle = Oracle(self._target, self._access)
        found = oracle.predict(x, draws=draws)
        self._count(oracle.counts)
        return found

    def _count(self, counts: Counts) -> None:
        # What was asked in one call is shared alike among the inputs of the view: every estimator asks alike for each.
        share = max(len(self._rows), 1)
        self.counts.queries[self._rows] += counts.queries // share
        self.counts.forwards[self._rows] += counts.forwards // share
        self.counts.backwards[self._rows] += counts.backwards // share
