"""Training the parts of the nine defenses, from a data reference to files of weights, patches and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calipers.errors import InvalidInput, UsageError
from calipers.runs.case_rows import defense_names
from calipers.runs.catalog import GREY_SHAPE, named_defense, with_colour_form
from calipers.runs.training import arrays_of
from calipers.sources.datasets import load_dataset
from calipers.sources.models import open_network

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["expected_minutes", "train_around", "train_defenses"]

_COLOUR = (3, 32, 32)
_CLASSES = 10


def expected_minutes(wanted: Sequence[str], *, data: str) -> dict[str, float]:
    """Say how long trainings take on two cores.

    Args:
        wanted: names of defenses; none for all that can be trained on such images.
        data: the reference of the training images.

    Returns:
        Minutes by name, of those that have something to train.

    Raises:
        UsageError: if no data are named, or one that is wanted has no form for such images.
    """
    if not data:
        raise UsageError(
            "--data is not given: name Fashion-MNIST's training images, 'idx:FOLDER?split=train', or CIFAR-10's, "
            "'folder:FOLDER'"
        )
    if load_dataset(data).shape != _COLOUR:
        minutes = {name: type(named_defense(name)).minutes for name in defense_names(wanted)}
        return {name: value for name, value in minutes.items() if value or name in wanted}
    known = with_colour_form()
    names = defense_names(wanted) if wanted else known
    for name in names:
        if name not in known:
            raise UsageError(
                f"{name} has no network of its own for images of {_written(_COLOUR)}: {', '.join(known)} have; give "
                "--network to put it around one"
            )
    return {name: type(named_defense(name)).colour_minutes or 0.0 for name in names}


def train_around(
    wanted: Sequence[str],
    *,
    network: str,
    data: str,
    folder: Path,
    share: float,
    tell: Callable[[str], None],
) -> tuple[Path, ...]:
    """Make the parts that defenses need around a given network, of training images of its task.

    Each takes a stratified sample of the images, 6000 unless it says otherwise, the same every time, in an order
    without classes.

    Args:
        wanted: names of defenses; none for all that need a part.
        network: the reference of the network.
        data: the reference of the training images; never of those that are attacked later.
        folder: where the files go; a part whose file is there is left alone.
        share: the part of the images, above 0 and at most 1.
        tell: told in words how far it is.

    Returns:
        The files of the folder.

    Raises:
        UsageError: if no data are named, or the share is no share.
        InvalidInput: if the images are no bytes of the network's shape.
    """
    import torch

    if not data:
        raise UsageError("--data is not given: name training images of the network's task")
    names = defense_names(wanted, network=network)
    defenses = [named_defense(name, network=network) for name in names]
    if not wanted:
        defenses = [defense for defense in defenses if defense.lacks()]
    shape = open_network(network).input_shape
    chosen = load_dataset(data, input_shape=shape)
    for defense in defenses:
        images, labels, _ = arrays_of(chosen.sample(min(len(chosen), defense.around_images), seed=0))
        _check(images, shape, share, data)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        folder.mkdir(parents=True, exist_ok=True)
        tell(f"{defense.name}:")
        defense.train(images[order], labels[order], folder, share=share, tell=lambda text: tell(f"  {text}"))
    return tuple(sorted(folder.glob("*.safetensors")))


def train_defenses(
    names: Sequence[str], *, data: str, folder: Path, share: float, tell: Callable[[str], None]
) -> tuple[Path, ...]:
    """Train the parts of defenses; a part whose file is there is left alone.

    Images that lie sorted by class, as those of folders do, are put in an order without classes, the same every time.

    Args:
        names: of the defenses.
        data: the reference of Fashion-MNIST's training images, or of CIFAR-10's for those that have such a form.
        folder: where the files go.
        share: the part of images and epochs, above 0 and at most 1.
        tell: told in words how far it is.

    Returns:
        The files of the folder.

    Raises:
        UsageError: if the share is no share.
        InvalidInput: if the images are no bytes of a shape that the defenses have networks for, or of more classes.
    """
    import torch

    images, labels, classes = arrays_of(load_dataset(data))
    if classes > _CLASSES:
        raise InvalidInput(f"{data} has {classes} classes: the defenses' own networks are for {_CLASSES}")
    _check(images, _COLOUR if tuple(images.shape[1:]) == _COLOUR else GREY_SHAPE, share, data)
    if bool((labels.diff() >= 0).all()):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        images, labels = images[order], labels[order]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        tell(f"{name}:")
        named_defense(name).train(images, labels, folder, share=share, tell=lambda text: tell(f"  {text}"))
    return tuple(sorted(folder.glob("*.safetensors")))


def _check(images: Tensor, shape: tuple[int, ...], share: float, data: str) -> None:
    import torch

    if not 0 < share <= 1:
        raise UsageError(f"share is {share}: give a number above 0 and at most 1")
    if tuple(images.shape[1:]) != shape or images.dtype != torch.uint8:
        raise InvalidInput(
            f"{data} has images of shape {tuple(images.shape[1:])} and type {images.dtype}: the defenses are for "
            f"8-bit images of {_written(shape)}"
        )


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
