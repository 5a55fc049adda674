r"""Reparameterization: search over z with x = h(z), where the way from z to x has the gradient that a defense hides.

Where a defense f(g(x)) runs an optimization g, take a differentiable h with :math:`g(h(z)) = h(z)` for all z, and go
along

.. math:: \nabla_z f(h(z)) = J_h(z)^\top \, \nabla_x f(x)\big|_{x=h(z)} .

Reference: Athalye, Carlini and Wagner 2018 (arXiv:1802.00420), section 4.3.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.estimator import GradientEstimate, GradientEstimator, Objective, View
from calipers.gradients.named import Function, as_function, name_of
from calipers.randomness import Draws
from calipers.threat.threat_model import Goal

__all__ = ["Reparameterization", "SearchVariable", "TanhBox"]


class SearchVariable(ABC):
    """A variable z that an unconstrained attack searches over, in place of the input."""

    @abstractmethod
    def start(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *latent"]:
        """Find where a search from an input starts.

        Args:
            x: inputs.

        Returns:
            z with ``point(z)`` near x, outside any graph.
        """

    @abstractmethod
    def point(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *dims"]:
        """Compute the input that a value of the variable stands for.

        Args:
            z: values of the variable.

        Returns:
            Inputs, differentiable in z.
        """

    @abstractmethod
    def describe(self) -> str:
        """Write the variable as text.

        Returns:
            The text.

        Raises:
            UsageError: if it holds a function that has no name.
        """

    @final
    def estimate(
        self,
        estimator: GradientEstimator,
        target: View,
        objective: Objective,
        z: Float[Tensor, "batch *latent"],
        y: Int[Tensor, " batch"],
        goal: Goal,
        *,
        draws: Draws,
    ) -> GradientEstimate:
        """Estimate the gradient with respect to z: the estimator's at ``point(z)``, taken through ``point``.

        Args:
            estimator: how the gradient with respect to the input is had.
            target: the classifier, or a view that counts what it is asked.
            objective: the loss to be raised.
            z: values of the variable.
            y: the true classes.
            goal: what the adversary wants.
            draws: the source of all randomness.

        Returns:
            Value and scores at ``point(z)``, and the gradient in the shape of z.

        Raises:
            GradientsUnavailable: if ``point`` is not differentiable.
        """
        leaf = z.detach().requires_grad_(True)
        with torch.enable_grad():
            x = self.point(leaf)
        if not x.requires_grad:
            raise GradientsUnavailable(
                f"{self!r} decodes without a gradient: give a decode that is differentiable in z"
            )
        found = estimator.estimate(target, objective, x.detach(), y, goal, draws=draws)
        (gradient,) = torch.autograd.grad(x, leaf, found.gradient)
        return GradientEstimate(found.value, gradient, found.logits)


@final
@dataclass(frozen=True)
class Reparameterization(SearchVariable):
    """x = decode(z), from z = encode(x): a generator, say, and its inversion.

    Args:
        decode: differentiable, from z to inputs; or the name of such a function.
        encode: from inputs to the z at which a search starts; or a name. It need not be differentiable.
    """

    decode: Function
    encode: Function

    def __post_init__(self) -> None:
        object.__setattr__(self, "decode", as_function(self.decode))
        object.__setattr__(self, "encode", as_function(self.encode))

    def start(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *latent"]:
        """Encode."""
        with torch.no_grad():
            z: Tensor = _call(self.encode, x.detach())
        return z.detach()

    def point(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *dims"]:
        """Decode."""
        x: Tensor = _call(self.decode, z)
        return x

    def describe(self) -> str:
        """Write ``reparameterization(decode=NAME, encode=NAME)``."""
        return f"reparameterization(decode={name_of(self.decode)}, encode={name_of(self.encode)})"


@final
@dataclass(frozen=True)
class TanhBox(SearchVariable):
    r"""All real z for the box: :math:`x = l + (h - l)\,(\tanh z + 1)/2`.

    Reference: Carlini and Wagner 2017 (arXiv:1608.04644), section V.B.

    Differs from the paper: the box is any [low, high].

    Args:
        low: the least value of a valid input.
        high: the largest.
        shrink: how far a start is pulled from the faces of the box, where z is infinite: the tanh of a start is at most
            this.

    Raises:
        UsageError: if the bounds are not finite and rising, or ``shrink`` is outside (0, 1).
    """

    low: float = 0.0
    high: float = 1.0
    shrink: float = 0.999999

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"the box is [{self.low}, {self.high}]: give two finite values, the lower first")
        if not 0 < self.shrink < 1:
            raise UsageError(f"shrink is {self.shrink}: give a number inside (0, 1)")

    def start(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *latent"]:
        """Invert the map, computed in float64."""
        place = (x.detach().double() - self.low) / (self.high - self.low)
        return ((2 * place - 1).clamp(-1, 1) * self.shrink).atanh().to(x.dtype)

    def point(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *dims"]:
        """Map into the box; rounding does not lead out of it."""
        inside = self.low + (self.high - self.low) * (z.tanh() + 1) / 2
        return inside.clamp(self.low, self.high)

    def describe(self) -> str:
        """Write ``tanhbox(low=LOW, high=HIGH)``."""
        return f"tanhbox(low={self.low!r}, high={self.high!r}, shrink={self.shrink!r})"


def _call(function: Function, argument: Tensor) -> Any:
    called: Callable[..., Any] = function  # type: ignore[assignment]
    return called(argument)
