"""The classifier behind Defense-GAN: trained on images and on what the projection makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from calipers.defenses.base import Tell
from calipers.defenses.defense_gan.projection import Projection
from calipers.defenses.parts import save_part, small_network
from calipers.defenses.undefended import begun, plain_loss
from calipers.training.parts import train_part

__all__ = ["CLASSIFIER", "project_images", "train_classifier"]

CLASSIFIER: Final = "defense-gan-classifier"
"""The name of the part."""

_IMAGES, _PROJECTED, _EPOCHS, _ROWS, _SEED = 30_000, 10_000, 6, 100, 0


def project_images(projection: Projection, images: UInt8[Tensor, "n 1 28 28"]) -> UInt8[Tensor, "n 1 28 28"]:
    """Project images, from starts of a fixed seed.

    Args:
        projection: onto the range of the generator.
        images: 8-bit images.

    Returns:
        What the projection makes of them, rounded to 8 bits.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(_SEED)
        parts = [projection(rows.float() / 255) for rows in torch.split(images, _ROWS)]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def train_classifier(
    projection: Projection,
    images: UInt8[Tensor, "n 1 28 28"],
    labels: Int[Tensor, " n"],
    folder: Path,
    *,
    share: float,
    tell: Tell,
) -> Path:
    """Train the classifier and write it.

    Samangouei et al. 2018 (arXiv:1805.06605, section 4) train theirs on images or on reconstructions; this one sees
    both, so that it is a classifier of images too, and what it does without the defense can be measured.

    Args:
        projection: what stands before it, or one with fewer starts, which takes less time.
        images: training images; the first 30 000 are used, and projections of the first 10 000, each twice.
        labels: their classes.
        folder: where the file goes.
        share: 1 for what ships; less takes that share of images and epochs.
        tell: told after each epoch.

    Returns:
        The file.
    """
    count, few = (max(round(share * most), _ROWS) for most in (_IMAGES, _PROJECTED))
    images, labels = images[:count], labels[:count]
    epochs = max(round(share * _EPOCHS), 1)
    tell(f"projecting {few} images")
    projected = project_images(projection, images[:few])
    net = train_part(
        begun(small_network, _SEED),
        torch.cat([images, projected, projected]),
        torch.cat([labels, labels[:few], labels[:few]]),
        plain_loss,
        recipe="Defense-GAN's classifier, images and projections",
        epochs=epochs,
        seed=_SEED,
        checkpoint=folder / f"{CLASSIFIER}.checkpoint",
        tell=tell,
    )
    about = {
        "what": "classifier of Fashion-MNIST behind Defense-GAN (arXiv:1805.06605)",
        "trained": f"{epochs} epochs of the first {count} training images, and twice of projections of the first {few}",
    }
    return save_part(net, CLASSIFIER, folder, about=about)
