"""through_context: a backward for the purifier that follows what a pixel does to the choices made after it."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.nn import functional

from calipers.defenses.parts import load_part
from calipers.defenses.pixel_defend.pixel_cnn import LEVELS, NARROWEST, PixelCNN
from calipers.defenses.pixel_defend.purifier import Purifier
from calipers.defenses.pixel_defend.training import DENSITY

__all__ = ["WINDOW", "carry", "follow_mode", "through_context"]

WINDOW: Final = 32
"""The window of the purifier that is stood in for, in levels of 1/255."""

_TERMS, _SHARE = 8, 0.7
_FLATTEST = 1e-3


def through_context(x: Tensor) -> Tensor:
    r"""Stand in for the purifier of PixelDefend as it ships, with the derivative of its choices through their context.

    A choice that does not lie at an end of its window is a mode of the density given the purified pixels before it, and
    moves when they move. With J the derivative of all modes by all pixels, and D the pixels that are such modes, a
    gradient g at the purified image comes back as

    .. math:: \sum_{k=0}^{8} (0.7\, J^\top D)^k g .

    k = 0 alone is the identity. The share .7 keeps the sum from growing where one wrong choice makes the next; found
    with the number of terms on training images.

    It purifies with the density that ships and a window of 32 levels. Where other weights or another window are
    judged, it is one guess at their derivative among others.

    Args:
        x: images (batch, 1, h, w), in [0, 1].

    Returns:
        The purified images.
    """
    purifier, smooth = _shipped(x.device)
    with torch.no_grad():
        purified = purifier(x)
    found: Tensor = _ThroughContext.apply(x, purified, smooth)  # type: ignore[no-untyped-call]
    return found


def carry(gradient: Tensor, purified: Tensor, free: Tensor, density: PixelCNN) -> Tensor:
    """Add to the gradient at each pixel what it does through the modes of those after it.

    Args:
        gradient: at the purified images (batch, 1, h, w).
        purified: the purified images, in [0, 1].
        free: the pixels that are modes and no ends of a window, of the same shape, bool.
        density: the distribution of each pixel given those before it.

    Returns:
        The sum that :func:`through_context` describes.
    """
    with torch.enable_grad():
        before = purified.detach().requires_grad_(True)
        mode = follow_mode(density(before), 2 * purified[:, None] - 1)[:, 0] / 2
    found = gradient
    for _ in range(_TERMS):
        (later,) = torch.autograd.grad(mode, before, torch.where(free, found, 0.0), retain_graph=True)
        found = gradient + _SHARE * later
    return found


def follow_mode(parameters: Tensor, place: Tensor) -> Tensor:
    r"""Give a tensor whose derivative by the parameters of mixtures of logistics is that of their modes.

    At a mode u of the density p, :math:`s(u) = \partial_u \log p(u) = 0`; so it moves by :math:`-ds / s'(u)`.

    Args:
        parameters: of one mixture for each place, as :class:`~calipers.defenses.pixel_defend.pixel_cnn.PixelCNN` gives.
        place: the modes (batch, 1, colours, h, w), in units in which the range of the image is [-1, 1].

    Returns:
        Numbers of the shape of ``place``, to be differentiated; 0 at a true mode. Where the density is flat or hollow
        at ``place`` the derivative is 0.
    """
    with torch.enable_grad():
        place = place.detach().requires_grad_(True)
        (bend,) = torch.autograd.grad(_slope(parameters.detach(), place).sum(), place)
    peaked = bend < -_FLATTEST
    return _slope(parameters, place.detach()) * torch.where(peaked, -1 / bend.clamp_max(-_FLATTEST), 0.0)


def _slope(parameters: Tensor, place: Tensor) -> Tensor:
    """Differentiate the log density of mixtures of logistics by the place."""
    weights, means, scales = parameters.chunk(3, dim=1)
    scales = scales.clamp_min(NARROWEST)
    off = (place - means) * torch.exp(-scales)
    logs = torch.log_softmax(weights, dim=1) - off - 2 * functional.softplus(-off) - scales
    return (logs.softmax(1) * -torch.tanh(off / 2) * torch.exp(-scales)).sum(1, keepdim=True)


@final
class _ThroughContext(torch.autograd.Function):
    """The purified images forward; backward, their gradient with what it does through the context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, purified: Tensor, density: PixelCNN) -> Tensor:
        levels, chosen = (torch.round((LEVELS - 1) * one) for one in (x, purified))
        inside = (chosen > 0) & (chosen < LEVELS - 1)
        ctx.save_for_backward(purified, inside & ((chosen - levels).abs() < WINDOW))
        ctx.density = density
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        purified, free = ctx.saved_tensors
        return carry(gradients[0], purified, free, ctx.density), None, None


@lru_cache(maxsize=2)
def _shipped(device: torch.device) -> tuple[Purifier, PixelCNN]:
    """Load the purifier, and its density in float32 for backward passes."""
    density = load_part(PixelCNN(), DENSITY, None)
    assert isinstance(density, PixelCNN), "load_part gives back the network it is given"
    smooth = copy.deepcopy(density).float().requires_grad_(False).to(device)
    return Purifier(density, eps_defend=WINDOW).eval().to(device), smooth
