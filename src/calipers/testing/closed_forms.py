"""Networks with closed forms: the distance to the boundary, and the votes under Gaussian noise."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import chndtr, ndtr
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.threat.threat_model import Norm

__all__ = ["ConcentricBalls", "HalfSpace", "NoisyHalfSpace", "Staircase"]

Array = NDArray[np.float64]


@final
class HalfSpace(nn.Module):
    r"""Class 1 where :math:`w \cdot x + b > 0`, class 0 where it is below 0.

    The scores are :math:`\mp g\,s(x)` with the signed l2 distance :math:`s(x) = (w \cdot x + b) / \|w\|_2` and
    a gain g, computed in float64. The distance to the boundary in the norm p
    is :math:`|w \cdot x + b| / \|w\|_q`, with q the dual of p, and one coordinate in l0. Under Gaussian noise class
    1 has the probability :math:`\Phi(s(x)/\sigma)`, so that the radius of Theorem 1 is the distance itself: the
    theorem is tight here. A large gain makes the softmax scores 0 and 1, on which certificates from mean scores are
    tight too.

    Reference: Cohen, Rosenfeld and Kolter 2019 (arXiv:1902.02918), Theorem 2 and Appendix B.

    Args:
        weights: w, one value for each coordinate; kept as float32.
        offset: b; kept as float32.
        gain: g.

    Raises:
        UsageError: if every weight is 0.
    """

    num_classes = 2

    def __init__(self, weights: Sequence[float], offset: float = 0.0, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(list(weights), dtype=torch.float32))
        self.offset = nn.Parameter(torch.tensor(offset, dtype=torch.float32))
        self.gain = gain
        if not bool((self.weights != 0).any()):
            raise UsageError(f"weights are {list(weights)}: a half-space needs one that is not 0")

    def signed(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
        """Compute the signed l2 distance to the boundary, positive in class 1.

        Args:
            x: inputs, in input units.

        Returns:
            One distance an input, float64.
        """
        weights = self.weights.double()
        signed: Tensor = (x.double().flatten(1) @ weights + self.offset.double()) / weights.norm()
        return signed

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch 2"]:
        """Compute the scores.

        Args:
            x: inputs, in input units.

        Returns:
            Scores, float64.
        """
        side = self.gain * self.signed(x)
        return torch.stack([-side, side], 1)

    def distance(self, x: Float[Tensor, "batch *dims"], norm: Norm) -> Array:
        """Compute the distance to the boundary.

        Args:
            x: inputs, in input units.
            norm: the norm.

        Returns:
            One distance an input.
        """
        weights = np.abs(self.weights.detach().double().numpy())
        height: Array = np.abs(self.signed(x).detach().numpy()) * np.linalg.norm(weights)
        if norm is Norm.L0:
            return (height > 0).astype(np.float64)
        dual = {Norm.L1: weights.max(), Norm.L2: np.linalg.norm(weights), Norm.LINF: weights.sum()}[norm]
        return np.asarray(height / dual, dtype=np.float64)

    def vote_probability(self, x: Float[Tensor, "batch *dims"], sigma: float) -> Array:
        """Compute the probability of each class under noise from N(0, sigma^2 I).

        Args:
            x: inputs, in input units.
            sigma: the standard deviation of the noise, in input units.

        Returns:
            Probabilities (batch, 2).
        """
        side: Array = self.signed(x).detach().numpy() / sigma
        return np.stack([ndtr(-side), ndtr(side)], 1)


@final
class NoisyHalfSpace(nn.Module):
    r"""A half-space that gives the other answer with probability q, anew for every input of every call.

    Under Gaussian noise class 1 has the probability :math:`q + (1 - 2q)\,\Phi(s(x)/\sigma)`, so Theorem 1
    certifies less than the distance, which is the exact radius of the smoothed classifier since :math:`q < 1/2`.

    Args:
        base: the half-space.
        flip: q, in [0, 1/2).

    Raises:
        UsageError: if the flip probability lies outside [0, 1/2).
    """

    num_classes = 2

    def __init__(self, base: HalfSpace, *, flip: float) -> None:
        super().__init__()
        if not 0 <= flip < 0.5:
            raise UsageError(f"flip is {flip}: give a probability in [0, 0.5)")
        self.base = base
        self.flip = flip

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch 2"]:
        """Compute the scores, each input's flipped by chance.

        Args:
            x: inputs, in input units.

        Returns:
            Scores, float64.
        """
        scores: Tensor = self.base(x)
        flipped = torch.rand(len(x), device=x.device) < self.flip
        return torch.where(flipped[:, None], scores.flip(1), scores)

    def distance(self, x: Float[Tensor, "batch *dims"], norm: Norm) -> Array:
        """Compute the distance to the boundary, which the more probable answer changes on.

        Args:
            x: inputs, in input units.
            norm: the norm.

        Returns:
            One distance an input.
        """
        return self.base.distance(x, norm)

    def vote_probability(self, x: Float[Tensor, "batch *dims"], sigma: float) -> Array:
        """Compute the probability of each class under noise from N(0, sigma^2 I) and the flips.

        Args:
            x: inputs, in input units.
            sigma: the standard deviation of the noise, in input units.

        Returns:
            Probabilities (batch, 2).
        """
        return self.flip + (1 - 2 * self.flip) * self.base.vote_probability(x, sigma)


@final
class ConcentricBalls(nn.Module):
    r"""Class 0 inside the l2 ball of radius :math:`\rho` around c, class 1 outside.

    The scores are :math:`\pm(\rho^2 - \|z\|_2^2)` with :math:`z = x - c`, computed in float64. The distance
    is :math:`|\|z\|_2 - \rho|` in l2. From inside, :math:`\|z + \delta\|_2` grows fastest along the
    signs of z in linf, :math:`\sum_i (|z_i| + t)^2 = \rho^2`, and along the largest coordinate m in l1,
    :math:`(m + t)^2 + \|z\|_2^2 - m^2 = \rho^2`. From outside it falls fastest where every coordinate
    shrinks by t in linf, :math:`\sum_i (|z_i| - t)_+^2 = \rho^2`, and where the largest are cut to one level c
    in l1, :math:`\sum_i \min(|z_i|, c)^2 = \rho^2`, at the cost :math:`\sum_i (|z_i| - c)_+`; these two roots are
    found by bisection, from above. In l0 it is 1 from inside, and from outside the number of largest coordinates
    that must go.

    Under Gaussian noise class 0 has the probability :math:`P(\chi'^2 \le \rho^2/\sigma^2)` of the noncentral
    chi-square distribution with d degrees of freedom and noncentrality :math:`\|z\|_2^2/\sigma^2`.

    Reference: the two spheres of Gilmer et al. 2018 (arXiv:1801.02774), filled.

    Args:
        center: c, one value for each coordinate; kept as float32.
        rho: the radius of the ball, in input units.

    Raises:
        UsageError: if the radius is not positive.
    """

    num_classes = 2

    def __init__(self, center: Sequence[float], rho: float) -> None:
        super().__init__()
        if not 0 < rho < float("inf"):
            raise UsageError(f"rho is {rho}: give a finite radius above 0")
        self.center = nn.Parameter(torch.tensor(list(center), dtype=torch.float32))
        self.rho = float(rho)

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch 2"]:
        """Compute the scores.

        Args:
            x: inputs, in input units.

        Returns:
            Scores, float64.
        """
        inside = self.rho**2 - self._from_center(x).square().sum(1)
        return torch.stack([inside, -inside], 1)

    def distance(self, x: Float[Tensor, "batch *dims"], norm: Norm) -> Array:
        """Compute the distance to the sphere.

        Args:
            x: inputs, in input units.
            norm: the norm.

        Returns:
            One distance an input.
        """
        rows = np.abs(self._from_center(x).detach().numpy())
        return np.array([self._distance(row, norm) for row in rows])

    def vote_probability(self, x: Float[Tensor, "batch *dims"], sigma: float) -> Array:
        """Compute the probability of each class under noise from N(0, sigma^2 I).

        Args:
            x: inputs, in input units.
            sigma: the standard deviation of the noise, in input units.

        Returns:
            Probabilities (batch, 2).
        """
        z = self._from_center(x).detach().numpy()
        inside = chndtr((self.rho / sigma) ** 2, z.shape[1], (z**2).sum(1) / sigma**2)
        return np.stack([inside, 1 - inside], 1)

    def _from_center(self, x: Tensor) -> Tensor:
        return x.double().flatten(1) - self.center.double()

    def _distance(self, z: Array, norm: Norm) -> float:
        square, wanted, largest, total = float(z @ z), self.rho**2, float(z.max()), float(z.sum())
        inside = square < wanted
        match norm:
            case Norm.L2:
                return abs(float(np.sqrt(square)) - self.rho)
            case Norm.L0:
                left = np.cumsum(np.sort(z**2))[::-1]
                return 1.0 if inside else float(np.sum(left > wanted))
            case Norm.LINF:
                if inside:
                    return float((np.sqrt(total**2 + len(z) * (wanted - square)) - total) / len(z))
                return _bisect(lambda t: float(np.sum(np.maximum(z - t, 0) ** 2)) - wanted, largest)
            case Norm.L1:
                if inside:
                    return float(np.sqrt(wanted - square + largest**2)) - largest
                cut = _bisect(lambda t: float(np.sum(np.minimum(z, largest - t) ** 2)) - wanted, largest)
                return float(np.sum(np.maximum(z - (largest - cut), 0)))


@final
class Staircase(nn.Module):
    r"""Steps on a line: the class depends on the edges below x, and the gradient is zero everywhere.

    The scores are twice the unit vector of the class. An input at an edge belongs to the step above it. The
    distance, the same in l1, l2 and linf, is that to the nearer edge; it is 1 in l0. Under Gaussian noise the step
    between two edges has the probability :math:`\Phi((e_{i+1} - x)/\sigma) - \Phi((e_i - x)/\sigma)`.

    Args:
        edges: rising places where the class changes; kept as float32.
        classes: the class of each step, one more than there are edges; neighbours differ.

    Raises:
        UsageError: if the edges do not rise, or the classes do not fit them.
    """

    steps: Tensor

    def __init__(self, edges: Sequence[float], classes: Sequence[int]) -> None:
        super().__init__()
        if not edges or any(above <= below for below, above in pairwise(edges)):
            raise UsageError(f"edges are {list(edges)}: give one or more that rise")
        neighbours = pairwise(classes)
        if len(classes) != len(edges) + 1 or min(classes) < 0 or any(a == b for a, b in neighbours):
            raise UsageError(
                f"classes are {list(classes)}: give {len(edges) + 1} of them, neighbours different"
            )
        self.edges = nn.Parameter(torch.tensor(list(edges), dtype=torch.float32))
        self.register_buffer("steps", torch.tensor(list(classes)))
        self.num_classes = max(classes) + 1

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch classes"]:
        """Compute the scores.

        Args:
            x: inputs of one coordinate, in input units.

        Returns:
            Scores in the precision of the inputs.
        """
        flat = x.flatten(1)
        place = torch.bucketize(flat[:, 0].detach(), self.edges.detach(), right=True)
        return 2 * nn.functional.one_hot(self.steps[place], self.num_classes).to(x.dtype) + 0 * flat[:, :1]

    def distance(self, x: Float[Tensor, "batch *dims"], norm: Norm) -> Array:
        """Compute the distance to the nearer edge.

        Args:
            x: inputs of one coordinate, in input units.
            norm: the norm.

        Returns:
            One distance an input.
        """
        gaps: Array = (x.double().flatten(1)[:, :1] - self.edges.double()).abs().amin(1).detach().numpy()
        return (gaps > 0).astype(np.float64) if norm is Norm.L0 else gaps

    def vote_probability(self, x: Float[Tensor, "batch *dims"], sigma: float) -> Array:
        """Compute the probability of each class under noise from N(0, sigma^2).

        Args:
            x: inputs of one coordinate, in input units.
            sigma: the standard deviation of the noise, in input units.

        Returns:
            Probabilities (batch, classes).
        """
        place = (self.edges.double() - x.double().flatten(1)[:, :1]).detach().numpy() / sigma
        below = np.concatenate([np.zeros((len(x), 1)), ndtr(place), np.ones((len(x), 1))], 1)
        votes = np.zeros((len(x), self.num_classes))
        for step, chosen in enumerate(self.steps.tolist()):
            votes[:, chosen] += below[:, step + 1] - below[:, step]
        return votes


def _bisect(falling: Callable[[float], float], high: float) -> float:
    """Return where a function that falls on [0, high] reaches 0, from above."""
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return high
