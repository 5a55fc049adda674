"""Training: from a data reference and a recipe to a file of weights; the same call goes on after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from calipers.errors import InvalidInput, StoreNotWritable
from calipers.sources.datasets import load_dataset
from calipers.sources.inputs import NO_LABEL, Dataset

if TYPE_CHECKING:
    from torch import Tensor

    from calipers.training.loop import Recipe, TrainedModel, TrainingProgress

    _Tell = Callable[[TrainingProgress], None]

__all__ = ["Trained", "TrainingStep", "arrays_of", "train_adversarial", "train_lipschitz", "train_noise"]


@final
@dataclass(frozen=True)
class TrainingStep:
    """How far a training is.

    Args:
        step: steps done in all.
        steps: steps there will be.
        epoch: epochs done in all.
        epochs: epochs there will be.
        loss: mean loss of the epoch that this step ended, in nats; None within an epoch.
        accuracy: share of its training images, noisy if the recipe is, that were classified rightly; None likewise.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float | None
    accuracy: float | None


@final
@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Args:
        path: the file of the weights.
        arch: the architecture.
        recipe: the repr of the recipe.
        accuracy: what was measured, each under a name that says on what.
        images: the number of training images.
    """

    path: Path
    arch: str
    recipe: str
    accuracy: dict[str, float]
    images: int


def train_noise(
    fields: Mapping[str, object],
    *,
    data: str,
    output: Path,
    test: str | None = None,
    num_classes: int | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    compile_mode: str | None = None,
    trust_code: bool = False,
    on_step: Callable[[TrainingStep], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Trained:
    """Train a network under Gaussian noise and write its weights.

    After each epoch the state is written to the checkpoint, from which the same call goes on; it is removed
    when the weights are written.

    Args:
        fields: the fields of the recipe, by name.
        data: the reference of the training data.
        output: the file of the weights, safetensors; one that is there is left alone.
        test: the reference of data on which the accuracy is measured at the end.
        num_classes: the number of classes; that of the data if None.
        checkpoint: the file of the state; beside the output if None.
        device: where to train.
        compile_mode: the mode of torch.compile; None runs eagerly.
        trust_code: whether code of the user's may be run (``python:`` references).
        on_step: told after every step.
        on_note: told in words what is trained on.

    Returns:
        The file, and what was measured.
    """
    from calipers.training.noise import NoiseTraining, train

    recipe = NoiseTraining(**fields)  # type: ignore[arg-type]  # checked there

    def run(images: Tensor, labels: Tensor, classes: int, state: Path, tell: _Tell) -> TrainedModel:
        return train(
            recipe,
            images,
            labels,
            num_classes=classes,
            device=device,
            compile_mode=compile_mode,
            checkpoint=state,
            progress=tell,
        )

    return _train(
        recipe,
        run,
        sigmas=(0.0, recipe.sigma),
        data=data,
        output=output,
        test=test,
        num_classes=num_classes,
        checkpoint=checkpoint,
        trust_code=trust_code,
        on_step=on_step,
        on_note=on_note,
    )


def train_lipschitz(
    fields: Mapping[str, object],
    *,
    data: str,
    output: Path,
    test: str | None = None,
    num_classes: int | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    trust_code: bool = False,
    on_step: Callable[[TrainingStep], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Trained:
    """Train a network whose layers stretch nothing and write its plain weights.

    After each epoch the state is written to the checkpoint, from which the same call goes on; it is removed
    when the weights are written.

    Args:
        fields: the fields of the recipe, by name.
        data: the reference of the training data.
        output: the file of the weights, safetensors; one that is there is left alone.
        test: the reference of data on which the accuracy is measured at the end.
        num_classes: the number of classes; that of the data if None.
        checkpoint: the file of the state; beside the output if None.
        device: where to train.
        trust_code: whether code of the user's may be run (``python:`` references).
        on_step: told after every step.
        on_note: told in words what is trained on.

    Returns:
        The file, and what was measured.
    """
    from calipers.training.lipschitz import LipschitzTraining, train

    recipe = LipschitzTraining(**fields)  # type: ignore[arg-type]  # checked there

    def run(images: Tensor, labels: Tensor, classes: int, state: Path, tell: _Tell) -> TrainedModel:
        return train(
            recipe, images, labels, num_classes=classes, device=device, checkpoint=state, progress=tell
        )

    return _train(
        recipe,
        run,
        sigmas=(0.0,),
        data=data,
        output=output,
        test=test,
        num_classes=num_classes,
        checkpoint=checkpoint,
        trust_code=trust_code,
        on_step=on_step,
        on_note=on_note,
    )


def train_adversarial(
    fields: Mapping[str, object],
    *,
    data: str,
    output: Path,
    test: str | None = None,
    num_classes: int | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    trust_code: bool = False,
    on_step: Callable[[TrainingStep], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Trained:
    """Train a network on what attacks find and write its weights.

    After each epoch the state is written to the checkpoint, from which the same call goes on; it is removed
    when the weights are written.

    Args:
        fields: the fields of the recipe, by name.
        data: the reference of the training data.
        output: the file of the weights, safetensors; one that is there is left alone.
        test: the reference of data on which the accuracy is measured at the end.
        num_classes: the number of classes; that of the data if None.
        checkpoint: the file of the state; beside the output if None.
        device: where to train.
        trust_code: whether code of the user's may be run (``python:`` references).
        on_step: told after every step.
        on_note: told in words what is trained on.

    Returns:
        The file, and what was measured.
    """
    from calipers.training.adversarial import AdversarialTraining, train

    recipe = AdversarialTraining(**fields)  # type: ignore[arg-type]  # checked there

    def run(images: Tensor, labels: Tensor, classes: int, state: Path, tell: _Tell) -> TrainedModel:
        return train(
            recipe, images, labels, num_classes=classes, device=device, checkpoint=state, progress=tell
        )

    return _train(
        recipe,
        run,
        sigmas=(0.0,),
        data=data,
        output=output,
        test=test,
        num_classes=num_classes,
        checkpoint=checkpoint,
        trust_code=trust_code,
        on_step=on_step,
        on_note=on_note,
    )


def _train(
    recipe: Recipe,
    run: Callable[[Tensor, Tensor, int, Path, _Tell], TrainedModel],
    *,
    sigmas: tuple[float, ...],
    data: str,
    output: Path,
    test: str | None,
    num_classes: int | None,
    checkpoint: Path | None,
    trust_code: bool,
    on_step: Callable[[TrainingStep], None] | None,
    on_note: Callable[[str], None] | None,
) -> Trained:
    # Read the data, run the recipe, measure the network at each level of noise, and write it
    from calipers.training.accuracy import accuracy
    from calipers.training.weights import save_weights

    if output.exists():
        raise StoreNotWritable(f"{output} is there already: name another file with -o, or remove it")
    state = checkpoint or output.with_name(output.name + ".checkpoint")
    state.parent.mkdir(parents=True, exist_ok=True)
    images, labels, classes = arrays_of(load_dataset(data, trust_code=trust_code), num_classes)
    tested = None if test is None else arrays_of(load_dataset(test, trust_code=trust_code), classes)
    if on_note is not None:
        on_note(f"{len(images)} images of {data}, {classes} classes; {recipe!r}")

    def tell(at: TrainingProgress) -> None:
        if on_step is not None:
            report = at.report
            epoch = at.step * recipe.epochs // at.steps
            loss, share = (None, None) if report is None else (report.loss, report.accuracy)
            on_step(TrainingStep(at.step, at.steps, epoch, recipe.epochs, loss, share))

    model = run(images, labels, classes, state, tell)
    measured: dict[str, float] = {}
    if tested is not None:
        net = model.network()
        for sigma in sorted(set(sigmas)):
            noise = f"noise sigma {sigma:g}" if sigma else "clean"
            measured[f"{len(tested[1])} test images, {noise}"] = accuracy(
                net, tested[0], tested[1], mean=model.mean, std=model.std, sigma=sigma, seed=recipe.seed
            )
    save_weights(output, model, data=data, accuracy=measured)
    state.unlink(missing_ok=True)
    return Trained(output, recipe.arch, repr(recipe), measured, len(images))


def arrays_of(data: Dataset, num_classes: int | None) -> tuple[Tensor, Tensor, int]:
    """Read a whole labelled data set.

    Args:
        data: the data set.
        num_classes: the number of classes; that of the data if None.

    Returns:
        All images, as bytes where they are 8-bit images and as float32 otherwise; their labels; the number of classes.

    Raises:
        InvalidInput: if one has no label.
    """
    import torch

    labels = data.labels[data.indices]
    if not data.labelled:
        index = int(data.indices[np.flatnonzero(labels == NO_LABEL)[0]])
        raise InvalidInput(f"{data.name}: input {index} has no label: training needs one for each image")
    images = np.empty((len(data), *data.shape), dtype=np.uint8)
    for place, example in enumerate(data):
        levels = np.rint(example.image * 255)
        images[place] = levels.astype(np.uint8)
        if not np.array_equal(levels / np.float32(255), example.image):
            floats = np.stack([example.image for example in data])
            return torch.from_numpy(floats), torch.from_numpy(labels.copy()), _classes(data, num_classes)
    return torch.from_numpy(images), torch.from_numpy(labels.copy()), _classes(data, num_classes)


def _classes(data: Dataset, num_classes: int | None) -> int:
    return num_classes or data.num_classes or int(data.labels.max()) + 1
