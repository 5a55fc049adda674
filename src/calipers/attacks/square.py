"""Square: random search over squares of the input, by scores alone."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.tracker import Strongest, lead
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows, repeat_draws
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.norms import size
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["Square"]

_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps, of ten thousand, after which the share of coordinates that a square covers is halved."""

_BLOCK = 100
_FIRST, _STEPS, _MODEL = range(3)
_SMALL = 8
_TINY, _CANCELLED = 1e-12, 1e-3


@final
@dataclass(frozen=True)
class Square(Attack):
    r"""Proposes a change of one square of the input at a time, and keeps it if the margin has grown.

    In linf a perturbation is :math:`\pm\varepsilon` everywhere: it begins with vertical stripes, and a proposal sets
    a square to one sign for each channel. In l2 it begins with a grid of bumps, and a proposal moves the mass of one
    window into another one, as a pair of bumps of opposite signs, so that the whole budget stays in use. The share of
    coordinates that a square covers falls from ``share`` as the search goes on.

    A proposal costs one query. Scores are asked for, gradients are not, so that nothing is lost where they vanish.

    Reference: Andriushchenko et al. 2020, arXiv:1912.00049, Algorithms 1 (search), 2 (linf), 3 (l2); section 3.

    Differs from the paper: an input without rows and columns is one row, whose windows are stretches of it; one with
    more axes has its leading ones as channels; a square is cut to the shorter side of the input and made as much
    longer; in l2 a window of an input with a side below 8 may be one coordinate, where two signs that cancel leave the
    new one. Of a randomized classifier the scores of a point are averaged over ``votes`` draws.

    Args:
        queries: points asked for each input, the first one included.
        share: share of the coordinates that a square covers at first.
        votes: draws of a randomized classifier for each point; a deterministic one is asked once.
        keep: whether inputs that have fallen go on to be searched.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    queries: int = 5000
    share: float = 0.8
    votes: int = 5
    keep: bool = False

    def __post_init__(self) -> None:
        if self.queries < 1 or self.votes < 1:
            raise UsageError(f"queries is {self.queries} and votes {self.votes}: give at least 1 of each")
        if not 0 < self.share <= 1:
            raise UsageError(f"share is {self.share}: give a share of the coordinates in (0, 1]")

    @property
    def access(self) -> Access:
        """Scores."""
        return Access.SCORES

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        eps, bounds = threat.eps or 0.0, view.bounds
        images = x.reshape(len(x), *_layout(tuple(x.shape[1:])))
        best = Strongest(x, keep=self.keep or view.stochastic)
        rows = best.standing()
        make = _stripes if threat.norm is Norm.LINF else _bumps
        begin = draws.fold(_FIRST)
        first = [make(images.shape[1:], begin[row].generator(0)) for row in rows.tolist()]
        tried = (images + eps * torch.stack(first).to(x)).clamp(*bounds) if first else images
        propose = _square if threat.norm is Norm.LINF else _mass
        for step in range(self.queries):
            if step:
                rows = best.standing()
                if not len(rows):
                    break
                window = _window(images.shape[2:], self.share, step, self.queries, norm=threat.norm)
                if (step - 1) % _BLOCK == 0:
                    block = self._numbers(images.shape[1], draws, rows, (step - 1) // _BLOCK)
                numbers = block[rows, (step - 1) % _BLOCK].to(x)
                current = best.point[rows].view(-1, *images.shape[1:])
                tried = propose(current, images[rows], eps, window, numbers).clamp(*bounds)
            point = tried.view(-1, *x.shape[1:])
            best.offer(rows, point, self._lead(view, rows, point, y, threat, draws.fold(_MODEL).fold(step)))
        return best.point

    def _numbers(self, channels: int, draws: Draws, rows: Tensor, block: int) -> Tensor:
        """Draw what the next proposals need: two places of two coordinates, a turn, and a sign for each channel."""
        drawn = torch.zeros(len(draws), _BLOCK, 5 + channels)
        streams = draws.fold(_STEPS)
        for row in rows.tolist():
            generator = streams[row].generator(block)
            drawn[row] = torch.rand((_BLOCK, 5 + channels), generator=generator)
        return drawn

    def _lead(
        self, view: View, rows: Tensor, point: Tensor, y: Tensor, threat: ThreatModel, draws: Draws
    ) -> Tensor:
        numbers = rows.tolist()
        part, votes = draws.of(numbers), self.votes if view.stochastic else 1
        if votes == 1:
            logits = view.of(rows).logits(point, part)
        else:
            asked = view.of(rows).logits(
                point.repeat_interleave(votes, 0), repeat_draws(part, range(len(rows)), votes)
            )
            logits = asked.view(len(rows), votes, -1).mean(1)
        return lead(logits, y[rows], goal_of_rows(threat.goal, numbers), num_classes=view.num_classes)


def _layout(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Read the shape of an input as channels, rows and columns."""
    if len(shape) == 1:
        return 1, 1, shape[0]
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _window(sides: torch.Size, share: float, step: int, steps: int, *, norm: Norm) -> tuple[int, int]:
    """Rows and columns of the window of a step."""
    place = step * 10_000 / steps
    covered = share * 0.5 ** sum(place > halved for halved in _HALVED_AT)
    rows, columns = sides
    side = max(round(math.sqrt(covered * rows * columns)), 1)
    if norm is Norm.L2 and min(rows, columns) >= _SMALL:
        side = max(side + 1 - side % 2, 3)
    if side <= min(rows, columns):
        return side, side
    height = min(side, rows)
    if height < side:
        return height, min(max(round(covered * rows * columns / height), 1), columns)
    return min(max(round(covered * rows), 1), rows), columns


def _stripes(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A sign for each column of each channel."""
    signs = torch.randint(0, 2, (shape[0], 1, shape[2]), generator=generator) * 2 - 1
    return signs.float().expand(*shape)


def _square(current: Tensor, x: Tensor, eps: float, window: tuple[int, int], numbers: Tensor) -> Tensor:
    """Set one square of each input to a sign for each channel."""
    top, left = _places(x, window, numbers[:, :2])
    inside = _inside(x, top, left, window)
    sign = torch.where(numbers[:, 5:] < 0.5, -eps, eps)[:, :, None, None]
    return torch.where(inside, x + sign, current)


def _bumps(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A grid of bumps of random signs, about five a side, of l2 size 1."""
    channels, rows, columns = shape
    height, width = max(rows // 5, 1), max(columns // 5, 1)
    whole = torch.zeros(channels, rows, columns)
    for top in range((rows % height) // 2, rows - height + 1, height):
        for left in range((columns % width) // 2, columns - width + 1, width):
            turn = float(torch.rand((), generator=generator))
            bump = _pair(height, width, turned=turn < 0.5)
            sign = torch.randint(0, 2, (channels, 1, 1), generator=generator) * 2 - 1
            whole[:, top : top + height, left : left + width] += sign * bump
    whole /= whole.norm().clamp_min(_TINY)
    return whole


def _mass(current: Tensor, x: Tensor, eps: float, window: tuple[int, int], numbers: Tensor) -> Tensor:
    """Move the mass of one window of each input into another one, with the part of the budget that is not in use."""
    delta = current - x
    channels = delta.shape[1]
    one = _inside(x, *_places(x, window, numbers[:, :2]), window)
    top, left = _places(x, window, numbers[:, 2:4])
    other = _inside(x, top, left, window)
    unused = (eps**2 - size(delta, Norm.L2).square()).clamp_min(0)
    # the second window gives its mass to the first; where they overlap, nothing is counted twice
    both = (delta.square() * (one | other)).sum((2, 3))
    budget = (both + unused[:, None] / channels).sqrt()
    held = delta * other
    held = held / held.flatten(2).norm(dim=2).clamp_min(_TINY)[..., None, None]
    upright, turned = (_placed(x, top, left, _pair(*window, turned=turn)) for turn in (False, True))
    pair = torch.where((numbers[:, 4] < 0.5)[:, None, None, None], upright, turned)
    sign = torch.where(numbers[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]
    new = sign * pair + held
    # in a window of one coordinate the two may cancel, and the new one stands alone
    cancelled = new.flatten(2).norm(dim=2) < _CANCELLED
    new = torch.where(cancelled[..., None, None], sign * pair, new)
    new = new / new.flatten(2).norm(dim=2).clamp_min(_TINY)[..., None, None] * budget[..., None, None]
    delta = torch.where(one & ~other, 0, delta)
    return x + torch.where(other, new, delta)


def _places(x: Tensor, window: tuple[int, int], numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The first row and column of a window, uniform among those where it fits."""
    rows, columns = x.shape[2] - window[0] + 1, x.shape[3] - window[1] + 1
    top = (numbers[:, 0] * rows).long().clamp(max=rows - 1)
    left = (numbers[:, 1] * columns).long().clamp(max=columns - 1)
    return top, left


def _inside(x: Tensor, top: Tensor, left: Tensor, window: tuple[int, int]) -> Tensor:
    row = torch.arange(x.shape[2], device=x.device) - top[:, None]
    column = torch.arange(x.shape[3], device=x.device) - left[:, None]
    along = (row >= 0) & (row < window[0])
    across = (column >= 0) & (column < window[1])
    return (along[:, :, None] & across[:, None, :])[:, None]


def _placed(x: Tensor, top: Tensor, left: Tensor, patch: Tensor) -> Tensor:
    """Put a patch into an empty input, at its own place for each."""
    whole = torch.zeros(len(x), 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    number = torch.arange(len(x), device=x.device)[:, None, None]
    row = top[:, None, None] + torch.arange(patch.shape[0], device=x.device)[None, :, None]
    column = left[:, None, None] + torch.arange(patch.shape[1], device=x.device)[None, None, :]
    whole[number, 0, row, column] = patch.to(x)
    return whole


def _pair(height: int, width: int, *, turned: bool) -> Tensor:
    """Two bumps of opposite signs side by side, of l2 size 1 together; one bump where there is no room for two."""
    along_rows = height > 1 and (width == 1 or not turned)
    if max(height, width) == 1:
        return torch.ones(1, 1)
    if along_rows:
        half = height // 2
        pair = torch.cat([_bump(half, width), -_bump(height - half, width)], 0)
    else:
        half = width // 2
        pair = torch.cat([_bump(height, half), -_bump(height, width - half)], 1)
    pair /= pair.norm().clamp_min(_TINY)
    return pair


def _bump(height: int, width: int) -> Tensor:
    """A pyramid: at m places from the middle, the sum of 1 / (j + 1)^2 over j from m on; of l2 size 1."""
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    apart = torch.maximum(down[:, None], across[None, :])
    terms = 1 / (torch.arange(max(height, width) // 2 + 1) + 1.0).square()
    sums = terms.flip(0).cumsum(0).flip(0)
    bump = sums[apart]
    bump /= bump.norm()
    return bump
