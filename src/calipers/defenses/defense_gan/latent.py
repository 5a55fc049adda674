"""The latent space of Defense-GAN as a search variable: from latent points to images on the manifold, and back."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from calipers.defenses.defense_gan.generator import LATENT, Generator
from calipers.defenses.defense_gan.projection import Projection, descend
from calipers.defenses.parts import load_part

__all__ = ["GENERATOR", "continued", "decode", "encode", "load_generator"]

GENERATOR: Final = "defense-gan-generator"
"""The name of the generator's file."""

_STEPS, _STARTS, _SEED = 200, 4, 0
_FEWER, _FEWER_STARTS, _MORE, _RATE, _MOMENTUM = 100, 2, 15, 10.0, 0.7


def load_generator(folder: Path | None) -> Generator:
    """Read the generator.

    Args:
        folder: of its file; among those that ship if None.

    Returns:
        The generator, frozen.
    """
    generator = load_part(Generator(), GENERATOR, folder)
    assert isinstance(generator, Generator), "load_part gives back the network it is given"
    return generator.requires_grad_(False)


def decode(z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 1 28 28"]:
    """Generate images, by the generator that ships.

    Args:
        z: latent points.

    Returns:
        Images in (0, 1), differentiable in z.
    """
    images: Tensor = _shipped(z.device.type)(z)
    return images


def encode(x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch latent"]:
    """Find latent points whose images are near given ones: four descents of 200 steps, from the same starts for all.

    Differs from the paper's attack (Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 5.4), whose inversion
    has 30 starts.

    Args:
        x: images.

    Returns:
        Latent points.
    """
    projection = Projection(_shipped(x.device.type), latent=LATENT, steps=_STEPS, restarts=_STARTS)
    return projection.best(x, _starts(_STARTS, x))[1]


def continued(x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 1 28 28"]:
    r"""Project images and go 15 steps further, of which alone autograd knows: what BPDA may put for the projection.

    At a minimum, :math:`z^*` moves with x by :math:`H^{-1} J^\top`, with J the Jacobian of the generator and H the
    Hessian of the error in z. Some steps of the descent from there sum the first terms of this, and leave out the way
    to the minimum.

    Args:
        x: images.

    Returns:
        Images of the generator, differentiable in x.
    """
    generator = _shipped(x.device.type)
    projection = Projection(generator, latent=LATENT, steps=_FEWER, restarts=_FEWER_STARTS)
    z = projection.best(x.detach(), _starts(_FEWER_STARTS, x))[1]
    z = descend(generator, x, z, steps=_MORE, rate=_RATE, momentum=_MOMENTUM, unrolled=True)
    images: Tensor = generator(z)
    return images


def _starts(count: int, x: Tensor) -> Tensor:
    starts = torch.randn((count, LATENT), generator=torch.Generator().manual_seed(_SEED)).to(x.device)
    return starts.expand(len(x), -1, -1)


@lru_cache(maxsize=2)
def _shipped(device: str) -> Generator:
    return load_generator(None).to(device)
