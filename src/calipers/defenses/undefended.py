"""The small network trained plainly: what defenses that train networks of their own are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from calipers.defenses.base import Tell
from calipers.defenses.form import form_of, form_of_part
from calipers.defenses.parts import has_part, load_part, save_part
from calipers.target import Target
from calipers.training.parts import BatchLoss, train_part

__all__ = [
    "UNDEFENDED",
    "begun",
    "plain_loss",
    "portion",
    "train_network",
    "train_undefended",
    "undefended_target",
]

UNDEFENDED: Final = "undefended"
"""The name of the part."""

_EPOCHS: Final = 8


def plain_loss(net: nn.Module, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
    """Compute the cross-entropy, with products in bfloat16.

    Args:
        net: the network.
        images: what it takes (rows, channels, height, width).
        labels: their classes (rows,).
        noise: not drawn from.

    Returns:
        The mean over the rows, in nats, a scalar.
    """
    with torch.autocast(images.device.type, torch.bfloat16):
        scores = net(images)
    return functional.cross_entropy(scores.float(), labels)


def portion(images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Take the first images of a training set, at least 256.

    Args:
        images: all (n, channels, height, width).
        labels: their classes (n,).
        share: how much of them, up to 1.

    Returns:
        Images and classes, of the same shapes but for n.
    """
    count = max(round(share * len(images)), 256)
    return images[:count], labels[:count]


def begun(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a network with initial weights from a seed.

    Args:
        make: a function that builds it.
        seed: of the weights.

    Returns:
        The network, in the memory format in which convolutions are fast.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = make()
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def train_network(
    name: str,
    make: Callable[[], nn.Module],
    loss: BatchLoss,
    images: Tensor,
    labels: Tensor,
    folder: Path,
    *,
    recipe: str,
    whole: int,
    share: float,
    tell: Tell,
) -> None:
    """Train a network of a defense's own in the form of its images, unless its file is there.

    Args:
        name: of the part.
        make: a function that builds it.
        loss: what is descended.
        images: training images (n, 1, 28, 28) or (n, 3, 32, 32), uint8.
        labels: their classes (n,), int64.
        folder: where the file goes.
        recipe: the loss in words.
        whole: epochs of what ships.
        share: of images and epochs.
        tell: told in words how far it is.

    Raises:
        InvalidInput: if there is a file, and it is for other images, or of another share.
    """
    form = form_of(tuple(images.shape[1:]))
    if has_part(name, folder):
        form.check_part(name, folder, share=share)
        return
    epochs = form.epochs(whole, share)
    folder.mkdir(parents=True, exist_ok=True)
    net = train_part(
        begun(make, 0),
        *portion(images, labels, share),
        loss,
        recipe=recipe,
        epochs=epochs,
        augment=form.augment,
        checkpoint=folder / f"{name}.partial",
        tell=lambda words: tell(f"{name}: {words}"),
    )
    save_part(net, name, folder, about=form.about(recipe=f"{recipe}, {epochs} epochs", share=f"{share:g}"))


def train_undefended(images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
    """Train the plain network, unless its file is there; see :func:`train_network`."""
    form = form_of(tuple(images.shape[1:]))
    train_network(
        UNDEFENDED,
        form.network,
        plain_loss,
        images,
        labels,
        folder,
        recipe="cross-entropy",
        whole=_EPOCHS,
        share=share,
        tell=tell,
    )


def undefended_target(folder: Path | None, device: str) -> Target:
    """Make the classifier.

    Args:
        folder: where its file is; among those that ship if None.
        device: where it runs.

    Returns:
        The target.
    """
    form = form_of_part(UNDEFENDED, folder)
    net = load_part(form.network(), UNDEFENDED, folder)
    return Target(net, num_classes=10, input_shape=form.input_shape, device=device, name=UNDEFENDED)
