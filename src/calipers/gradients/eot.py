r"""EOT: the gradient of an expectation, over the classifier's own randomness or over transformations of the input.

.. math:: \nabla_x \, E_{t \sim T} f(t(x)) = E_{t \sim T} \nabla_x f(t(x)) ,

the expectation taken by samples, or exactly where T has few members. The derivative goes through classifier and
transformation both.

References: Athalye, Engstrom, Ilyas and Kwok 2018 (arXiv:1707.07397), section 2; Athalye, Carlini and Wagner 2018
(arXiv:1802.00420), section 4.2.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.estimator import (
    Autograd,
    GradientEstimate,
    GradientEstimator,
    Objective,
    View,
    check_rows,
    goal_of_rows,
    repeat_draws,
)
from calipers.gradients.named import Function
from calipers.gradients.transformations import Drawn, Transformations
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.threat_model import Goal

__all__ = ["EOT", "Average"]

Average = Literal["loss", "probabilities", "logits"]


@final
@dataclass(frozen=True)
class EOT(GradientEstimator):
    r"""The gradient of an expectation, each input with all of its samples in one batched pass.

    What is averaged is a choice. ``"loss"`` gives the gradient of :math:`E\,L(f(t(x)))`, as the definition has it,
    and its sample mean is unbiased. ``"probabilities"`` gives that of :math:`L(\log E\,\mathrm{softmax} f(t(x)))`,
    the loss of a classifier that averages its votes (Salman et al. 2019, arXiv:1906.04584: SmoothAdv), and
    ``"logits"`` that of :math:`L(E f(t(x)))`. The last two are nonlinear in the mean: their sample versions are the
    exact gradient for the mean of the samples drawn, with a bias of order 1/samples for the expectation.

    Where the distribution has no more members than ``samples``, each is taken once with its probability, which is
    exact; for a classifier that is stochastic too, each as often as the samples allow.

    Args:
        samples: how many draws an input.
        inner: how the gradient of one draw is had; one with a backward unless losses are averaged.
        average: ``"loss"``, ``"probabilities"`` or ``"logits"``.
        over: the transformations; a function ``(copies of one input, generator) -> transformed copies`` or its name;
            None for the classifier's own randomness alone.
        max_batch: rows that are run together; the samples of one input are never parted, so there may be more.

    Raises:
        UsageError: if an argument means nothing, or ``inner`` cannot be averaged so.

    Example:
        >>> EOT(30).describe()
        'eot(30)'
    """

    samples: int = 30
    inner: GradientEstimator = field(default_factory=Autograd)
    average: Average = "loss"
    over: Transformations | Function | None = None
    max_batch: int = 1024

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_batch < 1:
            raise UsageError(
                f"eot has samples {self.samples} and max_batch {self.max_batch}: give at least 1"
            )
        if self.average not in get_args(Average):
            raise UsageError(f"average is {self.average!r}: use loss, probabilities or logits")
        if self.average != "loss" and self.inner.access < Access.GRADIENTS:
            raise UsageError(
                f"nes and spsa see the losses of single draws and cannot average {self.average}: use average=loss"
            )
        if _has_eot(self.inner):
            raise UsageError(
                "eot stands inside eot: one averages over both kinds of randomness, leave one out"
            )
        if self.over is not None:
            over = self.over if isinstance(self.over, Transformations) else Drawn(self.over)
            object.__setattr__(self, "over", over)
        object.__setattr__(self, "revision", self.revision + self.inner.revision - 1)

    @property
    def access(self) -> Access:
        """What the inner estimator needs."""
        return self.inner.access

    def describe(self) -> str:
        """Write ``eot(SAMPLES, ...)`` and what is inside."""
        parts = [str(self.samples)]
        if isinstance(self.over, Transformations):
            parts.append(f"over={self.over.describe()}")
        if self.average != "loss":
            parts.append(f"average={self.average}")
        if self.max_batch != 1024:
            parts.append(f"max_batch={self.max_batch}")
        inner = "" if self.inner == Autograd() else f" {self.inner.describe()}"
        return f"eot({', '.join(parts)}){inner}"

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
        """Average over the samples; see :meth:`GradientEstimator.estimate`."""
        check_rows(x, y, goal, draws)
        size = max(1, self.max_batch // self.samples)
        if len(x) <= size:
            return self._together(target, objective, x, y, goal, draws)
        found = []
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            rows = range(len(x))[part]
            wanted, own = goal_of_rows(goal, rows), draws.of(rows)
            found.append(self._together(target, objective, x[part], y[part], wanted, own))
        return GradientEstimate(
            torch.cat([each.value for each in found]),
            torch.cat([each.gradient for each in found]),
            torch.cat([each.logits for each in found]),
        )

    def _together(
        self, target: View, objective: Objective, x: Tensor, y: Tensor, goal: Goal, draws: Draws
    ) -> GradientEstimate:
        """Run all samples of some inputs as one batch."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            copies = self._copies(leaf, draws, stochastic=target.stochastic)
        count = len(copies.weights)
        rows = [row for row in range(len(x)) for _ in range(count)]
        mean = _LossOfMean(self.average, objective, y, goal, copies.weights)
        each = self.inner.estimate(
            target,
            objective if self.average == "loss" else mean,
            copies.x.detach(),
            y.repeat_interleave(count),
            goal_of_rows(goal, rows),
            draws=repeat_draws(draws, range(len(x)), count),
        )
        weights = copies.weights.repeat(len(x)).view(-1, *(1,) * (copies.x.ndim - 1))
        (gradient,) = torch.autograd.grad(copies.x, leaf, each.gradient * weights)
        if self.average != "loss":
            assert mean.value is not None and mean.logits is not None, (
                "the inner estimator asked for no objective"
            )
            return GradientEstimate(mean.value, gradient, mean.logits)
        share = copies.weights[:, None]
        value = (each.value.view(len(x), count, 1) * share).sum((1, 2))
        logits = (each.logits.view(len(x), count, each.logits.shape[1]) * share).sum(1)
        return GradientEstimate(value, gradient, logits)

    def _copies(self, leaf: Tensor, draws: Draws, *, stochastic: bool) -> "_Copies":
        """Transform copies of each input, in its graph."""
        equal = torch.full((self.samples,), 1 / self.samples, device=leaf.device)
        if self.over is None:
            return _Copies(leaf.repeat_interleave(self.samples, 0), equal)
        assert isinstance(self.over, Transformations), "a function becomes Drawn when the estimator is made"
        members = self.over.members()
        if 0 < len(members) <= self.samples:
            again = self.samples // len(members) if stochastic else 1
            moved = torch.stack([member.transform(leaf) for member in members for _ in range(again)], 1)
            chances = [member.probability / again for member in members for _ in range(again)]
            found = _Copies(moved.flatten(0, 1), torch.tensor(chances, device=leaf.device))
        else:
            parts = [
                self.over(
                    leaf[row].expand(self.samples, *leaf.shape[1:]), draws[row].generator(0, leaf.device)
                )
                for row in range(len(leaf))
            ]
            found = _Copies(torch.cat(parts) if parts else leaf, equal)
        if not found.x.requires_grad:
            raise GradientsUnavailable(
                f"{self.over} has no gradient: make it a module of the target, and name a substitute for it with bpda"
            )
        return found


class _Copies(NamedTuple):
    """Transformed copies of some inputs.

    Args:
        x: (inputs * copies, *dims), those of one input in a row.
        weights: the probability that each copy of an input stands for, (copies,).
    """

    x: Tensor
    weights: Tensor


class _LossOfMean:
    r"""The loss of averaged scores, as an objective whose gradient at each copy is that copy's part of it.

    With :math:`m = \sum_s w_s \phi_s` the averaged scores, the row of copy s is :math:`\langle c, \phi_s \rangle`, its
    coefficients :math:`c = \nabla L(m)` kept fixed: the weighted sum of the rows' gradients is that of :math:`L(m)`.
    For probabilities :math:`m = \log \sum_s w_s e^{\phi_s}` with the logarithms :math:`\phi_s`, and c is multiplied by
    :math:`e^{\phi_s - m}`; nothing underflows.
    """

    def __init__(
        self, average: Average, objective: Objective, y: Tensor, goal: Goal, weights: Tensor
    ) -> None:
        self._average, self._objective, self._y, self._goal = average, objective, y, goal
        self._weights = weights[:, None]
        self.value: Tensor | None = None
        self.logits: Tensor | None = None

    def __call__(self, logits: Tensor, y: Tensor, goal: Goal) -> Tensor:
        scores = logits.view(len(self._y), len(self._weights), -1)
        if self._average == "probabilities":
            scores = scores.log_softmax(-1)
        parts = scores.detach()
        if self._average == "probabilities":
            mean = (parts + self._weights.log()).logsumexp(1)
            shares = (parts - mean[:, None]).exp()
        else:
            mean = (parts * self._weights).sum(1)
            shares = torch.ones_like(parts)
        with torch.enable_grad():
            value = self._objective(mean.requires_grad_(True), self._y, self._goal)
            (slope,) = torch.autograd.grad(value, mean, torch.ones_like(value))
        self.value, self.logits = value.detach(), mean.detach()
        return (slope[:, None] * shares * scores).sum(-1).flatten()


def _has_eot(estimator: GradientEstimator) -> bool:
    inner = getattr(estimator, "inner", None)
    return isinstance(estimator, EOT) or (isinstance(inner, GradientEstimator) and _has_eot(inner))
