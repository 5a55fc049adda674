"""Layers that prune: activations are drawn, and those that were not are set to zero."""

import math
from typing import Final, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from calipers.errors import UsageError

__all__ = ["LaterPruning", "Pruning", "drawn_at_least_once"]

_SIGMAS: Final = 5.0


def drawn_at_least_once(
    probabilities: Float[Tensor, "batch units"], draws: int
) -> Bool[Tensor, "batch units"]:
    """Say which units are among some draws with replacement, each row by draws of its own.

    Most of the draws are made all at once: if their number is Poisson, those of different units are independent. The
    rest up to ``draws`` follows one by one, so that the law is the multinomial's exactly.

    Args:
        probabilities: of each unit, rows that sum to 1; a row of zeros draws nothing.
        draws: the draws of each row, at least 1; from torch's global generator.

    Returns:
        Whether each unit was drawn.
    """
    rate = max(draws - _SIGMAS * math.sqrt(draws), 0.0)
    counts = torch.poisson(probabilities * rate)
    total = counts.sum(1)  # of whole numbers, exact
    over = total > draws
    counts[over] = 0
    left = torch.where(over, float(draws), draws - total)
    able = probabilities.sum(1) > 0
    most = int(left[able].max()) if bool(able.any()) else 0
    if most:
        odds = probabilities if bool(able.all()) else torch.where(able[:, None], probabilities, 1.0)
        more = torch.multinomial(odds, most, replacement=True)
        counted = torch.arange(most, device=left.device) < torch.where(able, left, 0.0)[:, None]
        counts.scatter_add_(1, more, counted.to(counts.dtype))
    return counts > 0


@final
class Pruning(nn.Module):
    """Keeps the activations that are drawn, and divides them by the probability that they are.

    The gradient of one draw takes what was drawn for given and differentiates the division.

    Reference: Dhillon et al. 2018, arXiv:1803.01442, Algorithm 1.

    Args:
        fraction: draws as a share of the number of activations; 1.0 is the paper's SAP-100.
    """

    def __init__(self, fraction: float = 1.0) -> None:
        super().__init__()
        if not 0 < fraction < math.inf:
            raise UsageError(f"fraction is {fraction}: give a share above 0, such as 1.0")
        self.fraction = fraction

    def forward(self, h: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        """Prune.

        Args:
            h: activations.

        Returns:
            Activations with the mean h.
        """
        flat = h.flatten(1)
        draws = max(1, round(self.fraction * flat.shape[1]))
        size = flat.abs()
        total = size.sum(1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
        kept = drawn_at_least_once((size / total).detach(), draws)
        place = kept.flatten().nonzero()[:, 0]
        chosen = flat.flatten()[place]
        # the largest number below one, so that neither the logarithm nor its slope is infinite
        p = chosen.abs() / total[place // flat.shape[1], 0]
        p = p.clamp_max(1 - torch.finfo(h.dtype).eps / 2)
        chance = -torch.expm1(draws * torch.log1p(-p))
        return torch.zeros_like(h).flatten().index_put((place,), chosen / chance).view_as(h)


@final
class LaterPruning(nn.Module):
    """What Athalye, Carlini and Wagner 2018 attacked: pruning of the outputs of convolutions, before the ReLU.

    With N = 2 w h c, a unit is kept with probability :math:`1 - e^{-N p}` and divided by that plus 1e-8. Kept for the
    erratum's comparison.

    Reference: their released code; the erratum, arXiv:2010.00071.
    """

    def forward(self, h: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        """Prune.

        Args:
            h: outputs of a convolution.

        Returns:
            The same with the mean h, nearly.
        """
        flat = h.flatten(1)
        p = flat.abs() / flat.abs().sum(1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
        chance = -torch.expm1(-2 * flat.shape[1] * p)
        kept = torch.rand_like(chance) < chance
        return torch.where(kept, flat / (chance + 1e-8), 0.0).view_as(h)
