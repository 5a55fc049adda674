"""Projection onto the range of a generator: gradient descent on the latent point, from several random starts."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.errors import UsageError

__all__ = ["Projection", "descend"]

_LATE, _SLOWER = 0.8, 0.1


def descend(
    generator: nn.Module,
    x: Float[Tensor, "rows 1 h w"],
    z: Float[Tensor, "rows latent"],
    *,
    steps: int,
    rate: float,
    momentum: float,
    unrolled: bool = False,
) -> Float[Tensor, "rows latent"]:
    r"""Minimize the mean square error of a generator's images by gradient descent with momentum.

    .. math:: v_{k+1} = m\, v_k + \nabla_z \tfrac{1}{d} \|G(z_k) - x\|_2^2 , \qquad z_{k+1} = z_k - \eta\, v_{k+1}

    The rate is ten times smaller in the last fifth of the steps.

    Reference: Samangouei et al. 2018, arXiv:1805.06605, equation 2, and the authors' configuration for the rest.

    Args:
        generator: from latent points to images.
        x: images.
        z: where the descent of each begins.
        steps: gradients taken.
        rate: of the descent.
        momentum: share of the last step that is kept.
        unrolled: whether the result is to be differentiable in x, through all steps.

    Returns:
        Latent points, outside any graph unless ``unrolled``.
    """
    velocity = torch.zeros_like(z)
    with torch.enable_grad():
        for step in range(steps):
            z = z if unrolled and z.requires_grad else z.detach().requires_grad_(True)
            error = (generator(z) - x).square().flatten(1).mean(1).sum()
            (slope,) = torch.autograd.grad(error, z, create_graph=unrolled)
            velocity = momentum * velocity + slope
            z = z - (rate if step < _LATE * steps else _SLOWER * rate) * velocity
    return z if unrolled else z.detach()


@final
class Projection(nn.Module):
    """Replaces each image by the nearest output of a generator that the descents from several random starts find.

    The starts come from torch's global generator, each image's own. The descents are run outside of any graph, so that
    the result has no gradient; ``unrolled``, where one is asked for, all steps of the best descent are differentiated,
    as the authors' white-box attacks do.

    Reference: Samangouei et al. 2018, arXiv:1805.06605, section 3 and figure 2.

    Args:
        generator: from latent points to images in [0, 1].
        latent: coordinates of a latent point.
        steps: of each descent (the paper's L).
        restarts: descents an image (the paper's R).
        rate: of the descent.
        momentum: of the descent.
        spread: standard deviation of a start's coordinates.
        unrolled: whether the result may be differentiated through all steps.

    Raises:
        UsageError: if there is no step or no start.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        latent: int,
        steps: int = 200,
        restarts: int = 10,
        rate: float = 10.0,
        momentum: float = 0.7,
        spread: float = 1.0,
        unrolled: bool = False,
    ) -> None:
        super().__init__()
        if steps < 1 or restarts < 1:
            raise UsageError(f"steps is {steps} and restarts {restarts}: give at least 1 of each")
        self.generator = generator
        self.latent, self.steps, self.restarts = latent, steps, restarts
        self.rate, self.momentum, self.spread = rate, momentum, spread
        self.unrolled = unrolled

    def forward(self, x: Float[Tensor, "batch 1 h w"]) -> Float[Tensor, "batch 1 h w"]:
        """Project images.

        Args:
            x: images in [0, 1].

        Returns:
            Images of the generator.
        """
        starts = self.spread * torch.randn((len(x), self.restarts, self.latent), device=x.device)
        start, best = self.best(x.detach(), starts)
        if self.unrolled and torch.is_grad_enabled() and x.requires_grad:
            best = self._descend(x, start, unrolled=True)
        projected: Tensor = self.generator(best)
        return projected

    def best(
        self, x: Float[Tensor, "batch 1 h w"], starts: Float[Tensor, "batch restarts latent"]
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Descend from all starts and keep what came nearest.

        Args:
            x: images.
            starts: latent points.

        Returns:
            The start of the best descent of each image, and where it ended.
        """
        restarts = starts.shape[1]
        with torch.no_grad():
            ends = self._descend(x.repeat_interleave(restarts, 0), starts.flatten(0, 1))
            made = self.generator(ends).view(len(x), restarts, -1)
            chosen = (made - x.flatten(1)[:, None]).square().sum(2).argmin(1)
        rows = torch.arange(len(x), device=x.device)
        return starts[rows, chosen], ends.view_as(starts)[rows, chosen]

    def _descend(self, x: Tensor, z: Tensor, *, unrolled: bool = False) -> Tensor:
        return descend(
            self.generator,
            x,
            z,
            steps=self.steps,
            rate=self.rate,
            momentum=self.momentum,
            unrolled=unrolled,
        )
