"""The loop that recipes share: epochs of seeded batches, a checkpoint after each, and a report of it."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.sources.architectures import build, input_shape
from calipers.target.allocator import keep_freed_memory
from calipers.training.batches import Augment, Batch, TrainingData, check_images
from calipers.training.checkpoints import data_digest, read_checkpoint, write_checkpoint
from calipers.training.normalization import Normalization, measure_normalization

__all__ = [
    "EpochReport",
    "Learner",
    "Recipe",
    "TrainedModel",
    "TrainingProgress",
    "Verdict",
    "cosine_rate",
    "fit",
]


class Recipe(Protocol):
    """What the loop must know of a recipe: a frozen dataclass whose repr says all of it."""

    @property
    def arch(self) -> str:
        """Name of the architecture."""

    @property
    def epochs(self) -> int:
        """Passes over the data."""

    @property
    def batch_size(self) -> int:
        """Images a step."""

    @property
    def learning_rate(self) -> float:
        """Its largest value."""

    @property
    def augment(self) -> Augment:
        """What is done to each image."""

    @property
    def seed(self) -> int:
        """Seed of the initial weights and of the batches."""

    def rate(self, step: int, *, steps_per_epoch: int) -> float:
        """Give the learning rate of a step.

        Args:
            step: number of the step, from 0.
            steps_per_epoch: steps in an epoch.
        """

    def facts(self) -> dict[str, str]:
        """Give what the metadata of the weights say of this kind of recipe beside its repr."""


@final
@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave.

    Attributes:
        epoch: its number, from 1.
        epochs: how many there will be.
        loss: mean training loss, in nats.
        accuracy: share of the training images, augmented and noisy as they were seen, classified rightly as the
            weights moved.
        learning_rate: the rate of its last step.
        seconds: wall-clock time.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float


@final
@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands.

    Attributes:
        step: steps done in all, those of an earlier process included.
        steps: steps there will be.
        report: of the epoch that this step ended; None in the middle of an epoch.
    """

    step: int
    steps: int
    report: EpochReport | None


@final
@dataclass(frozen=True)
class TrainedModel:
    """Weights, and all that a loader must know of them.

    Attributes:
        recipe: what made them.
        num_classes: number of logits.
        input_shape: (channels, height, width).
        mean: what is subtracted from each channel before the network, in units of [0, 1].
        std: what each channel is divided by.
        state_dict: weights on the CPU, float32 as a training gives them.
        history: one report an epoch.
    """

    recipe: Recipe
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    state_dict: dict[str, Tensor]
    history: tuple[EpochReport, ...]

    @property
    def finished(self) -> bool:
        """Whether all epochs of the recipe were run."""
        return len(self.history) == self.recipe.epochs

    def network(self) -> nn.Module:
        """Build the network with these weights.

        Returns:
            The network in evaluation mode, on the CPU; it takes inputs that are already normalized.
        """
        net = build(self.recipe.arch, num_classes=self.num_classes)
        net.load_state_dict(self.state_dict)
        return net.eval()


class Verdict(NamedTuple):
    """What a learner says of one batch.

    Attributes:
        loss: mean loss, in nats, with its gradient.
        right: how many predictions were right, a whole number on the device.
        judged: how many predictions there were.
    """

    loss: Tensor
    right: Tensor
    judged: int


class Learner(ABC):
    """Network, optimizer and loss of one training.

    Attributes:
        net: the network as it is trained.
        optimizer: what moves its parameters.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def judge(self, batch: Batch) -> Verdict:
        """Run a batch forward.

        Args:
            batch: images, labels, and the generator of their noise.

        Returns:
            Its loss, and how many predictions were right.
        """

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Give the weights of the plain architecture.

        Returns:
            Tensors by name, as `calipers.sources.architectures.build` names them.
        """


def cosine_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Give the learning rate of a step: a linear rise, then half a cosine that falls to zero.

    Args:
        step: number of the step, from 0.
        peak: the largest rate.
        warmup: steps of the rise.
        steps: steps in all.

    Returns:
        The rate.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def fit(
    recipe: Recipe,
    make: Callable[[Normalization, torch.device], Learner],
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    mean: Iterable[float] | None,
    std: Iterable[float] | None,
    device: torch.device | str,
    checkpoint: Path | None,
    progress: Callable[[TrainingProgress], None] | None,
    stop: Callable[[], bool] | None,
) -> TrainedModel:
    """Run the epochs of a recipe, or those that a checkpoint of the same training lacks.

    After every epoch the checkpoint holds the whole state. A training that was cut off and resumed ends on
    the CPU, with the same number of threads, with the weights of one that was not, bit for bit.

    Args:
        recipe: what to train and how.
        make: makes the learner, with the initial weights of the recipe's seed, for a normalization, on a
            device.
        images: of shape (n, channels, height, width), uint8 in 0 to 255 or float32 in [0, 1].
        labels: whole numbers from 0 to num_classes - 1, of shape (n,).
        num_classes: number of classes.
        mean: one number a channel, subtracted before the network; that of the images if None.
        std: one number a channel, divided by; that of the images if None.
        device: where to train.
        checkpoint: file to go on from and to write after each epoch.
        progress: called after every step.
        stop: asked after every epoch; where it says yes, the training ends there and can be resumed.

    Returns:
        The weights after the last epoch that was run.
    """
    check_images(recipe.arch, images, labels, num_classes=num_classes)
    keep_freed_memory()
    normalization = measure_normalization(images, mean=mean, std=std)
    place = torch.device(device)
    data = TrainingData(
        images, labels.long(), batch_size=recipe.batch_size, augment=recipe.augment, device=place
    )
    learner = make(normalization, place)
    key = {
        "recipe": repr(recipe),
        "data": data_digest(images, labels) if checkpoint is not None else "",
        "normalization": repr(normalization),
        "device": place.type,
    }
    history: list[EpochReport] = []
    if checkpoint is not None:
        state = read_checkpoint(checkpoint, key=key)
        if state is not None:
            learner.net.load_state_dict(state["net"])
            learner.optimizer.load_state_dict(state["optimizer"])
            history = [EpochReport(**report) for report in state["history"]]
    stopped = False
    while len(history) < recipe.epochs and not stopped:
        history.append(_run_epoch(recipe, learner, data, len(history), progress))
        if checkpoint is not None:
            state = {
                "net": learner.net.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
                "history": [asdict(report) for report in history],
            }
            write_checkpoint(checkpoint, key=key, state=state)
        stopped = stop is not None and stop()
    return TrainedModel(
        recipe=recipe,
        num_classes=num_classes,
        input_shape=input_shape(recipe.arch),
        mean=normalization[0],
        std=normalization[1],
        state_dict={name: value.cpu().contiguous().clone() for name, value in learner.weights().items()},
        history=tuple(history),
    )


def _run_epoch(
    recipe: Recipe,
    learner: Learner,
    data: TrainingData,
    epoch: int,
    progress: Callable[[TrainingProgress], None] | None,
) -> EpochReport:
    started = time.perf_counter()
    learner.net.train()
    loss_sum = torch.zeros((), dtype=torch.float64, device=data.device)
    right = torch.zeros((), dtype=torch.int64, device=data.device)
    judged = 0
    step, steps = epoch * data.batches, recipe.epochs * data.batches
    rate = recipe.learning_rate
    for batch in data.epoch(recipe.seed, epoch):
        rate = recipe.rate(step, steps_per_epoch=data.batches)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        verdict = learner.judge(batch)
        learner.optimizer.zero_grad(set_to_none=True)
        verdict.loss.backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        loss_sum += verdict.loss.detach()
        right += verdict.right
        judged += verdict.judged
        step += 1
        if progress is not None and step < (epoch + 1) * data.batches:
            progress(TrainingProgress(step, steps, None))
    report = EpochReport(
        epoch=epoch + 1,
        epochs=recipe.epochs,
        loss=loss_sum.item() / data.batches,
        accuracy=right.item() / judged,
        learning_rate=rate,
        seconds=time.perf_counter() - started,
    )
    if not math.isfinite(report.loss):
        raise UsageError(
            f"the loss became {report.loss} in epoch {epoch + 1} with learning_rate "
            f"{recipe.learning_rate}: give a smaller one"
        )
    if progress is not None:
        progress(TrainingProgress(step, steps, report))
    return report
