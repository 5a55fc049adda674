"""Training: from a data reference and a recipe to a file of weights; the same call goes on after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import numpy as np

from calipers.errors import InvalidInput, StoreNotWritable
from calipers.sources.datasets import load_dataset
from calipers.sources.inputs import NO_LABEL, Dataset

if TYPE_CHECKING:
    from torch import Tensor

    from calipers.training.loop import Recipe, TrainedModel, TrainingProgress

__all__ = ["Arrays", "Kind", "Trained", "TrainingStep", "arrays_of", "train"]

Kind = Literal["noise", "lipschitz", "adversarial"]


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


class _Course(NamedTuple):
    """A recipe, what runs it, and the levels of noise at which its network is measured at the end."""

    recipe: Recipe
    run: Callable[..., TrainedModel]
    sigmas: tuple[float, ...]


def train(
    kind: Kind,
    fields: Mapping[str, object],
    *,
    data: str,
    output: Path,
    test: str | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    compile_mode: str | None = None,
    trust_code: bool = False,
    on_step: Callable[[TrainingStep], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Trained:
    """Train a network by a recipe and write its weights, plain ones.

    After each epoch the state is written to the checkpoint, from which the same call goes on; it is removed
    when the weights are written.

    Args:
        kind: the recipe: ``noise``, ``lipschitz`` or ``adversarial``.
        fields: its fields, by name.
        data: the reference of the training data.
        output: the file of the weights, safetensors; one that is there is left alone.
        test: the reference of data on which the accuracy is measured at the end.
        checkpoint: the file of the state; beside the output if None.
        device: where to train.
        compile_mode: the mode of torch.compile, for ``noise``; None runs eagerly.
        trust_code: whether code of the user's may be run (``python:`` references).
        on_step: told after every step.
        on_note: told in words what is trained on.

    Returns:
        The file, and what was measured.

    Raises:
        StoreNotWritable: if the file of the weights is there already.
    """
    from calipers.training.accuracy import accuracy
    from calipers.training.weights import save_weights

    recipe, run, sigmas = _course(kind, fields, compile_mode)
    if output.exists():
        raise StoreNotWritable(f"{output} is there already: name another file with -o, or remove it")
    state = checkpoint or output.with_name(output.name + ".checkpoint")
    state.parent.mkdir(parents=True, exist_ok=True)
    images, labels, classes = arrays_of(load_dataset(data, trust_code=trust_code))
    tested = None if test is None else arrays_of(load_dataset(test, trust_code=trust_code))
    if on_note is not None:
        on_note(f"{len(images)} images of {data}, {classes} classes; {recipe!r}")

    def tell(at: TrainingProgress) -> None:
        if on_step is not None:
            report = at.report
            epoch = at.step * recipe.epochs // at.steps
            loss, share = (None, None) if report is None else (report.loss, report.accuracy)
            on_step(TrainingStep(at.step, at.steps, epoch, recipe.epochs, loss, share))

    model = run(recipe, images, labels, num_classes=classes, device=device, checkpoint=state, progress=tell)
    measured: dict[str, float] = {}
    if tested is not None:
        net = model.network()
        for sigma in sigmas:
            noise = f"noise sigma {sigma:g}" if sigma else "clean"
            measured[f"{len(tested.labels)} test images, {noise}"] = accuracy(
                net,
                tested.images,
                tested.labels,
                mean=model.mean,
                std=model.std,
                sigma=sigma,
                seed=recipe.seed,
            )
    save_weights(output, model, data=data, accuracy=measured)
    state.unlink(missing_ok=True)
    return Trained(output, recipe.arch, repr(recipe), measured, len(images))


def _course(kind: Kind, fields: Mapping[str, Any], compile_mode: str | None) -> _Course:
    # The fields are checked by the recipe.
    match kind:
        case "noise":
            from calipers.training import noise

            recipe = noise.NoiseTraining(**fields)
            run = partial(noise.train, compile_mode=compile_mode)
            return _Course(recipe, run, tuple(sorted({0.0, recipe.sigma})))
        case "lipschitz":
            from calipers.training import lipschitz

            return _Course(lipschitz.LipschitzTraining(**fields), lipschitz.train, (0.0,))
        case "adversarial":
            from calipers.training import adversarial

            return _Course(adversarial.AdversarialTraining(**fields), adversarial.train, (0.0,))


class Arrays(NamedTuple):
    """A whole labelled data set in memory.

    Args:
        images: of shape (n, channels, height, width): uint8 where they are 8-bit images, float32 in [0, 1] otherwise.
        labels: their classes (n,), int64.
        num_classes: the number of classes.
    """

    images: Tensor
    labels: Tensor
    num_classes: int


def arrays_of(data: Dataset) -> Arrays:
    """Read a whole labelled data set.

    Args:
        data: the data set.

    Returns:
        All images, their labels and the number of classes.

    Raises:
        InvalidInput: if one has no label.
    """
    import torch

    labels = data.labels[data.indices]
    if not data.labelled:
        index = int(data.indices[np.flatnonzero(labels == NO_LABEL)[0]])
        raise InvalidInput(f"{data.name}: input {index} has no label: training needs one for each image")
    num_classes = data.num_classes or int(data.labels.max()) + 1
    images = np.empty((len(data), *data.shape), dtype=np.uint8)
    for place, example in enumerate(data):
        levels = np.rint(example.image * 255)
        images[place] = levels.astype(np.uint8)
        if not np.array_equal(levels / np.float32(255), example.image):
            floats = np.stack([example.image for example in data])
            return Arrays(torch.from_numpy(floats), torch.from_numpy(labels.copy()), num_classes)
    return Arrays(torch.from_numpy(images), torch.from_numpy(labels.copy()), num_classes)
