"""Geometry of candidates: distances rounded up, and points inside the box and the ball, as floats or as bytes."""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calipers.threat.norms import project, size
from calipers.threat.threat_model import Norm

__all__ = [
    "Ball",
    "distances",
    "inside_box",
    "levels",
    "on_grid",
    "settle",
    "settle_on_grid",
    "unblocked",
    "within",
]

_LEVELS = 255
_ROUNDOFF = 2.0**-52
_DRAWN_IN = 1e-7
_TRIES = 24


def distances(
    candidate: Float[Tensor, "batch *dims"], x: Float[Tensor, "batch *dims"], norm: Norm
) -> Float[Tensor, " batch"]:
    """Measure perturbations in float64 and round up.

    The difference of two float32 numbers is exact in float64 where their exponents are near, and within its unit
    roundoff otherwise; sums of d terms lose d units at most.

    Args:
        candidate: perturbed inputs, float32.
        x: clean inputs, float32.
        norm: the norm.

    Returns:
        One distance an input, float64, never below the true one.
    """
    return _rounded_up(candidate.double() - x.double(), norm)


def _rounded_up(delta: Tensor, norm: Norm) -> Tensor:
    found = size(delta, norm)
    if norm is Norm.L0:
        return found
    terms = 1 if norm is Norm.LINF else delta.flatten(1).shape[1]
    return found * (1 + (terms + 4) * _ROUNDOFF)


def inside_box(x: Float[Tensor, "batch *dims"], bounds: tuple[float, float]) -> Bool[Tensor, " batch"]:
    """Say which inputs lie within the bounds, exactly.

    Args:
        x: inputs.
        bounds: the least and the largest value.

    Returns:
        One answer an input; NaN lies outside.
    """
    low, high = bounds
    flat = x.flatten(1)  # compared as float32, as the bounds of clean inputs are
    return ((flat >= low) & (flat <= high)).all(1)


def settle(
    candidate: Float[Tensor, "batch *dims"],
    x: Float[Tensor, "batch *dims"],
    norm: Norm,
    eps: float | None,
    bounds: tuple[float, float],
) -> Float[Tensor, "batch *dims"]:
    """Move candidates to float32 points that lie inside the box and the ball beyond doubt.

    A search works in float32 and projects onto its ball up to rounding; what it ends with may lie outside by a unit or
    two. Here the perturbation is projected in float64, and then drawn in by shares of 1e-7 until its float32 form is
    inside by :func:`distances`. A candidate that is not a number becomes the clean input.

    Args:
        candidate: what a search ended with.
        x: clean inputs, float32, inside the box.
        norm: the norm of the ball.
        eps: its radius; None for no ball.
        bounds: the least and the largest value of the box.

    Returns:
        Float32 inputs.
    """
    finite = torch.isfinite(candidate)
    candidate = torch.where(finite, candidate, x).float().clamp(*bounds)
    if eps is None or not len(x):
        return candidate
    outside = distances(candidate, x, norm) > eps
    if not bool(outside.any()):
        return candidate
    radius = torch.full((len(x),), eps, dtype=torch.float64, device=x.device)
    clean, shape = x.double(), (-1, *[1] * (x.ndim - 1))
    delta = project(candidate.double() - clean, radius, norm)
    settled = candidate
    for attempt in range(_TRIES):
        share = 0.0 if attempt == 0 else min(_DRAWN_IN * 2.0 ** (attempt - 1), 1.0)
        drawn_in = (clean + delta * (1 - share)).float().clamp(*bounds)
        settled = torch.where(outside.view(shape), drawn_in, settled)
        outside = distances(settled, x, norm) > eps
        if not bool(outside.any()):
            return settled
    return torch.where(outside.view(shape), x, settled)


@final
class Ball:
    """The points of a search: inside the ball and the box, up to rounding; prepared once for many steps.

    Args:
        x: clean inputs, inside the box.
        norm: the norm of the ball.
        eps: its radius.
        bounds: the least and the largest value of the box.
    """

    def __init__(
        self, x: Float[Tensor, "batch *dims"], norm: Norm, eps: float, bounds: tuple[float, float]
    ) -> None:
        self._x, self._norm, self._eps, self._bounds = x, norm, eps, bounds
        low, high = bounds
        self._edges = ((x - eps).clamp_min(low), (x + eps).clamp_max(high)) if norm is Norm.LINF else None

    def of(self, left: Bool[Tensor, " batch"]) -> "Ball":
        """Take the balls of some inputs.

        Args:
            left: which.

        Returns:
            Their balls.
        """
        part = object.__new__(Ball)
        part._x, part._norm, part._eps, part._bounds = self._x[left], self._norm, self._eps, self._bounds
        part._edges = None if self._edges is None else (self._edges[0][left], self._edges[1][left])
        return part

    def confine(self, point: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        """Move points inside, as :func:`within` does.

        Args:
            point: one point an input.

        Returns:
            Points of the ball and the box.
        """
        if self._edges is not None:
            return point.clamp(*self._edges)
        return within(point, self._x, self._norm, self._eps, self._bounds)


def within(
    point: Float[Tensor, "batch *dims"],
    x: Float[Tensor, "batch *dims"],
    norm: Norm,
    eps: float,
    bounds: tuple[float, float],
) -> Float[Tensor, "batch *dims"]:
    """Move the points of a search into the ball and the box, up to rounding.

    For linf and l1 this is the nearest point of both. For l2 and l0 the perturbation is projected onto the ball and
    then cut to the box, which leaves the ball for neither.

    Reference for l1: Croce and Hein 2021, arXiv:2103.01208, Proposition 2.1.

    Args:
        point: points of a search.
        x: clean inputs, inside the box.
        norm: the norm of the ball.
        eps: its radius.
        bounds: the least and the largest value of the box.

    Returns:
        Points of the ball and the box.
    """
    if norm is Norm.LINF:
        return torch.maximum(torch.minimum(point, x + eps), x - eps).clamp(*bounds)
    if norm is Norm.L1:
        return x + _project_l1_box(point - x, x, eps, bounds)
    radius = torch.full((len(x),), eps, dtype=x.dtype, device=x.device)
    return (x + project(point - x, radius, norm)).clamp(*bounds)


def _project_l1_box(delta: Tensor, x: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    """Project onto the l1 ball and the box: each magnitude falls by one common amount, and stops at its room."""
    low, high = bounds
    magnitude = delta.abs().flatten(1)
    room = torch.where(delta >= 0, high - x, x - low).flatten(1)
    # The sum of clamp(magnitude - fall, 0, room) falls in straight pieces between these places.
    places, order = torch.cat([(magnitude - room).clamp_min(0), magnitude], 1).sort(1)
    turns = torch.cat([-torch.ones_like(room), torch.ones_like(room)], 1).gather(1, order)
    slope = turns.cumsum(1)
    drops = (slope[:, :-1] * places.diff(dim=1)).cumsum(1)
    whole = torch.minimum(magnitude, room).sum(1, keepdim=True)
    sums = whole + torch.cat([torch.zeros_like(whole), drops], 1)
    last = ((sums > eps).sum(1, keepdim=True) - 1).clamp_min(0)
    pace = (-slope.gather(1, last)).clamp_min(1)
    fall = places.gather(1, last) + (sums.gather(1, last) - eps) / pace
    fall = torch.where(whole > eps, fall, torch.zeros_like(fall))
    kept = torch.minimum((magnitude - fall).clamp_min(0), room)
    return delta.sign() * kept.view_as(delta)


def unblocked(
    gradient: Float[Tensor, "batch *dims"], point: Float[Tensor, "batch *dims"], bounds: tuple[float, float]
) -> Float[Tensor, "batch *dims"]:
    """Leave out of a gradient the coordinates that are at the edge of the box and would leave it.

    A steepest step in l1 moves one coordinate; one that cannot move would stop the search for good.

    Args:
        gradient: directions in which an objective rises.
        point: where.
        bounds: the least and the largest value of the box.

    Returns:
        The gradient, 0 where the box is in the way.
    """
    low, high = bounds
    stuck = ((point >= high) & (gradient > 0)) | ((point <= low) & (gradient < 0))
    return gradient.masked_fill(stuck, 0.0)


def levels(x: Float[Tensor, "batch *dims"], bounds: tuple[float, float]) -> Float[Tensor, "batch *dims"]:
    """Round inputs to bytes.

    Args:
        x: inputs.
        bounds: the values of the bytes 0 and 255.

    Returns:
        Whole numbers from 0 to 255, float64.
    """
    low, high = bounds
    return ((x.double() - low) / (high - low) * _LEVELS).round().clamp(0, _LEVELS)


def on_grid(x: Float[Tensor, "batch *dims"], bounds: tuple[float, float]) -> Bool[Tensor, " batch"]:
    """Say which inputs are bytes up to the rounding of float32.

    Args:
        x: inputs, float32.
        bounds: the values of the bytes 0 and 255.

    Returns:
        One answer an input.
    """
    low, high = bounds
    exact = (x.double() - low) / (high - low) * _LEVELS
    return ((exact - exact.round()).abs() < 1e-3).flatten(1).all(1)


def settle_on_grid(
    candidate: Float[Tensor, "batch *dims"],
    x: Float[Tensor, "batch *dims"],
    norm: Norm,
    eps: float | None,
    bounds: tuple[float, float],
) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, " batch"]]:
    """Move candidates to 8-bit images inside the ball around an 8-bit image, and measure them as bytes.

    Rounding to the nearest byte may leave the ball; rounding towards the clean byte never does, since it makes every
    coordinate of the perturbation smaller.

    Args:
        candidate: what a search ended with.
        x: clean inputs, 8-bit images as float32.
        norm: the norm of the ball.
        eps: its radius; None for no ball.
        bounds: the values of the bytes 0 and 255.

    Returns:
        Float32 inputs on the grid, and their distances in input units, float64.
    """
    low, high = bounds
    clean, wide = levels(x, bounds), (-1, *[1] * (x.ndim - 1))

    def measured(grid: Tensor) -> Tensor:
        # whole numbers of bytes are summed without rounding
        found = size(grid - clean, norm)
        if norm is Norm.L0:
            return found
        found = found * (high - low) / _LEVELS
        return found * (1 + 8 * _ROUNDOFF) if norm is Norm.L2 else found

    moved = torch.where(torch.isfinite(candidate), candidate, x)
    grid = levels(moved, bounds)
    distance = measured(grid)
    if eps is None or not bool((distance > eps).any()):
        return (grid / _LEVELS * (high - low) + low).float(), distance
    radius = torch.full((len(x),), eps, dtype=torch.float64, device=x.device)
    exact = ((moved.double() - low) / (high - low) * _LEVELS).clamp(0, _LEVELS)
    scale = 1.0 if norm is Norm.L0 else _LEVELS / (high - low)
    inner = project(exact - clean, radius * scale, norm)
    # first a hair outward, so that a byte which the ball reaches exactly is not lost to rounding
    for share in (1 + 1e-9, 1 - 1e-9, 0.0):
        outside = (distance > eps).view(wide)
        grid = torch.where(outside, (clean + (inner * share).trunc()).clamp(0, _LEVELS), grid)
        distance = measured(grid)
    return (grid / _LEVELS * (high - low) + low).float(), distance
