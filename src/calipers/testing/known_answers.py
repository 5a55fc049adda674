"""Targets whose exact robust radius is known, to hold a method's answer against."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from calipers.target import Precision, Target
from calipers.target.target import outcomes
from calipers.testing.closed_forms import ConcentricBalls, HalfSpace, NoisyHalfSpace, Staircase
from calipers.threat.threat_model import Norm

__all__ = ["KnownAnswer", "concentric_balls", "half_space", "noisy_half_space", "staircase"]

Array = NDArray[np.float64]

_WIDE = (-1e3, 1e3)
"""Bounds far beyond any distance of a test, so that distances are those of the whole space."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


KnownNetwork = HalfSpace | NoisyHalfSpace | ConcentricBalls | Staircase


@final
@dataclass(frozen=True)
class KnownAnswer:
    """A target, and the network whose closed forms it is held against.

    Distances are those of the whole space: the bounds of the target are wider than any of them, unless they are
    given.

    Args:
        target: the classifier, to be measured.
        net: the network.
    """

    target: Target
    net: KnownNetwork

    def distance(self, x: Float[Tensor, "batch *dims"], norm: Norm) -> Array:
        """Compute the exact robust radius of each input: the infimum of distances to another answer.

        Args:
            x: inputs, in input units.
            norm: the norm.

        Returns:
            One distance an input, float64, in input units (coordinates in l0).
        """
        return self.net.distance(x, norm)

    def vote_probability(self, x: Float[Tensor, "batch *dims"], sigma: float) -> Array:
        """Compute the probability of each class under noise from N(0, sigma^2 I).

        Args:
            x: inputs, in input units.
            sigma: the standard deviation of the noise, in input units.

        Returns:
            Probabilities (batch, classes), float64.
        """
        return self.net.vote_probability(x, sigma)

    def label(self, x: Float[Tensor, "batch *dims"]) -> Int[Tensor, " batch"]:
        """Give the class of each input, without the network's own randomness.

        Args:
            x: inputs, in input units.

        Returns:
            One class an input; the number of classes on the boundary.
        """
        still = self.net.base if isinstance(self.net, NoisyHalfSpace) else self.net
        return outcomes(still(x).detach(), num_classes=self.net.num_classes)


def half_space(
    weights: Sequence[float],
    offset: float = 0.0,
    *,
    gain: float = 1.0,
    input_shape: Sequence[int] | None = None,
    bounds: tuple[float, float] = _WIDE,
    precision: Precision = "fp32",
    device: str = "cpu",
) -> KnownAnswer:
    """Make the target of a :class:`HalfSpace`.

    Args:
        weights: the normal, rounded to the precision.
        offset: the offset, rounded to the precision.
        gain: factor on the scores.
        input_shape: the shape of one input; one axis if None.
        bounds: the least and the largest value of a valid input; distances ignore them.
        precision: the number format of the network. Below fp32 the inputs are rounded too, and the closed forms
            ignore that.
        device: where the network runs.

    Returns:
        The target with its closed forms.

    Example:
        >>> import torch
        >>> known = half_space([3.0, 4.0], -5.0)
        >>> known.distance(torch.tensor([[3.0, 4.0]]), Norm.L2)
        array([4.])
    """
    rounded = torch.tensor([*weights, offset], dtype=torch.float32).to(_DTYPES[precision]).tolist()
    net = HalfSpace(rounded[:-1], rounded[-1], gain=gain).eval()
    target = Target(
        net,
        num_classes=2,
        input_shape=input_shape or (len(weights),),
        bounds=bounds,
        precision=precision,
        device=device,
        name="half-space",
    )
    return KnownAnswer(target, net)


def noisy_half_space(
    weights: Sequence[float],
    offset: float = 0.0,
    *,
    flip: float,
    bounds: tuple[float, float] = _WIDE,
    device: str = "cpu",
) -> KnownAnswer:
    """Make the target of a :class:`NoisyHalfSpace`, declared stochastic.

    Args:
        weights: the normal.
        offset: the offset.
        flip: the probability of the other answer, in [0, 1/2).
        bounds: the least and the largest value of a valid input; distances ignore them.
        device: where the network runs.

    Returns:
        The target with its closed forms.
    """
    net = NoisyHalfSpace(HalfSpace(weights, offset), flip=flip).eval()
    target = Target(
        net,
        num_classes=2,
        input_shape=(len(weights),),
        bounds=bounds,
        device=device,
        stochastic=True,
        name="noisy half-space",
    )
    return KnownAnswer(target, net)


def concentric_balls(
    center: Sequence[float], rho: float, *, bounds: tuple[float, float] = _WIDE, device: str = "cpu"
) -> KnownAnswer:
    """Make the target of a :class:`ConcentricBalls`.

    Args:
        center: the common center.
        rho: the radius of the ball, in input units.
        bounds: the least and the largest value of a valid input; distances ignore them.
        device: where the network runs.

    Returns:
        The target with its closed forms.
    """
    net = ConcentricBalls(center, rho).eval()
    target = Target(
        net, num_classes=2, input_shape=(len(center),), bounds=bounds, device=device, name="concentric balls"
    )
    return KnownAnswer(target, net)


def staircase(
    edges: Sequence[float],
    classes: Sequence[int],
    *,
    bounds: tuple[float, float] = _WIDE,
    device: str = "cpu",
) -> KnownAnswer:
    """Make the target of a :class:`Staircase`.

    Args:
        edges: rising places where the class changes.
        classes: the class of each step, one more than there are edges; neighbours differ.
        bounds: the least and the largest value of a valid input; distances ignore them.
        device: where the network runs.

    Returns:
        The target with its closed forms.
    """
    net = Staircase(edges, classes).eval()
    target = Target(
        net, num_classes=net.num_classes, input_shape=(1,), bounds=bounds, device=device, name="staircase"
    )
    return KnownAnswer(target, net)
