"""Adversarial training: each batch is moved to where the network errs most within a ball, and learned there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from calipers.sources.architectures import build, input_shape
from calipers.threat.norms import project, sample, steepest
from calipers.threat.threat_model import Norm
from calipers.training.batches import Augment, Batch
from calipers.training.fields import check_fields
from calipers.training.loop import Learner, TrainedModel, TrainingProgress, Verdict, cosine_rate, fit
from calipers.training.normalization import Normalization

__all__ = ["AdversarialTraining", "ascend", "train"]


@final
@dataclass(frozen=True)
class AdversarialTraining:
    r"""A recipe: what is trained and how; its repr is its entry in the metadata of the weights.

    The weights descend the saddle point

    .. math:: \min_\theta \mathbb{E}_{(x, y)} \max_{\|\delta\|_p \le \varepsilon} L(f_\theta(x + \delta), y)

    with L the cross-entropy, and the maximum sought by steps of projected gradient ascent inside the box [0, 1] from a
    random point of the ball, after augmentation and before normalization. Nothing is claimed of the weights here: what
    they withstand is to be measured by attacks that the training has not seen.

    Args:
        arch: name of the architecture.
        eps: size of the ball, in units of [0, 1].
        epochs: passes over the data.
        norm: the norm of the ball: `linf` or `l2`.
        steps: ascents for each batch.
        step_size: size of an ascent as a share of eps; 2.5 / steps if None.
        batch_size: images a step.
        learning_rate: the largest value of Adam's (with decoupled weight decay), which falls to zero by half a cosine.
        weight_decay: of every parameter.
        warmup_epochs: epochs in which the rate rises linearly before that.
        augment: what is done to each image.
        precision: `bf16` runs convolutions and products in bfloat16, weights stay float32.
        seed: seed of the initial weights, the order, the augmentation and the random points.

    A value out of its range raises `UsageError`.

    Reference: Madry et al. 2018, arXiv:1706.06083, equation 2.1 and section 2.1.

    Differs from the paper: the ascent runs in evaluation mode, so that batch normalization learns from the points that
    are trained on alone; l2; Adam.
    """

    arch: str
    eps: float
    epochs: int
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 7
    step_size: float | None = None
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
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
        return {"trained_for": f"resistance to {self.norm} attacks of {self.eps:g}"}


_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("linf", "l2"),
    "augment": ("none", "flip-crop"),
    "precision": ("fp32", "bf16"),
}


def train(
    recipe: AdversarialTraining,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    device: torch.device | str = "cpu",
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
        checkpoint: file to go on from and to write after each epoch.
        progress: called after every step.
        stop: asked after every epoch; where it says yes, the training ends there and can be resumed.

    Returns:
        The weights after the last epoch that was run.
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
        std=std,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
        stop=stop,
    )


def ascend(
    scores: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    noise: torch.Generator,
    *,
    eps: float,
    norm: Norm = Norm.LINF,
    steps: int = 7,
    step_size: float | None = None,
) -> Tensor:
    """Ascend the cross-entropy from a random point of the ball around each image.

    Args:
        scores: from images to logits.
        images: of shape (batch, channels, height, width), in [0, 1].
        labels: their classes, of shape (batch,).
        noise: where the random points come from.
        eps: size of the ball, in units of [0, 1].
        norm: its norm.
        steps: ascents.
        step_size: size of an ascent as a share of eps; 2.5 / steps if None.

    Returns:
        The end of each ascent, inside the ball and the box, of the shape of the images.
    """
    radius = torch.full((len(images),), eps, device=images.device)
    length = eps * (2.5 / steps if step_size is None else step_size)
    point = (images + sample(tuple(images.shape), radius, norm, noise)).clamp(0, 1)
    for _ in range(steps):
        leaf = point.detach().requires_grad_(True)
        loss = functional.cross_entropy(scores(leaf), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        delta = leaf.detach() + length * steepest(gradient, norm) - images
        point = (images + project(delta, radius, norm)).clamp(0, 1)
    return point


@final
class _Trainer(Learner):
    """Network and optimizer of one training."""

    def __init__(
        self,
        recipe: AdversarialTraining,
        num_classes: int,
        normalization: Normalization,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.device = device
        net = build(recipe.arch, num_classes=num_classes, seed=recipe.seed)
        self.net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=device.type == "cuda",
        )
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in normalization
        )

    def judge(self, batch: Batch) -> Verdict:
        images = batch.images.permute(0, 3, 1, 2)
        self.net.eval()
        worst = self._ascend(images, batch.labels, batch.noise)
        self.net.train()
        logits = self._scores(worst)
        loss = functional.cross_entropy(logits, batch.labels)
        return Verdict(loss, (logits.detach().argmax(1) == batch.labels).sum(), len(batch.labels))

    def weights(self) -> dict[str, Tensor]:
        return self.net.state_dict()

    def _ascend(self, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        """Return the end of the ascent from each image, inside the ball and the box."""
        recipe = self.recipe
        return ascend(
            self._scores,
            images,
            labels,
            noise,
            eps=recipe.eps,
            norm=Norm(recipe.norm),
            steps=recipe.steps,
            step_size=recipe.step_size,
        )

    def _scores(self, x: Tensor) -> Tensor:
        half = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            logits: Tensor = self.net((x - self.mean) / self.std)
        return logits.float()


def _check_recipe(recipe: AdversarialTraining) -> None:
    input_shape(recipe.arch)
    check_fields(
        recipe,
        not_negative=("eps", "weight_decay", "warmup_epochs"),
        counts=("epochs", "steps", "batch_size"),
        positive=("learning_rate",) if recipe.step_size is None else ("learning_rate", "step_size"),
        choices=_CHOICES,
    )
