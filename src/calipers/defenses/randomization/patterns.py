"""The patterns of random resizing and padding: sizes and places, and an image put on a square by one of them."""

from dataclasses import dataclass
from functools import partial
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional

from calipers.errors import UsageError
from calipers.gradients.transformations import Member, Transformations

__all__ = ["PATTERNS", "Pattern", "ResizeAndPad", "corners_of", "patterns_for", "resize_and_pad"]

Pattern = tuple[int, int, int]
"""Size, rows above and columns to the left of the image."""


def resize_and_pad(
    x: Float[Tensor, "batch channels height width"],
    sizes: Int[Tensor, " batch"],
    tops: Int[Tensor, " batch"],
    lefts: Int[Tensor, " batch"],
    *,
    side: int,
    fill: float,
) -> Float[Tensor, "batch channels side side"]:
    """Resize each square image to a size of its own, by nearest neighbours, and put it on a square.

    Args:
        x: images.
        sizes: the side that each is resized to.
        tops: rows above each.
        lefts: columns to its left.
        side: of the square.
        fill: the value around the image.

    Returns:
        The squares, differentiable in ``x``.
    """
    length = x.shape[-1]
    padded = functional.pad(x, (0, 1, 0, 1), value=fill)  # the last row and column are what lies outside

    def source(starts: Tensor) -> Tensor:
        place = torch.arange(side, device=x.device) - starts[:, None]
        inside = (place >= 0) & (place < sizes[:, None])
        return torch.where(inside, place * length // sizes[:, None], length)

    rows, columns = source(tops), source(lefts)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    found = padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]]
    return found.movedim(-1, 1).contiguous()


@final
@dataclass(frozen=True)
class ResizeAndPad(Transformations):
    """The distribution of patterns: a size uniformly, then a place uniformly among those of that size.

    Reference: Xie et al. 2018, arXiv:1711.01991, section 3.

    Differs from the paper: sizes 28 to 30 on 31 where the paper has 299 to 330 on 331, of which there are 12 528.

    Args:
        smallest: the least size.
        largest: the largest one, at most ``side``.
        side: of the square.
        fill: the value around the image: grey, in images of [0, 1] what 0 is in those of [-1, 1].
        only: fixed patterns (size, top, left), all equally likely, in place of the distribution.

    Raises:
        UsageError: if sizes or patterns do not fit.
    """

    smallest: int = 28
    largest: int = 30
    side: int = 31
    fill: float = 0.5
    only: tuple[Pattern, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest <= self.side:
            raise UsageError(
                f"sizes are {self.smallest} to {self.largest} on a square of {self.side}: give them in rising order"
            )
        for size, top, left in self.only:
            if not (0 <= top <= self.side - size and 0 <= left <= self.side - size):
                raise UsageError(
                    f"the pattern {(size, top, left)} leaves the square of side {self.side}: size, top, left"
                )

    def patterns(self) -> tuple[tuple[Pattern, float], ...]:
        """List the patterns with their probabilities.

        Returns:
            Pairs of a pattern and its probability; they sum to 1.
        """
        if self.only:
            return tuple((pattern, 1 / len(self.only)) for pattern in self.only)
        sizes = range(self.smallest, self.largest + 1)
        return tuple(
            ((size, top, left), 1 / (len(sizes) * (self.side - size + 1) ** 2))
            for size in sizes
            for top in range(self.side - size + 1)
            for left in range(self.side - size + 1)
        )

    def members(self) -> tuple[Member, ...]:
        """List the transformations with their probabilities."""
        return tuple(Member(partial(self._fixed, pattern), chance) for pattern, chance in self.patterns())

    def __call__(
        self, copies: Float[Tensor, "copies *dims"], generator: Generator | None
    ) -> Float[Tensor, "copies *rest"]:
        """Resize and pad each row by a draw of its own.

        Args:
            copies: images.
            generator: the source of the draws; torch's global one if None.

        Returns:
            Images of ``side``.
        """
        known = self.patterns()
        table = torch.tensor([pattern for pattern, _ in known], device=copies.device)
        chances = torch.tensor([chance for _, chance in known], device=copies.device)
        drawn = torch.multinomial(chances, max(len(copies), 1), replacement=True, generator=generator)
        sizes, tops, lefts = table[drawn[: len(copies)]].unbind(1)
        return resize_and_pad(copies, sizes, tops, lefts, side=self.side, fill=self.fill)

    def describe(self) -> str:
        """Write the name of the distribution, if it is the defense's own."""
        return f"{__package__}:PATTERNS" if self == PATTERNS else super().describe()

    def _fixed(self, pattern: Pattern, x: Tensor) -> Tensor:
        sizes, tops, lefts = torch.tensor(pattern, device=x.device).repeat(len(x), 1).unbind(1)
        return resize_and_pad(x, sizes, tops, lefts, side=self.side, fill=self.fill)


PATTERNS: Final = ResizeAndPad()
"""The 29 patterns of the form that ships, on images of [0, 1]."""


def patterns_for(length: int) -> ResizeAndPad:
    """Make the patterns for images of a size: on a square of 9/8 of it, every size from the image's on.

    Args:
        length: the side of an image, at least 8.

    Returns:
        The patterns: :data:`PATTERNS` for 28, and 54 of sizes 32 to 35 on 36 for 32. The square has 331/299 of the side
        in the paper.
    """
    side = length * 9 // 8
    return ResizeAndPad(length, side - 1, side)


def corners_of(patterns: ResizeAndPad) -> tuple[Pattern, ...]:
    """List patterns at the edges of a distribution, as the paper's ensemble of them.

    Args:
        patterns: the distribution.

    Returns:
        Each size in the four corners, and one row and column from the first.
    """
    return tuple(
        dict.fromkeys(
            (size, top, left)
            for size in range(patterns.smallest, patterns.largest + 1)
            for rest in (patterns.side - size,)
            for top, left in ((0, 0), (0, rest), (rest, 0), (rest, rest), (1, 1))
        )
    )
