"""Form: the images that a defense's own networks are for, and what they are trained with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from torch import nn

from calipers.defenses.given import Sizes, sizes_for
from calipers.defenses.parts import has_part, part_file, small_network
from calipers.errors import InvalidInput
from calipers.sources.shipped import metadata
from calipers.threat.units import parse_size
from calipers.training.batches import Augment

__all__ = ["COLOUR", "GREY", "Form", "form_of", "form_of_part"]

_SHAPE: Final = "input_shape"


class Form(NamedTuple):
    """One data set's form of the defenses that train networks of their own.

    Args:
        data: the data set, for people.
        input_shape: channels, height and width of an image.
        width: how many times the channels of :func:`~calipers.defenses.parts.small_network` its networks have.
        augment: what is done to each training image.
        passes: how many times the epochs of what ships its networks are trained for.
        ships: whether its networks ship with calipers.
    """

    data: str
    input_shape: tuple[int, int, int]
    width: int
    augment: Augment
    passes: int
    ships: bool

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.input_shape[0]

    @property
    def sizes(self) -> Sizes:
        """The sizes of perturbations, as people write them."""
        return sizes_for(self.input_shape)

    @property
    def eps(self) -> float:
        """The size that adversarial training is for, linf, in input units."""
        return float(parse_size(self.sizes.linf))

    def network(self, planes: int = 1) -> nn.Sequential:
        """Build the small network for such images, with torch's own initial weights.

        Args:
            planes: how many times the channels of an image are given to it.

        Returns:
            The network.
        """
        return small_network(planes * self.channels, width=self.width)

    def epochs(self, whole: int, share: float) -> int:
        """Say for how many epochs to train.

        Args:
            whole: epochs of what ships.
            share: the part of them to be run.

        Returns:
            At least 1.
        """
        return max(round(share * whole * self.passes), 1)

    def check_part(self, name: str, folder: Path, *, share: float) -> None:
        """Check that a part that is there already is for such images, and was not trained to try things out.

        Args:
            name: of the part.
            folder: where its file is.
            share: of images and epochs that it must have been trained on, where its file says so.

        Raises:
            InvalidInput: if it is for others, or was trained on another share.
        """
        there = form_of_part(name, folder)
        if there != self:
            raise InvalidInput(
                f"{part_file(name, folder)} is for {there.data}, {_written(there.input_shape)}, and the images are "
                f"{_written(self.input_shape)}: choose another folder"
            )
        told = metadata(part_file(name, folder)).get("share")
        if told not in (None, f"{share:g}"):
            raise InvalidInput(
                f"{part_file(name, folder)} was trained with --share {told} and not {share:g}: choose another folder, "
                "so that networks of one training are compared"
            )

    def about(self, **told: str) -> dict[str, str]:
        """Write what a part's file says of itself, with the shape of the images where it is not the usual one.

        Args:
            told: what else it says.

        Returns:
            Texts.
        """
        return told if self.ships else {**told, _SHAPE: _written(self.input_shape)}


GREY: Final = Form("Fashion-MNIST", (1, 28, 28), 1, "none", passes=1, ships=True)
"""What ships."""

COLOUR: Final = Form("CIFAR-10", (3, 32, 32), 2, "flip-crop", passes=2, ships=False)
"""What is trained by ``calipers train iclr2018 NAME --data folder:cifar10/train``."""

_FORMS: Final = (GREY, COLOUR)


def form_of(input_shape: tuple[int, ...]) -> Form:
    """Choose the form for images.

    Args:
        input_shape: channels, height and width.

    Returns:
        The form.

    Raises:
        InvalidInput: if there is none for such images.
    """
    for form in _FORMS:
        if form.input_shape == tuple(input_shape):
            return form
    known = " and ".join(_written(form.input_shape) for form in _FORMS)
    raise InvalidInput(f"images are {_written(input_shape)}: the defenses' own networks are for {known}")


def form_of_part(name: str, folder: Path | None) -> Form:
    """Read which form a part was trained in.

    Args:
        name: of the part.
        folder: where its file is; among those that ship if None.

    Returns:
        The form; that of what ships where no file says another.
    """
    if folder is None or not has_part(name, folder):
        return GREY
    told = metadata(part_file(name, folder)).get(_SHAPE)
    return GREY if told is None else form_of(tuple(int(side) for side in re.split("[x,]", told)))


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
