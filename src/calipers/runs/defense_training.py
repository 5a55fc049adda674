"""Training the parts of the nine defenses, from a data reference to files of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calipers.errors import InvalidInput, UsageError
from calipers.runs.case_rows import defense_names
from calipers.runs.catalog import named_defense
from calipers.runs.training import arrays_of
from calipers.sources.datasets import load_dataset

__all__ = ["expected_minutes", "train_defenses"]


def expected_minutes(wanted: Sequence[str]) -> dict[str, float]:
    """Say how long trainings take on two cores.

    Args:
        wanted: names of defenses; none for all.

    Returns:
        Minutes by name, of those that have something to train.
    """
    minutes = {name: type(named_defense(name)).minutes for name in defense_names(wanted)}
    return {name: value for name, value in minutes.items() if value or name in wanted}


def train_defenses(
    names: Sequence[str], *, data: str, folder: Path, share: float, tell: Callable[[str], None]
) -> tuple[Path, ...]:
    """Train the parts of defenses; a part whose file is there is left alone.

    Args:
        names: of the defenses.
        data: the reference of Fashion-MNIST's training images.
        folder: where the files go.
        share: the part of images and epochs, above 0 and at most 1.
        tell: told in words how far it is.

    Returns:
        The files of the folder.

    Raises:
        UsageError: if no data are named, or the share is no share.
        InvalidInput: if the images are no 28 x 28 bytes with classes.
    """
    import torch

    if not data:
        raise UsageError(
            "--data is not given: name Fashion-MNIST's training images, 'idx:FOLDER?split=train'"
        )
    if not 0 < share <= 1:
        raise UsageError(f"share is {share}: give a number above 0 and at most 1")
    images, labels, _ = arrays_of(load_dataset(data))
    if images.shape[1:] != (1, 28, 28) or images.dtype != torch.uint8:
        raise InvalidInput(
            f"{data} has images of shape {tuple(images.shape[1:])} and type {images.dtype}: the defenses are for "
            "8-bit images of 1x28x28"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        tell(f"{name}:")
        named_defense(name).train(images, labels, folder, share=share, tell=lambda text: tell(f"  {text}"))
    return tuple(sorted(folder.glob("*.safetensors")))
