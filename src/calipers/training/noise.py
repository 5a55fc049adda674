"""Training under Gaussian noise: the augmentation of Cohen et al. 2019, with consistency as an option."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.sources.architectures import build, input_shape
from calipers.training.batches import Augment, Batch
from calipers.training.fields import check_fields
from calipers.training.loop import Learner, TrainedModel, TrainingProgress, Verdict, cosine_rate, fit
from calipers.training.losses import noise_loss
from calipers.training.normalization import Normalization

__all__ = ["NoiseTraining", "train"]


@final
@dataclass(frozen=True)
class NoiseTraining:
    """A recipe: what is trained and how; its repr is its entry in the metadata of the weights.

    Each image of a batch is taken `draws` times, each time with fresh noise N(0, sigma² I), which is added in
    the units of the image, [0, 1], after augmentation and before normalization, and is not clipped.

    Args:
        arch: name of the architecture.
        sigma: standard deviation of the noise, in units of [0, 1]; 0 is plain training.
        epochs: passes over the data.
        batch_size: images a step.
        optimizer: stochastic gradient descent, or Adam with decoupled weight decay.
        learning_rate: its largest value.
        momentum: of `sgd`.
        weight_decay: of every parameter.
        schedule: `cosine` falls to zero at the end; `step` divides by ten after each third of the epochs
            (Cohen et al.).
        warmup_epochs: epochs in which the rate rises linearly before the schedule rules.
        augment: what is done to each image.
        draws: noisy copies of an image in a step.
        consistency: weight of the divergence of each copy's prediction from the mean; needs two draws or
            more.
        entropy: weight of the entropy of the mean prediction, used with `consistency`.
        precision: `bf16` runs convolutions and products in bfloat16, weights stay float32.
        seed: seed of the initial weights, the order, the augmentation and the noise.

    A value out of its range raises `UsageError`.

    Reference: Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918, section 3.3; Jeong and Shin 2020,
    arXiv:2006.04062, section 3 (weights of 20 and 0.5 with two draws in its experiments at sigma .25).
    """

    arch: str
    sigma: float
    epochs: int
    batch_size: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: float = 0.0
    augment: Augment = "none"
    draws: int = 1
    consistency: float = 0.0
    entropy: float = 0.5
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
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "step":
            return self.learning_rate * 0.1 ** (3 * (step // steps_per_epoch) // self.epochs)
        return cosine_rate(step, peak=self.learning_rate, warmup=warmup, steps=self.epochs * steps_per_epoch)

    def facts(self) -> dict[str, str]:
        """Give what the metadata of the weights say beside the repr.

        Returns:
            `sigma`, the standard deviation of the noise.
        """
        return {"sigma": str(self.sigma)}


_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step"),
    "augment": ("none", "flip-crop"),
    "precision": ("fp32", "bf16"),
}


def train(
    recipe: NoiseTraining,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    device: torch.device | str = "cpu",
    compile_mode: str | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainedModel:
    """Train a network, or go on where a checkpoint of the same training stands.

    After every epoch the checkpoint holds the whole state. A training that was cut off and resumed ends on
    the CPU, with the same number of threads, with the weights of one that was not, bit for bit.

    Args:
        recipe: what to train and how.
        images: of shape (n, channels, height, width), uint8 in 0 to 255 or float32 in [0, 1].
        labels: whole numbers from 0 to num_classes - 1, of shape (n,).
        num_classes: number of classes.
        mean: one number a channel, subtracted before the network; by default the mean of the images.
        std: one number a channel, divided by; by default the standard deviation of the images.
        device: where to train.
        compile_mode: mode of `torch.compile` (`default`, `reduce-overhead`); None runs eagerly.
        checkpoint: file to go on from and to write after each epoch.
        progress: called after every step.
        stop: asked after every epoch; where it says yes, the training ends there and can be resumed.

    Returns:
        The weights after the last epoch that was run.

    """

    def make(normalization: Normalization, place: torch.device) -> _Trainer:
        return _Trainer(recipe, num_classes, normalization, place, compile_mode)

    return fit(
        recipe,
        make,
        images,
        labels,
        num_classes=num_classes,
        mean=mean,
        std=std,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
        stop=stop,
    )


@final
class _Trainer(Learner):
    """Network and optimizer of one training."""

    def __init__(
        self,
        recipe: NoiseTraining,
        num_classes: int,
        normalization: Normalization,
        device: torch.device,
        compile_mode: str | None,
    ) -> None:
        self.recipe = recipe
        self.device = device
        net = build(recipe.arch, num_classes=num_classes, seed=recipe.seed)
        self.net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(recipe, self.net, fused=device.type == "cuda")
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in normalization
        )
        objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = self._objective
        self.objective = objective if compile_mode is None else torch.compile(objective, mode=compile_mode)

    def judge(self, batch: Batch) -> Verdict:
        loss, right = self.objective(self._noisy(batch), batch.labels)
        return Verdict(loss, right, len(batch.labels) * self.recipe.draws)

    def weights(self) -> dict[str, Tensor]:
        return self.net.state_dict()

    def _noisy(self, batch: Batch) -> Tensor:
        """Return noisy copies of a batch: (draws * batch, channels, height, width), channels-last."""
        images = batch.images
        if self.recipe.draws > 1:
            images = images.expand(self.recipe.draws, *images.shape).flatten(0, 1)
        if self.recipe.sigma > 0:
            noise = torch.randn(images.shape, generator=batch.noise, device=self.device)
            images = images.add(noise, alpha=self.recipe.sigma)
        return images.permute(0, 3, 1, 2)

    def _objective(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and how many copies are classified rightly."""
        recipe = self.recipe
        half = (
            torch.autocast(self.device.type, torch.bfloat16) if recipe.precision == "bf16" else nullcontext()
        )
        with half:
            logits = self.net((x - self.mean) / self.std)
        logits = logits.view(recipe.draws, len(labels), -1)
        loss = noise_loss(logits, labels, consistency=recipe.consistency, entropy=recipe.entropy)
        return loss, (logits.detach().argmax(2) == labels).sum()


def _check_recipe(recipe: NoiseTraining) -> None:
    input_shape(recipe.arch)
    check_fields(
        recipe,
        not_negative=("sigma", "weight_decay", "warmup_epochs", "consistency", "entropy"),
        counts=("epochs", "batch_size", "draws"),
        positive=("learning_rate",),
        choices=_CHOICES,
    )
    if not 0 <= recipe.momentum < 1:
        raise UsageError(f"momentum is {recipe.momentum}: give a number from 0 up to 1")
    if recipe.consistency > 0 and (recipe.draws < 2 or recipe.sigma == 0):
        raise UsageError(
            f"consistency compares noisy copies of an image, but draws is {recipe.draws} and sigma is "
            f"{recipe.sigma}: give 2 draws or more and a sigma above 0"
        )


def _optimizer(recipe: NoiseTraining, net: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )
