"""Distributions of input transformations t(x), differentiable in x, that an expectation is taken over."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from calipers.errors import UsageError
from calipers.gradients.named import Function, as_function, name_of

__all__ = ["AdditiveNoise", "Drawn", "Finite", "Member", "NoiseKind", "Transformations"]


NoiseKind = Literal["gaussian", "laplace", "uniform"]


class Member(NamedTuple):
    """One transformation of a finite distribution.

    Args:
        transform: from a batch (batch, *dims) to transformed inputs.
        probability: its probability, above 0.
    """

    transform: Callable[[Tensor], Tensor]
    probability: float


class Transformations(ABC):
    """A distribution of transformations t(x) of one input."""

    @abstractmethod
    def __call__(
        self, copies: Float[Tensor, "copies *dims"], generator: Generator
    ) -> Float[Tensor, "copies *rest"]:
        """Transform copies of one input, each by a draw of its own.

        Args:
            copies: the same input many times, in the graph of the search.
            generator: the source of the draws, on the device of the input.

        Returns:
            Transformed inputs of one shape, differentiable in ``copies``.
        """

    def describe(self) -> str:
        """Write the distribution as the text form of an estimator holds it: by its registered name, if it has no other.

        Returns:
            The text.

        Raises:
            UsageError: if it has no name, or holds a function that has none.
        """
        return name_of(as_function(self))

    def members(self) -> tuple[Member, ...]:
        """List all transformations where they are few enough to be taken one by one.

        Returns:
            The members, their probabilities summing to 1; none for a distribution that can only be sampled.
        """
        return ()


@final
@dataclass(frozen=True)
class Drawn(Transformations):
    """Transformations that a function draws.

    Args:
        function: maps (copies of one input, generator) to transformed copies; or the name of one.
    """

    function: Function

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", as_function(self.function))

    def __call__(
        self, copies: Float[Tensor, "copies *dims"], generator: Generator
    ) -> Float[Tensor, "copies *rest"]:
        """Call the function."""
        function: Callable[..., Any] = self.function  # type: ignore[assignment]
        moved: Tensor = function(copies, generator)
        return moved

    def describe(self) -> str:
        """Write the name of the function."""
        return name_of(self.function)


@final
@dataclass(frozen=True)
class AdditiveNoise(Transformations):
    """t(x) = x + n with independent noise in every coordinate: the smoothed classifier's own expectation.

    Args:
        kind: ``gaussian``, ``laplace`` or ``uniform``.
        scale: the standard deviation, the spread (density exp(-abs(n)/scale)/(2 scale)) or the half width, in input
            units.

    Raises:
        UsageError: if the kind is unknown or the scale is no finite number above 0.
    """

    kind: NoiseKind
    scale: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(NoiseKind):
            raise UsageError(f"noise is {self.kind!r}: use one of {', '.join(get_args(NoiseKind))}")
        if not 0 < self.scale < math.inf:
            raise UsageError(f"the scale of the noise is {self.scale}: give a finite number above 0")

    def __call__(
        self, copies: Float[Tensor, "copies *dims"], generator: Generator
    ) -> Float[Tensor, "copies *rest"]:
        """Add a draw to each copy."""
        noise = torch.empty_like(copies, requires_grad=False, memory_format=torch.contiguous_format)
        match self.kind:
            case "gaussian":
                noise.normal_(generator=generator)
            case "laplace":
                noise.exponential_(generator=generator)
                signs = torch.empty_like(noise).bernoulli_(0.5, generator=generator)
                noise.mul_(2 * signs - 1)
            case "uniform":
                noise.uniform_(-1, 1, generator=generator)
        return copies + self.scale * noise

    def describe(self) -> str:
        """Write ``gaussian(SCALE)`` and so on."""
        return f"{self.kind}({self.scale!r})"


@final
@dataclass(frozen=True)
class Finite(Transformations):
    """A few transformations with their probabilities, over which an expectation is exact.

    Args:
        transforms: differentiable functions (batch, *dims) -> (batch, *rest), all to one shape; or their names.
        weights: their probabilities, above 0 and with the sum 1; all equal if None.

    Raises:
        UsageError: if there are none, or the weights are no probabilities.
    """

    transforms: tuple[Function, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        found = tuple(as_function(function) for function in self.transforms)
        if not found:
            raise UsageError("finite names no transformation: give at least one")
        object.__setattr__(self, "transforms", found)
        if self.weights is None:
            return
        weights = tuple(float(weight) for weight in self.weights)
        object.__setattr__(self, "weights", weights)
        proper = all(weight > 0 for weight in weights) and math.isclose(sum(weights), 1.0, abs_tol=1e-6)
        if len(weights) != len(found) or not proper:
            raise UsageError(
                f"the weights are {weights} for {len(found)} transformations: give one each, above 0, with the sum 1"
            )

    def __call__(
        self, copies: Float[Tensor, "copies *dims"], generator: Generator
    ) -> Float[Tensor, "copies *rest"]:
        """Transform the copies by members drawn for them, those of one member in a row: the copies are all alike."""
        members = self.members()
        chances = torch.tensor([member.probability for member in members], device=copies.device)
        chosen = torch.multinomial(chances, len(copies), replacement=True, generator=generator)
        sizes = chosen.bincount(minlength=len(members)).tolist()
        parts = zip(members, torch.split(copies, sizes), strict=True)
        return torch.cat([member.transform(part) for member, part in parts if len(part)])

    def members(self) -> tuple[Member, ...]:
        """List the transformations with their probabilities."""
        count = len(self.transforms)
        weights = self.weights or (1 / count,) * count
        functions: tuple[Callable[[Tensor], Tensor], ...] = self.transforms  # type: ignore[assignment]
        return tuple(map(Member, functions, weights))

    def describe(self) -> str:
        """Write ``finite(NAME=PROBABILITY, ...)``, or the names alone where all are equal."""
        names = [name_of(function) for function in self.transforms]
        if self.weights is None:
            return f"finite({', '.join(names)})"
        return f"finite({', '.join(f'{name}={weight!r}' for name, weight in zip(names, self.weights, strict=True))})"
