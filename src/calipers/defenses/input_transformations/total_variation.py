"""Total variation minimization: an image rebuilt from some of its pixels, as flat as they allow."""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calipers.defenses.input_transformations.outside import outside
from calipers.errors import UsageError

__all__ = ["TotalVariation", "energy", "minimize"]


@final
class TotalVariation(nn.Module):
    r"""Keeps a random part of the pixels, and gives the image of least total variation that is close to them.

    .. math:: \min_z\; \|m \odot (z - x)\|_2^2 + \lambda \sum_i \|(\nabla z)_i\|_2

    with a fresh m for each image in each call, a pixel kept by the toss of a coin.

    Reference: Guo et al. 2018 (arXiv:1711.00117), section 4; pixels kept with probability 0.5, lambda = 0.03, by the
    split Bregman method. Run outside autograd, as the authors' solver is.

    Differs from the paper: the fidelity is squared and the variation isotropic a pixel, as in the solver that the
    authors used.

    Args:
        keep: the probability that a pixel is kept.
        weight: lambda, of images in [0, 1].
        rounds: of the split Bregman method.

    Raises:
        UsageError: if an argument means nothing.
    """

    def __init__(self, *, keep: float = 0.5, weight: float = 0.03, rounds: int = 40) -> None:
        super().__init__()
        if not 0 < keep <= 1 or weight <= 0 or rounds < 1:
            raise UsageError(
                f"keep is {keep}, weight {weight} and rounds {rounds}: give a probability above 0, a positive weight "
                "and at least 1 round"
            )
        self.keep, self.weight, self.rounds = keep, weight, rounds

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Rebuild.

        Args:
            x: images in [0, 1].

        Returns:
            Images of little total variation, in [0, 1]; their gradient is 0.
        """
        kept = torch.rand((len(x), 1, *x.shape[2:]), device=x.device) < self.keep
        return outside(lambda image: minimize(image, kept, weight=self.weight, rounds=self.rounds), x)


def minimize(
    x: Float[Tensor, "batch channels height width"],
    kept: Bool[Tensor, "batch 1 height width"],
    *,
    weight: float,
    rounds: int,
    penalty: float = 10.0,
) -> Float[Tensor, "batch channels height width"]:
    r"""Minimize the energy of all images of a batch at once, by the split Bregman method.

    With d for the gradient of z and b for what Bregman's iteration adds, a round solves for z by one sweep of
    Gauss-Seidel, red pixels and then black ones, shrinks :math:`\nabla z + b` by 1/penalty, and updates b.

    Reference: Goldstein and Osher 2009, The split Bregman method for L1-regularized problems, section 4.2.

    Args:
        x: images in [0, 1].
        kept: which pixels count.
        weight: of the total variation.
        rounds: how many.
        penalty: how strongly d is tied to the gradient; it decides the speed and not the minimum.

    Returns:
        Images in [0, 1], of the precision of ``x``.
    """
    fidelity = kept * (2 / weight)
    data = fidelity * x
    red = _checkerboard(x)
    total = fidelity + penalty * _neighbours(torch.ones_like(x))
    share, pull = penalty / total, data / total
    # unknown pixels begin at the mean of the known ones
    mean = (x * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp_min(1)
    z = torch.where(kept, x, mean)
    split = x.new_zeros((2, *x.shape))
    bregman = torch.zeros_like(split)
    for _ in range(rounds):
        source = share * _adjoint(split - bregman) + pull
        for colour in (red, ~red):
            z = torch.where(colour, share * _neighbours(z) + source, z)
        slope = _gradient(z) + bregman
        length = slope.square().sum(0).sqrt().clamp_min(1e-12)
        split = slope * (1 - 1 / (penalty * length)).clamp_min(0)
        bregman = slope - split
    return z.clamp(0, 1)


def energy(
    z: Float[Tensor, "batch channels height width"],
    x: Float[Tensor, "batch channels height width"],
    kept: Bool[Tensor, "batch 1 height width"],
    *,
    weight: float,
) -> Float[Tensor, " batch"]:
    """Compute what is minimized.

    Args:
        z: rebuilt images.
        x: the images that they were rebuilt from.
        kept: which pixels count.
        weight: of the total variation.

    Returns:
        The energy of each image.
    """
    variation = _gradient(z).square().sum(0).sqrt().flatten(1).sum(1)
    return (kept * (z - x)).square().flatten(1).sum(1) + weight * variation


def _gradient(z: Tensor) -> Tensor:
    """Give differences to the next row and column, 0 at the last."""
    slope = z.new_zeros((2, *z.shape))
    slope[0, ..., :-1, :] = z[..., 1:, :] - z[..., :-1, :]
    slope[1, ..., :, :-1] = z[..., :, 1:] - z[..., :, :-1]
    return slope


def _adjoint(slope: Tensor) -> Tensor:
    """Give the adjoint of the gradient: minus the divergence."""
    down, right = slope[0], slope[1]
    found = -(down + right)
    found[..., 1:, :] += down[..., :-1, :]
    found[..., :, 1:] += right[..., :, :-1]
    return found


def _neighbours(z: Tensor) -> Tensor:
    """Sum the neighbours of each pixel, of which there are 2 to 4."""
    found = torch.zeros_like(z)
    found[..., 1:, :] += z[..., :-1, :]
    found[..., :-1, :] += z[..., 1:, :]
    found[..., :, 1:] += z[..., :, :-1]
    found[..., :, :-1] += z[..., :, 1:]
    return found


def _checkerboard(x: Tensor) -> Tensor:
    rows, columns = x.shape[-2:]
    sums = torch.arange(rows, device=x.device)[:, None] + torch.arange(columns, device=x.device)
    return sums % 2 == 0
