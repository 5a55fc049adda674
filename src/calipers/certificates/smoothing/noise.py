"""Noises of randomized smoothing: how each is drawn, added to an input, and what radius it proves.

Noise is drawn and added in float32 in raw input units, before any cast. No torch is loaded until a sample is drawn, so
that counts can be read again on a machine without it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calipers.certificates.smoothing.radius import convert_radius, gaussian_l2, laplace_l1, uniform_l1
from calipers.errors import InvalidInput, Unsound, UsageError
from calipers.threat.threat_model import Norm

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["Gaussian", "Laplace", "Noise", "RoundedGaussian", "Uniform"]

_GRID = 255
_TABLE_ERROR = 2e-13
"""Total variation between a rounded Gaussian draw and its table, for each coordinate (measured: 4e-15)."""


@dataclass(frozen=True)
class Noise(ABC):
    """A distribution of independent coordinates that is added to inputs.

    A new noise is one class with :meth:`fill` and :meth:`natural_radius`, and one line in ``runs/catalog.py``.
    """

    norm: ClassVar[Norm]
    theorem: ClassVar[str]

    @property
    @abstractmethod
    def scale(self) -> float:
        """The parameter of the distribution, in input units."""

    @abstractmethod
    def fill(self, buffer: Tensor, generator: Generator) -> None:
        """Overwrite a buffer with independent draws.

        Args:
            buffer: contiguous float32 values on the generator's device.
            generator: the source of randomness; how many draws are taken depends on the buffer's size alone.
        """

    @abstractmethod
    def natural_radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
        """Apply the noise's theorem in its own norm.

        Args:
            p_lower: lower bound on the probability of the class.
            p_upper: upper bound on the probability of every other class.

        Returns:
            Radii in input units, float64, rounded down; 0 where nothing is proved.
        """

    def radius(
        self, p_lower: ArrayLike, p_upper: ArrayLike, norm: Norm | None = None, *, dimension: int = 1
    ) -> NDArray[np.float64]:
        """Prove a radius in a norm.

        Args:
            p_lower: lower bound on the probability of the class.
            p_upper: upper bound on the probability of every other class.
            norm: the norm of the ball; the noise's own if None.
            dimension: the number of coordinates of one input, for the comparison of norms.

        Returns:
            Radii in input units, float64, rounded down.
        """
        found = self.natural_radius(p_lower, p_upper)
        if norm is None or norm is self.norm:
            return found
        return convert_radius(found, self.norm, norm, dimension)

    def prepare(self, x: Tensor) -> Tensor:
        """Check inputs and bring them into the form to which draws are added.

        Args:
            x: inputs of any shape, in input units.

        Returns:
            The values that :meth:`add` takes, of the same shape.
        """
        return x

    def add(self, prepared: Tensor, noise: Tensor, out: Tensor) -> None:
        """Add draws to inputs in float32.

        Args:
            prepared: what :meth:`prepare` gave, broadcast against ``noise``.
            noise: what :meth:`fill` drew (draws, *input_shape).
            out: where the noisy inputs go, of the same shape, in input units; may be ``noise`` itself.
        """
        import torch

        torch.add(prepared, noise, out=out)


def _check_scale(noise: Noise, name: str) -> None:
    """Check that a scale is one positive number, and keep it as a float, so that one noise has one repr."""
    value = getattr(noise, name)
    if not isinstance(value, Real):
        raise Unsound(
            f"{name} is {value!r}: one number for all inputs; another scale for each is not one classifier"
        )
    scale = float(value)
    if not 0 < scale < math.inf:
        raise UsageError(f"{name} is {scale}: give a finite number above 0, in input units")
    object.__setattr__(noise, name, scale)


@final
@dataclass(frozen=True)
class Gaussian(Noise):
    """Independent normal noise; proves l2 radii by Theorem 1 of Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918).

    Args:
        sigma: the standard deviation, in input units.
    """

    norm: ClassVar[Norm] = Norm.L2
    theorem: ClassVar[str] = "Cohen et al. 2019, Theorem 1"

    sigma: float

    def __post_init__(self) -> None:
        _check_scale(self, "sigma")

    @property
    def scale(self) -> float:
        """The parameter of the distribution, in input units."""
        return self.sigma

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        """Overwrite a buffer with independent draws."""
        buffer.normal_(generator=generator)

    def natural_radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
        """Apply the theorem in the noise's own norm."""
        return gaussian_l2(self.sigma, p_lower, p_upper)

    def add(self, prepared: Tensor, noise: Tensor, out: Tensor) -> None:
        """Add scaled draws to inputs in float32."""
        import torch

        torch.add(prepared, noise, alpha=self.sigma, out=out)


@final
@dataclass(frozen=True)
class Laplace(Noise):
    """Independent double-exponential noise; proves l1 radii (Lecuyer et al. 2019; Teng et al. 2020; Yang et al. 2020).

    Reference: Yang et al. 2020, arXiv:2002.08118.

    Args:
        spread: the scale of the distribution (its density is exp(-|t|/spread)/(2 spread)), in input units.
    """

    norm: ClassVar[Norm] = Norm.L1
    theorem: ClassVar[str] = "Yang et al. 2020, Laplace, l1"

    spread: float

    def __post_init__(self) -> None:
        _check_scale(self, "spread")

    @property
    def scale(self) -> float:
        """The parameter of the distribution, in input units."""
        return self.spread

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        """Overwrite a buffer with independent draws."""
        import torch

        buffer.uniform_(-1, 1, generator=generator)
        sign = buffer.sign()
        tail = buffer.abs_().clamp_max_(1 - 2**-24).neg_().log1p_().neg_()
        torch.mul(tail, sign, out=buffer)

    def natural_radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
        """Apply the theorem in the noise's own norm."""
        return laplace_l1(self.spread, p_lower, p_upper)

    def add(self, prepared: Tensor, noise: Tensor, out: Tensor) -> None:
        """Add scaled draws to inputs in float32."""
        import torch

        torch.add(prepared, noise, alpha=self.spread, out=out)


@final
@dataclass(frozen=True)
class Uniform(Noise):
    """Independent uniform noise on [-half_width, half_width]; proves l1 radii (Lecuyer et al. 2019; Yang et al. 2020).

    Reference: Yang et al. 2020, arXiv:2002.08118.

    Args:
        half_width: half the length of the interval, in input units.
    """

    norm: ClassVar[Norm] = Norm.L1
    theorem: ClassVar[str] = "Yang et al. 2020, uniform, l1"

    half_width: float

    def __post_init__(self) -> None:
        _check_scale(self, "half_width")

    @property
    def scale(self) -> float:
        """The parameter of the distribution, in input units."""
        return self.half_width

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        """Overwrite a buffer with independent draws."""
        buffer.uniform_(-1, 1, generator=generator)

    def natural_radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
        """Apply the theorem in the noise's own norm."""
        return uniform_l1(self.half_width, p_lower, p_upper)

    def add(self, prepared: Tensor, noise: Tensor, out: Tensor) -> None:
        """Add scaled draws to inputs in float32."""
        import torch

        torch.add(prepared, noise, alpha=self.half_width, out=out)


@final
@dataclass(frozen=True)
class RoundedGaussian(Noise):
    """Sound mode: the Gaussian rounded to the grid of 8-bit images, so that no float addition can leak the input.

    A draw is an integer k with probability Phi((k + 1/2)/255 sigma) - Phi((k - 1/2)/255 sigma), taken from a table of
    60-bit integers; the noisy input is (255 x + k)/255, computed from the integer sum. For inputs on the grid this is
    the rounding of x + N(0, sigma^2), a function of the noisy input alone, so Theorem 1 holds for perturbations that
    stay on the grid. The table's probabilities are right to 2e-13 in total variation for each coordinate, and the
    radius gives that away for every coordinate of the input.

    Reference: Voracek and Hein 2023, ICLR, arXiv:2207.07209 (float32 addition certifies 1.26 with an adversarial
    example at .8).

    Args:
        sigma: the standard deviation before rounding, in input units.
    """

    norm: ClassVar[Norm] = Norm.L2
    theorem: ClassVar[str] = "Cohen et al. 2019, Theorem 1, on the 1/255 grid"

    sigma: float

    def __post_init__(self) -> None:
        _check_scale(self, "sigma")

    @property
    def scale(self) -> float:
        """The parameter of the distribution, in input units."""
        return self.sigma

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        """Overwrite a buffer with independent draws."""
        import torch

        edges, lowest = _rounded_table(self.sigma)
        table = torch.from_numpy(edges).to(buffer.device)
        draws = torch.empty(buffer.shape, dtype=torch.int64, device=buffer.device)
        draws.random_(0, 2**60, generator=generator)
        buffer.copy_(torch.searchsorted(table, draws, right=True).add_(lowest))

    def natural_radius(self, p_lower: ArrayLike, p_upper: ArrayLike) -> NDArray[np.float64]:
        """Apply the theorem in the noise's own norm."""
        return gaussian_l2(self.sigma, p_lower, p_upper)

    def radius(
        self, p_lower: ArrayLike, p_upper: ArrayLike, norm: Norm | None = None, *, dimension: int = 1
    ) -> NDArray[np.float64]:
        """Prove an l2 radius for perturbations on the grid.

        Args:
            p_lower: lower bound on the probability of the class.
            p_upper: upper bound on the probability of every other class.
            norm: l2 or None.
            dimension: the number of coordinates of one input, each of which adds the table's error.

        Returns:
            Radii in input units, float64, rounded down.

        Raises:
            Unsound: if another norm is asked for.
        """
        if norm not in (None, Norm.L2):
            raise Unsound(f"sound mode certifies l2 on the 1/255 grid and not {norm}: leave --sound out")
        slack = dimension * _TABLE_ERROR
        return self.natural_radius(
            np.maximum(np.asarray(p_lower, dtype=np.float64) - slack, 0.0),
            np.minimum(np.asarray(p_upper, dtype=np.float64) + slack, 1.0),
        )

    def prepare(self, x: Tensor) -> Tensor:
        """Bring inputs on the 1/255 grid to integers.

        Args:
            x: inputs of any shape, in [0, 1].

        Returns:
            The integers 255 x, as float32, of the same shape.

        Raises:
            InvalidInput: if an input is not on the grid.
        """
        whole = (x * _GRID).round()
        if not bool((_divide(whole) == x).all()):
            raise InvalidInput("an input is not on the 1/255 grid, which sound mode needs: use 8-bit images")
        return whole

    def add(self, prepared: Tensor, noise: Tensor, out: Tensor) -> None:
        """Add scaled draws to inputs in float32."""
        import torch

        torch.add(prepared, noise, out=out)
        _divide(out, out=out)


def _divide(whole: Tensor, out: Tensor | None = None) -> Tensor:
    """Divide integers by 255 with one rounding: on CUDA a plain number would be multiplied by its reciprocal."""
    import torch

    return torch.div(whole, torch.full((1,), float(_GRID), device=whole.device), out=out)


@lru_cache(maxsize=8)
def _rounded_table(sigma: float) -> tuple[np.ndarray, int]:
    """Integer cumulative probabilities, and the least integer drawn: edges[j] = 2^60 P(k < lowest + j + 1)."""
    from scipy.special import ndtr

    scale = _GRID * sigma
    reach = math.ceil(9 * scale) + 1
    below = np.arange(-reach, 0, dtype=np.float64) + 0.5
    lower = np.rint(ndtr(below / scale) * 2.0**60).astype(np.int64)
    edges = np.concatenate([lower, 2**60 - lower[::-1]])
    return edges, -reach
