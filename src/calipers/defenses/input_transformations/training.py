"""Training of the network behind the random transformations: on images that each of them has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from calipers.defenses.base import Tell
from calipers.defenses.input_transformations.crop import RandomCrops
from calipers.defenses.input_transformations.quilting import Quilting
from calipers.defenses.input_transformations.total_variation import TotalVariation
from calipers.defenses.parts import has_part, save_part, small_network
from calipers.defenses.undefended import begun, plain_loss, portion
from calipers.training.parts import train_part

__all__ = ["RETRAINED", "train_retrained", "transformed"]

RETRAINED: Final = "input-transformations"
"""The name of the part."""

_EPOCHS, _TOGETHER, _TOP = 6, 200, 255
_SHARES: Final = {"crop": 1.0, "total-variation": 1.0, "quilting": 0.5}
"""Of how many training images each transformation makes another one."""


def transformed(transform: nn.Module, images: Tensor, *, seed: int) -> Tensor:
    """Transform images by draws of a seed.

    Args:
        transform: draws from torch's global generator.
        images: (n, 1, height, width), uint8.
        seed: of the draws.

    Returns:
        The transformed images (n, 1, height, width), uint8.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        made = [transform(part.float() / _TOP) for part in torch.split(images, _TOGETHER)]
    return (torch.cat(made) * _TOP).round().clamp(0, _TOP).to(torch.uint8)


def train_retrained(
    images: Tensor, labels: Tensor, folder: Path, *, patches: Callable[[], Tensor], share: float, tell: Tell
) -> None:
    """Train one network on crops, on images of least total variation and on quilts, unless its file is there.

    Args:
        images: training images (n, 1, 28, 28), uint8.
        labels: their classes (n,), int64.
        folder: where the file goes.
        patches: makes what is quilted with.
        share: of images and epochs.
        tell: told in words how far it is.
    """
    if has_part(RETRAINED, folder):
        return
    transforms: Mapping[str, nn.Module] = {
        "crop": nn.Sequential(RandomCrops(count=1), nn.Flatten(0, 1)),
        "total-variation": TotalVariation(),
        "quilting": Quilting(patches()),
    }
    pictures, classes = [], []
    for seed, (name, transform) in enumerate(transforms.items()):
        some, their = portion(images, labels, share * _SHARES[name])
        tell(f"{RETRAINED}: {name} of {len(some)} images")
        pictures.append(transformed(transform, some, seed=seed))
        classes.append(their)
    epochs = max(round(share * _EPOCHS), 1)
    net = begun(small_network, 0)
    folder.mkdir(parents=True, exist_ok=True)
    train_part(
        net,
        torch.cat(pictures),
        torch.cat(classes),
        plain_loss,
        recipe="crop, total variation, quilting",
        epochs=epochs,
        checkpoint=folder / f"{RETRAINED}.partial",
        tell=lambda words: tell(f"{RETRAINED}: {words}"),
    )
    about = {
        "recipe": f"cross-entropy on crops, total variation minimization and quilting, {epochs} epochs",
        "share": f"{share:g}",
    }
    save_part(net, RETRAINED, folder, about=about)
