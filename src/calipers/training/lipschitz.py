"""Training for a Lipschitz constant of 1: orthogonal layers, and a loss that asks for a margin."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from calipers.sources.architectures import build, input_shape
from calipers.training.batches import Augment, Batch
from calipers.training.fields import check_fields
from calipers.training.loop import Learner, TrainedModel, TrainingProgress, Verdict, cosine_rate, fit
from calipers.training.losses import margin_loss
from calipers.training.normalization import Normalization
from calipers.training.orthogonal import constrain, plain_weights

__all__ = ["LipschitzTraining", "train"]


@final
@dataclass(frozen=True)
class LipschitzTraining:
    """A recipe: what is trained and how; its repr is its entry in the metadata of the weights.

    Every layer with weights is kept orthogonal while it trains, so that with activations that stretch nothing
    (GroupSort) the network is 1-Lipschitz in l2 from images in [0, 1] to logits, up to rounding. The weights
    that come out are plain. Nothing is claimed of them here: their constant is to be proved from the weights.

    Args:
        arch: name of the architecture, with layers that can be kept orthogonal: `lipmlp28`, `lipconv28`,
            `lipconv32`.
        epochs: passes over the data.
        margin: the l2 radius, in units of [0, 1], that the loss asks for.
        temperature: what the logits are multiplied by in the loss; a smaller one asks for margins beyond
            `margin`, at a price in accuracy.
        batch_size: images a step.
        learning_rate: the largest value of Adam's, which falls to zero by half a cosine.
        warmup_epochs: epochs in which the rate rises linearly before that.
        augment: what is done to each image.
        precision: `bf16` runs convolutions and products in bfloat16, weights stay float32.
        seed: seed of the initial weights, the order and the augmentation.

    A value out of its range raises `UsageError`.

    Reference: Anil, Lucas and Grosse 2019, arXiv:1811.05381, section 4 (GroupSort with orthogonal layers);
    Prach and Lampert 2022, arXiv:2208.03160, section 4 (cross-entropy with an offset and a temperature).
    """

    arch: str
    epochs: int
    margin: float = 0.5
    temperature: float = 8.0
    batch_size: int = 256
    learning_rate: float = 5e-3
    warmup_epochs: float = 0.5
    augment: Augment = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_recipe(self)

    def rate(self, step: int, *, steps_per_epoch: int) -> float:
        """Give the learning rate of a step.

        Args:
            step: number of the step, from 0.
            steps_per_epoch: steps in an epoch.

        Returns:
            The rate.
        """
        warmup = round(self.warmup_epochs * steps_per_epoch)
        return cosine_rate(step, peak=self.learning_rate, warmup=warmup, steps=self.epochs * steps_per_epoch)

    def facts(self) -> dict[str, str]:
        """Give what the metadata of the weights say beside the repr.

        Returns:
            `trained_for`, in words.
        """
        return {"trained_for": "l2 certificates by its Lipschitz constant"}


_CHOICES: dict[str, tuple[str, ...]] = {"augment": ("none", "flip-crop"), "precision": ("fp32", "bf16")}


def train(
    recipe: LipschitzTraining,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    mean: Iterable[float] | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainedModel:
    """Train a network, or go on where a checkpoint of the same training stands.

    Images are shifted by their mean and never scaled, since a scale would stretch them.

    After every epoch the checkpoint holds the whole state. A training that was cut off and resumed ends on
    the CPU, with the same number of threads, with the weights of one that was not, bit for bit.

    Args:
        recipe: what to train and how.
        images: of shape (n, channels, height, width), uint8 in 0 to 255 or float32 in [0, 1].
        labels: whole numbers from 0 to num_classes - 1, of shape (n,).
        num_classes: number of classes.
        mean: one number a channel, subtracted before the network; by default the mean of the images.
        device: where to train.
        checkpoint: file to go on from and to write after each epoch.
        progress: called after every step.
        stop: asked after every epoch; where it says yes, the training ends there and can be resumed.

    Returns:
        The plain weights after the last epoch that was run.
    """

    def make(normalization: Normalization, place: torch.device) -> _Trainer:
        return _Trainer(recipe, num_classes, normalization, place)

    return fit(
        recipe,
        make,
        images,
        labels,
        num_classes=num_classes,
        mean=mean,
        std=(1.0,) * input_shape(recipe.arch)[0],
        device=device,
        checkpoint=checkpoint,
        progress=progress,
        stop=stop,
    )


@final
class _Trainer(Learner):
    """Network with its parametrizations, and optimizer of one training."""

    def __init__(
        self, recipe: LipschitzTraining, num_classes: int, normalization: Normalization, device: torch.device
    ) -> None:
        self.recipe = recipe
        self.device = device
        net = build(recipe.arch, num_classes=num_classes, seed=recipe.seed)
        constrain(net, arch=recipe.arch)
        self.net = net.to(device)
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=recipe.learning_rate, fused=device.type == "cuda"
        )
        self.mean = torch.tensor(normalization[0], device=device).view(1, -1, 1, 1)

    def judge(self, batch: Batch) -> Verdict:
        recipe = self.recipe
        half = (
            torch.autocast(self.device.type, torch.bfloat16) if recipe.precision == "bf16" else nullcontext()
        )
        with half:
            logits = self.net(batch.images.permute(0, 3, 1, 2) - self.mean)
        loss = margin_loss(logits, batch.labels, margin=recipe.margin, temperature=recipe.temperature)
        return Verdict(loss, (logits.detach().argmax(1) == batch.labels).sum(), len(batch.labels))

    def weights(self) -> dict[str, Tensor]:
        return plain_weights(self.net)


def _check_recipe(recipe: LipschitzTraining) -> None:
    constrain(build(recipe.arch, num_classes=2), arch=recipe.arch)
    check_fields(
        recipe,
        not_negative=("margin", "warmup_epochs"),
        counts=("epochs", "batch_size"),
        positive=("learning_rate", "temperature"),
        choices=_CHOICES,
    )
