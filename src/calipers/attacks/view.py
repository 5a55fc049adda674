"""View: the only way in which a search asks its target; it counts for each input, and traces where one wants to see."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.tracker import lead
from calipers.errors import UsageError
from calipers.gradients.estimator import GradientEstimate, GradientEstimator, Objective
from calipers.randomness import Draws
from calipers.target import Access, Counts, Oracle, Target
from calipers.threat.threat_model import Goal, Untargeted

__all__ = ["Counted", "OutOfTime", "Trace", "View"]

_STEEP = 1e30


@final
class OutOfTime(Exception):
    """A search was given up between two questions, since the time of its trace was over."""


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
    """What a search saw at each of its estimates inside the ball that is judged, filled in as it goes.

    Every list has one entry an estimate; an entry has one value for each input that was asked about then.

    Args:
        rows: which inputs these were.
        value: the objective.
        reached: whether the goal was reached by the scores seen.
        gradient: the l2 size of the gradient.
        until: the value of ``time.perf_counter()`` from which on the next question ends the search with
            :class:`OutOfTime`; None for never.
    """

    rows: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    reached: list[Tensor] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)
    until: float | None = None


@final
class View:
    """A target as a search may see it.

    Args:
        target: the classifier.
        access: the most that may be seen.
        estimator: how gradients are had.
        count: the number of inputs of the batch.
        trace: filled in at each estimate, if given.
        real: the classifier that is judged, where the search goes through another one; it is asked for classes only.
        common: one stream an input for all estimates (common random numbers); a fresh one at each step if None.
    """

    def __init__(
        self,
        target: Target,
        access: Access,
        estimator: GradientEstimator | None,
        *,
        count: int,
        trace: Trace | None = None,
        real: Target | None = None,
        common: Draws | None = None,
    ) -> None:
        self._target = target
        self._real = target if real is None else real
        self._common = common
        self._access = access
        self._estimator = estimator
        self._trace = trace
        self._rows = torch.arange(count)
        self._outside = False
        zeros = torch.zeros(count, dtype=torch.int64)
        self.counts = Counted(zeros.clone(), zeros.clone(), zeros.clone())
        self._asked = torch.zeros(count, dtype=torch.bool)
        self._moving = torch.zeros(count, dtype=torch.bool)
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

    def by(self, access: Access, estimator: GradientEstimator | None) -> "View":
        """See the same inputs as a member of an ensemble sees them: with its own estimator, and no more than it may.

        Args:
            access: what the member needs.
            estimator: how it has gradients.

        Returns:
            A view that shares counts and trace with this one.

        Raises:
            UsageError: if the member needs more than this view gives.
        """
        if access > self._access:
            raise UsageError(
                f"a member needs {access.name.lower()} and the view gives {self._access.name.lower()}: "
                "ask for as much as the members need"
            )
        member = object.__new__(View)
        member.__dict__.update(self.__dict__)
        member._access, member._estimator = access, estimator
        return member

    def outside(self) -> "View":
        """See the same inputs on the way through points that are no candidates, such as those of a larger ball.

        What is asked there is counted. It is not traced, and a gradient that is found there is none of the ball.

        Returns:
            A view that shares counts with this one.
        """
        part = object.__new__(View)
        part.__dict__.update(self.__dict__)
        part._outside = True
        return part

    @property
    def flat(self) -> Bool[Tensor, " batch"]:
        """Inputs of the whole batch whose gradient was asked for in the ball and was 0, or no number, each time."""
        return self._asked & ~self._moving

    @property
    def still_flat(self) -> Bool[Tensor, " rows"]:
        """The same for the inputs of this view."""
        return self.flat[self._rows]

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
        return self._real.stochastic

    @property
    def direct(self) -> bool:
        """Whether scores may be seen, and are those of the very classifier that is judged."""
        return self._real is self._target and self._access >= Access.SCORES

    @property
    def indirect(self) -> bool:
        """Whether another classifier is judged than the one that is searched, such as the smoothed one of a base."""
        return self._real is not self._target

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
            Value, gradient and scores. Where a gradient is no number it is 0, and where it is infinite 1e30. Of a
            detector, the objective sees the larger of the label's score and the rejection score in place of the
            label's: what is to be taken for another class must not be rejected either. Where a rejection counts as
            wrong, it is a class like others.

        Raises:
            UsageError: if the attack has no estimator.
        """
        if self._estimator is None:
            raise UsageError("this search asks for a gradient and its attack has no estimator")
        self._check_time()
        oracle = Oracle(self._target, self._estimator.access)
        aimed = _past_rejection(objective, self.num_classes) if self._target.detector else objective
        if self._common is not None:
            draws = self._common.of(self._rows.tolist())
        found = self._estimator.estimate(oracle, aimed, x, y, goal, draws=draws)
        self._count(oracle.counts)
        gradient = torch.nan_to_num(found.gradient, nan=0.0, posinf=_STEEP, neginf=-_STEEP)
        if self._outside:
            return GradientEstimate(found.value, gradient, found.logits)
        self._asked[self._rows] = True
        if not bool(self._moving[self._rows].all()):
            self._moving[self._rows] |= (gradient.flatten(1) != 0).any(1).cpu()
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
        self._check_time()
        oracle = Oracle(self._target, self._access)
        with torch.no_grad():
            found = oracle.logits(x, draws=draws)
        self._count(oracle.counts)
        return found

    def predict(self, x: Float[Tensor, "rows *dims"], draws: Draws | None = None) -> Int[Tensor, " rows"]:
        """Ask the classifier that is judged for classes.

        Args:
            x: points, each input's together, equally many for each.
            draws: the streams of a stochastic target.

        Returns:
            Classes, or ABSTAIN.
        """
        self._check_time()
        oracle = Oracle(self._real, min(self._access, self._real.access))
        found = oracle.predict(x, draws=draws)
        self._count(oracle.counts)
        return found

    def _check_time(self) -> None:
        if self._trace is not None and self._trace.until is not None and perf_counter() >= self._trace.until:
            raise OutOfTime

    def _count(self, counts: Counts) -> None:
        # What was asked in one call is shared alike among the inputs of the view: every estimator asks alike for each.
        share = max(len(self._rows), 1)
        self.counts.queries[self._rows] += counts.queries // share
        self.counts.forwards[self._rows] += counts.forwards // share
        self.counts.backwards[self._rows] += counts.backwards // share


def _past_rejection(objective: Objective, num_classes: int) -> Objective:
    """Aim an objective for classifiers at a detector, whose last column is a rejection score."""

    def aimed(logits: Tensor, y: Tensor, goal: Goal) -> Tensor:
        if isinstance(goal, Untargeted) and goal.abstain == "wrong":
            return objective(logits, y, goal)
        scores, label = logits[:, :num_classes], y[:, None]
        against = torch.maximum(scores.gather(1, label), logits[:, num_classes:].amax(1, keepdim=True))
        return objective(scores.scatter(1, label, against), y, goal)

    return aimed
