"""Batches: shuffled and augmented training images, made on the device, per image, from seeded generators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional

from calipers.errors import InvalidInput
from calipers.randomness import Role, Stream
from calipers.sources.architectures import input_shape

__all__ = ["Augment", "Batch", "TrainingData", "check_images"]

Augment = Literal["none", "flip-crop"]
"""What is done to a training image before noise: nothing, or a random shift and half the time a mirroring."""

MARGIN: Final = 4
"""Largest shift of flip-crop, in pixels; what comes in is black (He et al. 2015, section 4.2)."""

_ORDER, _AUGMENT, _NOISE = 0, 1, 2


class Batch(NamedTuple):
    """Some images of an epoch, and the generator of their noise.

    Attributes:
        images: float32 in [0, 1], of shape (batch, height, width, channels), contiguous.
        labels: int64, of shape (batch,).
        noise: the generator on the device of the images, from which the batches of an epoch draw in their
            order.
    """

    images: Tensor
    labels: Tensor
    noise: torch.Generator


@final
class TrainingData:
    """A whole training set, held on one device as bytes.

    Images lie as (n, height, width, channels), which is channels-last once a batch is viewed as NCHW.

    Args:
        images: of shape (n, channels, height, width), uint8 in 0 to 255 or float32 in [0, 1].
        labels: int64, of shape (n,).
        batch_size: images a batch; every batch is full, so an epoch leaves out fewer images than one batch,
            others in each epoch.
        augment: what is done to each image.
        device: where the data lie and the batches are made.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, batch_size: int, augment: Augment, device: torch.device
    ) -> None:
        self.height, self.width = images.shape[2:]
        if augment == "flip-crop":
            images = functional.pad(images, (MARGIN, MARGIN, MARGIN, MARGIN))
        self.images = images.permute(0, 2, 3, 1).contiguous().to(device)
        self.labels = labels.to(device)
        self.batch_size = min(batch_size, len(images))
        self.augment = augment
        self.device = device

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Make the batches of one epoch.

        Args:
            seed: seed of the training.
            epoch: number of the epoch, from 0. Order, augmentation and noise depend on seed, epoch and the
                kind of device alone, so an epoch is the same whether or not the ones before it were run by
                this process.

        Yields:
            Each batch.
        """
        stream = Stream(seed, Role.TRAIN, epoch)
        augment = stream.generator(_AUGMENT, self.device)
        noise = stream.generator(_NOISE, self.device)
        order = torch.randperm(
            len(self.images), generator=stream.generator(_ORDER, self.device), device=self.device
        )
        for start in range(0, self.batches * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            picked = self._flip_crop(chosen, augment) if self.augment == "flip-crop" else self.images[chosen]
            if not picked.is_floating_point():
                picked = picked.float() / 255
            yield Batch(picked, self.labels[chosen], noise)

    def _flip_crop(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        size = (len(chosen), 1)
        shifts = torch.randint(0, 2 * MARGIN + 1, (2, *size), generator=generator, device=self.device)
        mirrored = torch.randint(0, 2, size, generator=generator, device=self.device).bool()
        rows = shifts[0] + torch.arange(self.height, device=self.device)
        columns = torch.arange(self.width, device=self.device)
        columns = shifts[1] + torch.where(mirrored, columns.flip(0), columns)
        return self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def check_images(arch: str, images: Tensor, labels: Tensor, *, num_classes: int) -> None:
    """Refuse data that an architecture cannot be trained on.

    Args:
        arch: name of the architecture.
        images: of shape (n, channels, height, width), uint8 in 0 to 255 or float32 in [0, 1].
        labels: whole numbers from 0 to num_classes - 1, of shape (n,).
        num_classes: number of classes.

    Raises:
        InvalidInput: a shape, a type or a value is none of these.
    """
    shape = input_shape(arch)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InvalidInput(
            f"{arch} is trained on images of shape (n, {', '.join(map(str, shape))}), not on "
            f"{tuple(images.shape)}"
        )
    if images.dtype not in {torch.uint8, torch.float32}:
        raise InvalidInput(f"images are {images.dtype}: give uint8, or float32 in [0, 1]")
    if images.dtype == torch.float32 and not bool(((images >= 0) & (images <= 1)).all()):
        raise InvalidInput("images in float32 must lie in [0, 1] and hold no NaN: divide bytes by 255")
    if labels.shape != images.shape[:1] or len(labels) == 0:
        raise InvalidInput(
            f"{len(images)} images have labels of shape {tuple(labels.shape)}: give one a image"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InvalidInput(f"labels are {labels.dtype}: give whole numbers")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise InvalidInput(
            f"labels go from {low} to {high}: with {num_classes} classes, 0 to {num_classes - 1}"
        )
