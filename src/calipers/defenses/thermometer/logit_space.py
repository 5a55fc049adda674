r"""LS-PGA: projected gradient ascent in a space of logits over the buckets that each pixel can reach.

Each pixel has one logit for each bucket within eps of it. Their softmax says how the pixel is spread over buckets, the
sums of that from above make a soft code, and the sharpness of the softmax grows with each step. The end is the bucket
of the largest logit.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from calipers.attacks.base import GradientAttack
from calipers.attacks.view import View
from calipers.defenses.thermometer.encoding import LEVELS, bucket, lower_edge
from calipers.errors import UsageError
from calipers.randomness import Draws
from calipers.threat.objectives import cross_entropy
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["LogitSpacePGA", "ascend", "code_of", "image_of", "reachable", "soften"]

_COLD = -1e6


@final
@dataclass(frozen=True)
class LogitSpacePGA(GradientAttack):
    r"""Ascends the cross-entropy over logits u of buckets, for networks behind a thermometer encoder.

    .. math:: u \leftarrow u + \xi \, \mathrm{sign}\, \nabla_u L(f(\tau(\mathrm{softmax}(u / T))), y),
              \qquad T \leftarrow T / \delta

    with :math:`\tau` the sum of the shares of bucket k and all above it. The target must take codes as well as images,
    as :class:`~calipers.defenses.thermometer.encoding.ThermometerEncoder` does.

    Reference: Buckman et al. 2018 (openreview:S18Su--CW), Algorithm 3.

    Differs from the paper: the buckets that can be reached are computed and not sampled, and what is found is an image,
    in the middle of what the ball leaves of its buckets; a pixel whose bucket stays stays as it is.

    Args:
        steps: gradients taken.
        step_size: of the logits, :math:`\xi`; the authors' experiments have 0.01, which moves logits that begin as
            normal draws of deviation 1 by little. Steps of 1 make it a strong attack.
        anneal: by what the sharpness grows with each step, :math:`\delta`.
        sign: whether a step is the sign of the gradient, as in the paper, or the gradient itself, as in the code that
            came with it, which is weaker.
        levels: buckets of the encoder.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF,)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    steps: int = 7
    step_size: float = 0.01
    anneal: float = 1.2
    sign: bool = True
    levels: int = LEVELS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.levels < 2:
            raise UsageError(f"steps is {self.steps} and levels {self.levels}: give at least 1 and 2")
        for word, value in (("step_size", self.step_size), ("anneal", self.anneal)):
            if not 0 < value < float("inf"):
                raise UsageError(f"{word} is {value}: give a positive number")

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        eps = threat.eps or 0.0
        reach = reachable(x, eps, levels=self.levels)
        shape = reach.shape[1:]
        drawn = [torch.randn(shape, generator=draws[row].generator(0)) for row in range(len(x))]
        logits = torch.stack(drawn).to(x)
        for step in range(self.steps):
            leaf = logits.requires_grad_(True)
            with torch.enable_grad():
                code = soften(leaf, reach, sharpness=self.anneal**step)
            found = view.estimate(cross_entropy, code.detach(), y, threat.goal, draws.fold(step))
            (gradient,) = torch.autograd.grad(code, leaf, found.gradient)
            move = gradient.sign() if self.sign else gradient
            logits = logits.detach() + self.step_size * move
        return image_of(logits, reach, x, eps)


def ascend(
    net: nn.Module,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    eps: float,
    noise: torch.Generator,
    *,
    steps: int,
    step_size: float = 0.01,
    anneal: float = 1.2,
    levels: int = LEVELS,
) -> Float[Tensor, "batch channels height width levels"]:
    """Run LS-PGA on a network in training, with the sign of the gradient.

    Args:
        net: the network, which takes codes.
        x: images.
        y: their classes.
        eps: size of the linf ball, in input units.
        noise: where the first logits come from.
        steps: gradients taken.
        step_size: of the logits.
        anneal: by what the sharpness grows with each step.
        levels: buckets of the encoder.

    Returns:
        The logits that it ends with, for :func:`code_of` or :func:`image_of`.
    """
    reach = reachable(x, eps, levels=levels)
    logits = torch.randn(reach.shape, generator=noise, device=x.device)
    for step in range(steps):
        leaf = logits.requires_grad_(True)
        scores = net(soften(leaf, reach, sharpness=anneal**step)).float()
        loss = functional.cross_entropy(scores, y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        logits = logits.detach() + step_size * gradient.sign()
    return logits


def reachable(
    x: Float[Tensor, "batch channels height width"], eps: float, *, levels: int = LEVELS
) -> Bool[Tensor, "batch channels height width levels"]:
    """Say which buckets each pixel can be moved into.

    Args:
        x: images.
        eps: how far a pixel may move, in input units.
        levels: the number of buckets.

    Returns:
        One answer a bucket.
    """
    low, high = (bucket(x + move, levels=levels)[..., None] for move in (-eps, eps))
    place = torch.arange(levels, device=x.device, dtype=x.dtype)
    return (place >= low) & (place <= high)


def soften(
    logits: Float[Tensor, "batch channels height width levels"],
    reach: Bool[Tensor, "batch channels height width levels"],
    *,
    sharpness: float,
) -> Float[Tensor, "batch codes height width"]:
    """Make soft codes of logits: the shares of the softmax, each summed with those of all buckets above.

    Args:
        logits: one a bucket.
        reach: the buckets that count.
        sharpness: what the logits are multiplied by: 1/T.

    Returns:
        Codes between 0 and 1, with channel 0 at 1.
    """
    shares = (sharpness * logits).masked_fill(~reach, _COLD).softmax(-1)
    return _from_above(shares)


def code_of(
    logits: Float[Tensor, "batch channels height width levels"],
    reach: Bool[Tensor, "batch channels height width levels"],
) -> Float[Tensor, "batch codes height width"]:
    """Make the codes whose buckets have the largest logits.

    Args:
        logits: one a bucket.
        reach: the buckets that count.

    Returns:
        Codes of 0 and 1.
    """
    return _from_above(functional.one_hot(_largest(logits, reach), logits.shape[-1]).to(logits))


def image_of(
    logits: Float[Tensor, "batch channels height width levels"],
    reach: Bool[Tensor, "batch channels height width levels"],
    x: Float[Tensor, "batch channels height width"],
    eps: float,
) -> Float[Tensor, "batch channels height width"]:
    """Make the images whose buckets have the largest logits.

    Args:
        logits: one a bucket.
        reach: the buckets that count.
        x: clean images.
        eps: how far a pixel may move, in input units.

    Returns:
        Images inside the ball and the box.
    """
    levels = logits.shape[-1]
    chosen = _largest(logits, reach).to(x)
    low = torch.maximum((x - eps).clamp_min(0), lower_edge(chosen, levels=levels))
    high = torch.minimum((x + eps).clamp_max(1), lower_edge(chosen + 1, levels=levels))
    return torch.where(chosen == bucket(x, levels=levels), x, (low + high) / 2)


def _largest(logits: Tensor, reach: Tensor) -> Tensor:
    return logits.masked_fill(~reach, -torch.inf).argmax(-1)


def _from_above(shares: Tensor) -> Tensor:
    """Sum the shares of each bucket and those above it, and lay them as channels."""
    levels = shares.shape[-1]
    above = torch.ones((levels, levels), dtype=shares.dtype, device=shares.device).tril()
    return (shares @ above).movedim(-1, 2).flatten(1, 2)
