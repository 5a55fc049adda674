"""Double: the gradient of the same network computed in float64, where float32 would have rounded it to 0."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.gradients.estimator import Autograd, GradientEstimate, GradientEstimator, Objective, View
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.threat_model import Goal

__all__ = ["Double"]

_LEAST = 1e-30


@final
@dataclass(frozen=True)
class Double(GradientEstimator):
    """Runs the network in float64 while the gradient is had; what is judged is the float32 network as ever.

    A softmax that is sure, or a sigmoid far from its middle, has a gradient that float32 rounds to 0 and float64 does
    not. A gradient whose largest entry is below 1e-30 is scaled up to that, since the result is float32.

    Args:
        inner: how the gradient is had in float64.

    Raises:
        UsageError: if ``inner`` uses no backward.

    Example:
        >>> Double().describe()
        'double'
    """

    inner: GradientEstimator = field(default_factory=Autograd)

    def __post_init__(self) -> None:
        if self.inner.access < Access.GRADIENTS:
            raise UsageError(
                "double changes how a backward is computed, and nes and spsa have none: leave one out"
            )
        object.__setattr__(self, "revision", self.revision + self.inner.revision - 1)

    @property
    def access(self) -> Access:
        """Gradients."""
        return Access.GRADIENTS

    def describe(self) -> str:
        """Write ``double`` and what is inside."""
        return "double" if self.inner == Autograd() else f"double {self.inner.describe()}"

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
        """Estimate in float64; see :meth:`GradientEstimator.estimate`.

        Args:
            target: the classifier, or a view that counts what it is asked.
            objective: the loss to be raised.
            x: inputs.
            y: the true classes.
            goal: what the adversary wants.
            draws: the source of all randomness.

        Returns:
            Value and scores as the float64 network gives them, and the gradient, all in float32.

        Raises:
            UsageError: if the network does not run in float64.
            RuntimeError: if it does not run for another reason.
        """
        with _in_double(target.module):
            try:
                found = self.inner.estimate(target, objective, x.double(), y, goal, draws=draws)
            except RuntimeError as problem:
                if "dtype" not in str(problem) and "type" not in str(problem):
                    raise
                raise UsageError(
                    f"the network does not run in float64 ({problem}): leave double out"
                ) from None
        steep = found.gradient.abs().flatten(1).amax(1).view(-1, *[1] * (x.ndim - 1))
        up = torch.where((steep > 0) & (steep < _LEAST), _LEAST / steep.clamp_min(1e-300), 1.0)
        return GradientEstimate(found.value.float(), (found.gradient * up).float(), found.logits.float())


@contextmanager
def _in_double(net: nn.Module) -> Iterator[None]:
    """Put float64 copies in the place of all weights, and the weights themselves back afterwards."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = [
        (holder, name, value)
        for module in net.modules()
        for holder in (module._parameters, module._buffers)
        for name, value in holder.items()
        if value is not None and value.is_floating_point()
    ]
    formats = [
        (module, module.dtype)
        for module in net.modules()
        if isinstance(vars(module).get("dtype"), torch.dtype)
    ]
    try:
        for holder, name, value in kept:
            holder[name] = (
                nn.Parameter(value.detach().double(), requires_grad=False)
                if isinstance(value, nn.Parameter)
                else value.double()
            )
        for module, _ in formats:
            vars(module)["dtype"] = torch.float64
        yield
    finally:
        for holder, name, value in kept:
            holder[name] = value
        for module, dtype in formats:
            vars(module)["dtype"] = dtype
