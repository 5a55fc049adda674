"""Lower bounds on Lipschitz constants: the other half of the sandwich, printed beside every upper bound."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from calipers.certificates.lipschitz.shapes import InFloat64
from calipers.certificates.lipschitz.stretch import (
    DUAL,
    ROUNDING,
    check_norm,
    derivative_norms,
    finite_maximum,
    pulled_back,
)
from calipers.errors import UsageError
from calipers.randomness import Role, Stream, check_seed
from calipers.threat.norms import size, steepest
from calipers.threat.threat_model import Norm

__all__ = ["sampled_lower_bound"]

_ROWS = 128  # up to so many outputs a Jacobian is computed whole
_MARGIN = 1e-6  # of the box: how far points are moved at random, off the kinks of the network
_PAIRS = 4  # pairs that climb


def sampled_lower_bound(
    module: nn.Module,
    input_shape: Sequence[int],
    bounds: tuple[float, float] = (0.0, 1.0),
    norm: Norm = Norm.L2,
    *,
    inputs: Float[Tensor, "batch *dims"] | None = None,
    samples: int = 64,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 16,
) -> float:
    r"""Bound the Lipschitz constant of a network from below, by what it does at points and to pairs of points.

    1. Points are drawn in the box; the given inputs join them. At each, the Jacobian is applied to two random
       directions of the outputs, and the points where it stretches most are kept.
    2. From there pairs climb the quotient :math:`\|f(x) - f(y)\| / \|x - y\|` by gradient ascent inside the box. (The
       Jacobian's own norm has no gradient to follow: that of a ReLU network is constant on each of its pieces. The
       quotient sees the pieces between its two points.)

    The largest quotient is returned: what two points show. Jacobians choose where the ascent begins and are never taken
    at their word, since a backward of one's own, a straight-through estimator or a hook may give any number. All of it
    is done on a float64 copy in eval mode.

    Args:
        module: a network from (batch, *input_shape) to (batch, outputs); not changed.
        input_shape: the shape of one input.
        bounds: the least and the largest value of an input, which bound the search and nothing else.
        norm: the norm of inputs and outputs: l1, l2 or linf.
        inputs: inputs to start from besides the random ones, such as some of the data.
        samples: number of random points.
        steps: steps of the ascent.
        seed: seed of the points.
        batch_size: inputs in one forward pass.

    Returns:
        A lower bound on the constant from the norm to the same norm, rounded down, in units of output by unit of input.

    Raises:
        UsageError: if the norm is l0, the bounds are no interval, or there are no points.
    """
    check_norm(norm)
    low, high = float(bounds[0]), float(bounds[1])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"bounds are ({low}, {high}): give two finite values, the lower first")
    if samples < 0 or steps < 0 or batch_size < 1 or (samples == 0 and (inputs is None or len(inputs) == 0)):
        raise UsageError(
            f"samples, steps, batch_size are {samples}, {steps}, {batch_size}: give at least one point, no step less "
            "than 0, and a batch of at least 1"
        )
    net = copy.deepcopy(module).double().eval().requires_grad_(False)
    device = next((tensor.device for tensor in [*net.parameters(), *net.buffers()]), torch.device("cpu"))
    search = _Search(
        net, norm, low, high, Stream(check_seed(seed), Role.SEARCH, 0).generator(0), batch_size, device
    )
    points = search.draw(samples, tuple(input_shape))
    if inputs is not None:
        points = torch.cat([points, inputs.detach().to(points)])
    points = search.moved(points)
    kept = points[search.stretch(points).argsort(descending=True)[:_PAIRS]]
    _, directions = search.jacobian_norms(kept)
    quotients, _, _ = search.climb(kept, directions, steps)
    return finite_maximum(quotients) * (1.0 - ROUNDING)


class _Largest(TorchFunctionMode):
    """Notes the largest magnitude that any function of torch gave."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0.0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, and note its result."""
        del types
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_floating_point():
            self.value = max(self.value, finite_maximum(found.abs().flatten()))
        return found


def _unchanged(saved: Tensor) -> Tensor:
    return saved


@final
@dataclass(frozen=True)
class _Search:
    """The network under search, with what all steps share."""

    net: nn.Module
    norm: Norm
    low: float
    high: float
    generator: torch.Generator
    batch_size: int
    device: torch.device

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.device)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network in float64; copies are given, and saved for the backward: it may work in place."""
        with InFloat64(), saved_tensors_hooks(Tensor.clone, _unchanged):
            return torch.as_tensor(self.net(x.clone())).flatten(1)

    def largest(self, points: Tensor) -> float:
        """Find the largest magnitude inside the network, or outside of it, at some points."""
        noted = _Largest()
        with torch.no_grad(), noted:
            self.forward(points)
        return noted.value

    def draw(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """Draw points: uniform ones, and for each second one less contrast around a random level."""
        points = self._uniform(count, *shape)
        ones = (1,) * len(shape)
        contrast, level = self._uniform(count, *ones), self._uniform(count, *ones)
        contrast[::2] = 1.0
        return self.low + (self.high - self.low) * (level + contrast * (points - level))

    def moved(self, points: Tensor) -> Tensor:
        """Move points off the kinks of the network and off the faces of the box."""
        margin = _MARGIN * (self.high - self.low)
        jittered = points + margin * (2.0 * self._uniform(*points.shape) - 1.0)
        floor = self.low + margin * self._uniform(*points.shape)
        return jittered.clamp(floor, self.high - margin * self._uniform(*points.shape))

    def stretch(self, points: Tensor) -> Tensor:
        """Bound the norm of the Jacobian at each point from below, by two directions of the outputs."""
        dual = DUAL[self.norm]
        with torch.no_grad():
            outputs = self.forward(points[:1]).shape[1]
        drawn = self._uniform(len(points), 2, outputs) - 0.5  # at once: the size of a batch changes no draw
        found = []
        for batch, directions in zip(
            torch.split(points, self.batch_size), torch.split(drawn, self.batch_size), strict=True
        ):
            x = batch.clone().requires_grad_(True)
            y = self.forward(x)
            sizes = [size(pulled_back(y, x, steepest(d, dual)), dual) for d in directions.unbind(1)]
            found.append(torch.stack(sizes).nan_to_num(0.0, 0.0, 0.0).amax(0))
        return torch.cat(found)

    def jacobian_norms(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the norm of the Jacobian at each point, and an input direction that is stretched so."""
        values, directions = [], []
        for batch in torch.split(points, self.batch_size):
            value, direction = self._jacobian_norms(batch)
            values.append(value)
            directions.append(direction)
        return torch.cat(values), torch.cat(directions)

    def _jacobian_norms(self, points: Tensor) -> tuple[Tensor, Tensor]:
        x = points.clone().requires_grad_(True)
        y = self.forward(x)
        if y.shape[1] > _ROWS:
            start = self._uniform(*points.shape) - 0.5
            return derivative_norms(self.forward, points, start, self.norm)
        rows = []
        for k in range(y.shape[1]):
            direction = torch.zeros_like(y)
            direction[:, k] = 1.0
            rows.append(pulled_back(y, x, direction))
        jacobian = torch.stack([row.flatten(1) for row in rows], 1).nan_to_num(0.0, 0.0, 0.0)
        match self.norm:
            case Norm.L2:
                # The top direction u of the outputs; ||J^T u|| / ||u|| is a lower bound whatever u is.
                cotangent = torch.linalg.eigh(jacobian @ jacobian.mT).eigenvectors[:, :, -1]
            case Norm.LINF:
                cotangent = steepest(jacobian.abs().sum(2), Norm.L1)
            case _:
                column = jacobian.abs().sum(1).argmax(1)
                cotangent = jacobian[torch.arange(len(x), device=self.device), :, column].sign()
        pulled = (cotangent[:, None, :] @ jacobian)[:, 0]
        length = size(cotangent, DUAL[self.norm]).clamp_min(1e-300)
        return size(pulled, DUAL[self.norm]) / length, steepest(pulled, self.norm).view_as(points)

    def climb(self, points: Tensor, directions: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Climb the quotient from pairs around the points; give the best of each pair and where it was."""
        width = (self.high - self.low) * math.sqrt(points[0].numel())
        reach = width * torch.logspace(-3.0, -1.5, len(points), dtype=torch.float64, device=self.device)
        reach = reach.view(-1, *(1,) * (points.ndim - 1))
        unit = steepest(directions, Norm.L2)
        first = (points - 0.5 * reach * unit).clamp(self.low, self.high)
        second = (points + 0.5 * reach * unit).clamp(self.low, self.high)
        best = torch.full((len(points),), -math.inf, dtype=torch.float64, device=self.device)
        best_first, best_second = first, second
        inside = 2.0**-50 * self.largest(points)
        for step in range(steps + 1):
            ends = torch.stack([first, second]).requires_grad_(True)
            outputs = self.forward(ends.flatten(0, 1)).view(2, len(points), -1)
            moved, length = outputs[0] - outputs[1], size(ends[0] - ends[1], self.norm)
            quotient = size(moved, self.norm) / length
            with torch.no_grad():
                # What rounding, in the outputs or inside, may have added is taken off before it is believed.
                doubt = 1e-10 * (size(outputs[0], self.norm) + size(outputs[1], self.norm)) / length
                doubt = doubt + inside * quotient.clamp_min(1.0) / length
                value = (quotient - doubt).nan_to_num(-math.inf, -math.inf, -math.inf)
                better = value > best
                best = torch.where(better, value, best)
                mask = better.view(-1, *(1,) * (points.ndim - 1))
                best_first, best_second = (
                    torch.where(mask, first, best_first),
                    torch.where(mask, second, best_second),
                )
            if step == steps:
                break
            gradient = torch.autograd.grad(quotient.nan_to_num(0.0, 0.0, 0.0).sum(), ends)[0].nan_to_num(
                0.0, 0.0, 0.0
            )
            with torch.no_grad():
                rate = 1.0 - step / steps + 0.02
                stride = rate * size(ends[0] - ends[1], Norm.L2).view(-1, *(1,) * (points.ndim - 1))
                pair = steepest(gradient.transpose(0, 1).flatten(1), Norm.L2).view(
                    len(points), 2, *points.shape[1:]
                )
                new_first = (first + stride * pair[:, 0]).clamp(self.low, self.high)
                new_second = (second + stride * pair[:, 1]).clamp(self.low, self.high)
                apart = size(new_first - new_second, Norm.L2) > 1e-4 * width
                mask = apart.view(-1, *(1,) * (points.ndim - 1))
                first, second = torch.where(mask, new_first, first), torch.where(mask, new_second, second)
        return best, best_first, best_second
