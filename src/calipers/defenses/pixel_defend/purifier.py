"""PixelDefend's purifier: pixel by pixel and colour by colour, the likeliest level near it given all before it."""

import itertools
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from calipers.defenses.pixel_defend.pixel_cnn import LEVELS, CausalConv, PixelCNN, ResidualBlock, log_masses

__all__ = ["Purifier", "purify", "purify_by_full_passes"]

_ROWS: Final = 100


@final
class Purifier(nn.Module):
    """Rounds images to 256 levels and moves them to where a density is high, each pixel by ``eps_defend`` at most.

    To autograd the result is the rounded image and a constant, so that its gradient is zero, as that of the true
    function is wherever there is one. The density stays in float64, whatever its network is cast to: see
    :func:`purify`.

    Reference: Song et al. 2018, arXiv:1710.10766, algorithm 1.

    Args:
        density: the distribution of each pixel given those before it.
        eps_defend: the largest change of a pixel, in levels of 1/255.
    """

    def __init__(self, density: PixelCNN, *, eps_defend: int = 32) -> None:
        super().__init__()
        self.density = density.double()
        self.eps_defend = eps_defend

    def forward(self, x: Float[Tensor, "batch colours h w"]) -> Float[Tensor, "batch colours h w"]:
        """Purify images.

        Args:
            x: images in [0, 1].

        Returns:
            Images in [0, 1], of 256 levels.
        """
        rounded = torch.round((LEVELS - 1) * x)
        levels = rounded.detach().long()
        change = purify(self.density, levels, eps_defend=self.eps_defend) - levels
        return (rounded + change) / (LEVELS - 1)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> "Purifier":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.density.double()
        return self


def purify(
    density: PixelCNN, levels: Int[Tensor, "batch colours h w"], *, eps_defend: int
) -> Int[Tensor, "batch colours h w"]:
    r"""Purify images greedily, computing each activation of the network once, from its causal neighbourhood alone.

    An activation at a pixel depends on the layer before at the pixel itself and before it, and what lies before it is
    final. So the activations of all layers are kept, and a step computes those of the pixels whose turn it is: in place
    of the whole network for every pixel, one gather and one small matrix product a layer. As the widest kernel reaches
    r pixels to the right in the rows above, the pixels (i, j) with the same :math:`(r + 1)\,i + j` do not depend on
    each other and are taken together: 136 steps in place of 784 for 28 x 28 with r = 3. The colours of a pixel are
    chosen one after the other within its step.

    All is computed in float64: where two levels are nearly as likely, the rounding of float32 would decide, and an
    image would be purified differently in another batch.

    Args:
        density: the distribution of each pixel given those before it.
        levels: images as whole numbers from 0 to 255.
        eps_defend: the largest change of a pixel.

    Returns:
        The purified images, the same that :func:`purify_by_full_passes` gives; of equally likely levels the lowest.
    """
    with torch.no_grad():
        different, place = torch.unique(levels, dim=0, return_inverse=True)
        parts = [_purify_rows(density, rows, eps_defend) for rows in torch.split(different, _ROWS)]
        return torch.cat([levels[:0], *parts])[place] if parts else levels


def purify_by_full_passes(
    density: PixelCNN, levels: Int[Tensor, "batch colours h w"], *, eps_defend: int
) -> Int[Tensor, "batch colours h w"]:
    """Purify images by one pass through the whole network for every colour of every pixel: the algorithm as written.

    Args:
        density: the distribution of each pixel given those before it, in float64 where ties are to fall alike.
        levels: images as whole numbers from 0 to 255.
        eps_defend: the largest change of a pixel.

    Returns:
        The purified images.
    """
    number = next(density.parameters()).dtype
    found = levels.clone()
    colours, height, width = levels.shape[1:]
    with torch.no_grad():
        for i, j, c in itertools.product(range(height), range(width), range(colours)):
            parameters = density(found.to(number) / (LEVELS - 1))[:, :, c, i, j]
            found[:, c, i, j] = _likeliest(parameters, levels[:, c, i, j], eps_defend)
    return found


def _likeliest(parameters: Tensor, level: Tensor, eps_defend: int) -> Tensor:
    lowest = level - eps_defend
    return lowest + log_masses(parameters, lowest, count=2 * eps_defend + 1).argmax(1)


class _Dense(NamedTuple):
    """A convolution as a matrix over the taps that its mask leaves, and what it adds."""

    taps: Tensor
    matrix: Tensor
    bias: Tensor


class _Block(NamedTuple):
    """The three convolutions of a residual block."""

    narrow: _Dense
    causal: _Dense
    widen: _Dense


def _purify_rows(density: PixelCNN, levels: Tensor, eps_defend: int) -> Tensor:
    batch, colours, height, width = levels.shape
    first = _causal(density.first)
    blocks = [_block(block) for block in density.blocks if isinstance(block, ResidualBlock)]
    hidden, last = _pointwise(density.hidden), _pointwise(density.last)
    # a plane of kept activations has the padding of its convolution around it; a place is a row of it
    size = (height, width, density.reach, batch)
    pixels = _Plane(*size, channels=colours, device=levels.device)
    kept = [_Plane(*size, channels=len(block.narrow.bias), device=levels.device) for block in blocks]
    given = levels.permute(2, 3, 0, 1).contiguous()
    found = given.clone()
    for i, j in _turns(height, width, density.reach + 1, levels.device):
        features = _apply(first, pixels.taps(i, j, first.taps))
        for block, plane in zip(blocks, kept, strict=True):
            inner = _apply(block.narrow, functional.relu(features))
            plane.keep(i, j, functional.relu(inner))
            inner = _apply(block.causal, plane.taps(i, j, block.causal.taps))
            features = features + _apply(block.widen, functional.relu(inner))
        raw = _apply(last, functional.relu(_apply(hidden, functional.relu(features))))
        level = given[i, j].flatten(0, 1)
        for c in range(colours):
            parameters = density.mixtures_of(raw, _place(level), count=c + 1)[c]
            level[:, c] = _likeliest(parameters, level[:, c], eps_defend)
        found[i, j] = level.view(-1, batch, colours)
        pixels.keep(i, j, _place(level))
    return found.permute(2, 3, 0, 1)


class _Plane:
    """The kept activations of one layer for a batch, with zeros around them."""

    def __init__(
        self,
        height: int,
        width: int,
        reach: int,
        batch: int,
        *,
        channels: int,
        device: torch.device,
    ) -> None:
        self.reach, self.across, self.batch, self.channels = reach, width + 2 * reach, batch, channels
        shape = ((height + reach) * self.across, batch, channels)
        self.values = torch.zeros(shape, dtype=torch.float64, device=device)

    def keep(self, i: Tensor, j: Tensor, values: Tensor) -> None:
        """Put the activations of pixels in their places."""
        self.values[self._place(i, j)] = values.view(len(i), self.batch, self.channels)

    def taps(self, i: Tensor, j: Tensor, taps: Tensor) -> Tensor:
        """Gather what a kernel sees from each pixel: (pixels * batch, taps * channels)."""
        places = self._place(i[:, None] + taps[0], j[:, None] + taps[1])
        seen = self.values.index_select(0, places.flatten())
        seen = seen.view(len(i), taps.shape[1], self.batch, self.channels)
        return seen.transpose(1, 2).reshape(len(i) * self.batch, -1)

    def _place(self, i: Tensor, j: Tensor) -> Tensor:
        return (i + self.reach) * self.across + j + self.reach


def _place(level: Tensor) -> Tensor:
    return 2 * level.double() / (LEVELS - 1) - 1


def _turns(height: int, width: int, slope: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the rows and columns of the pixels whose turn it is, step by step."""
    rows, columns = torch.arange(height), torch.arange(width)
    turn = slope * rows[:, None] + columns
    for step in range(int(turn.max()) + 1):
        i, j = (turn == step).nonzero(as_tuple=True)
        if len(i):
            yield i.to(device), j.to(device)


def _causal(layer: CausalConv) -> _Dense:
    i, j = layer.mask.nonzero(as_tuple=True)
    matrix = layer.weight.double()[:, :, i, j].permute(2, 1, 0).flatten(0, 1)
    return _Dense(torch.stack([i, j]) - layer.reach, matrix, layer.bias.double())


def _block(block: ResidualBlock) -> _Block:
    return _Block(_pointwise(block.narrow), _causal(block.causal), _pointwise(block.widen))


def _pointwise(layer: nn.Conv2d) -> _Dense:
    assert layer.bias is not None, "every layer of a PixelCNN has one"
    itself = torch.zeros(2, 1, dtype=torch.int64, device=layer.weight.device)
    return _Dense(itself, layer.weight.double()[:, :, 0, 0].T, layer.bias.double())


def _apply(layer: _Dense, rows: Tensor) -> Tensor:
    return torch.addmm(layer.bias, rows, layer.matrix)
