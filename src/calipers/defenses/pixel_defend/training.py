"""Training of the density that PixelDefend purifies by: a PixelCNN on the training images of a task."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from calipers.defenses.base import Tell
from calipers.defenses.parts import save_part
from calipers.defenses.pixel_defend.pixel_cnn import PixelCNN, nats
from calipers.defenses.undefended import begun
from calipers.training.parts import train_part

__all__ = ["AROUND", "DENSITY", "SHAPE", "bits_per_dimension", "mean_nats", "train_density"]

DENSITY: Final = "pixel-defend-density"
"""The name of the part."""

AROUND: Final = "around-pixel-defend-density"
"""The name of the part before a given network."""

SHAPE: Final = "shape"
"""What a part's file calls the shape of the images that it is the density of."""

_HELD_OUT, _ROWS = 1000, 100
_BATCH, _RATE, _SEED = 32, 2e-3, 0
_EPOCHS: Final = {DENSITY: 2, AROUND: 5}
_WHAT: Final = {DENSITY: "Fashion-MNIST", AROUND: "training images of a given network's task"}


def train_density(
    images: UInt8[Tensor, "n colours h w"],
    labels: Int[Tensor, " n"],
    folder: Path,
    *,
    name: str = DENSITY,
    share: float,
    tell: Tell,
) -> Path:
    """Train the density by maximum likelihood and write it; the last 1 000 images, held out, say how good it is.

    Args:
        images: training images.
        labels: their classes, which the density does not see.
        folder: where the file goes.
        name: of the part: :data:`DENSITY`, which ships, or :data:`AROUND`.
        share: 1 for what ships; less takes the first images only.
        tell: told after each epoch.

    Returns:
        The file.
    """
    held = images[-min(_HELD_OUT if share >= 1 else _ROWS, len(images) // 2) :]
    count = max(round(share * (len(images) - len(held))), _BATCH)
    folder.mkdir(parents=True, exist_ok=True)
    epochs = _EPOCHS[name]
    net = train_part(
        begun(partial(PixelCNN, colours=images.shape[1]), _SEED),
        images[:count],
        labels[:count],
        mean_nats,
        recipe="PixelCNN, mixture of logistics, mean nats a pixel",
        epochs=epochs,
        batch_size=_BATCH,
        learning_rate=_RATE,
        seed=_SEED,
        checkpoint=folder / f"{name}.checkpoint",
        tell=tell,
    )
    bits = bits_per_dimension(net, held)
    tell(f"{bits:.3f} bits per dimension on {len(held)} training images held out")
    about = {
        "what": f"PixelCNN of {_WHAT[name]}, the density of PixelDefend (arXiv:1710.10766)",
        "trained": f"{epochs} epochs of the first {count} training images, batches of {_BATCH}, Adam {_RATE}",
        "bits per dimension": f"{bits:.3f} on {len(held)} training images held out",
        SHAPE: "x".join(str(size) for size in images.shape[1:]),
    }
    return save_part(net, name, folder, about=about)


def mean_nats(net: nn.Module, x: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """Compute the loss of a batch, with products in bfloat16 but for those of the last layer.

    Args:
        net: a :class:`~calipers.defenses.pixel_defend.pixel_cnn.PixelCNN`.
        x: images (rows, colours, h, w), in [0, 1].
        labels: not looked at.
        noise: not drawn from.

    Returns:
        The mean negative log likelihood, in nats a pixel and colour, a scalar.
    """
    assert isinstance(net, PixelCNN), "train_density gives no other network"
    with torch.autocast(x.device.type, torch.bfloat16):
        features = net.features(x)
    return nats(net.parameters_of(features.float(), x), x).mean()


def bits_per_dimension(net: nn.Module, images: UInt8[Tensor, "n colours h w"]) -> float:
    """Compute the mean negative log likelihood of images.

    Args:
        net: a :class:`~calipers.defenses.pixel_defend.pixel_cnn.PixelCNN`.
        images: 8-bit images.

    Returns:
        Bits per dimension.
    """
    with torch.no_grad():
        parts = [_nats(net, rows.float() / 255) for rows in torch.split(images, _ROWS)]
    return float(torch.cat(parts).mean()) / math.log(2)


def _nats(net: nn.Module, x: Tensor) -> Tensor:
    return nats(net(x), x).double()
