"""Training for a Lipschitz constant: what it learns, that it stretches nothing, and that it can be cut off."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calipers.errors import UsageError
from calipers.training.lipschitz import LipschitzTraining, train
from calipers.training.loop import TrainedModel, TrainingProgress

RECIPE = LipschitzTraining(arch="lipconv28", epochs=3, batch_size=20, learning_rate=0.01, seed=5)


def _halves(n: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose upper (class 0) or lower (class 1) half is bright, with some dirt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    images = torch.randint(0, 60, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :14] += 150
    images[labels == 1, :, 14:] += 150
    return images, labels


IMAGES, LABELS = _halves(100)


def _largest_stretch(model: TrainedModel) -> float:
    """Product of the layers' norms, each by the singular values of its matrix, in float64."""
    net = model.network().double()
    product, x = 1.0, torch.zeros(1, *model.input_shape, dtype=torch.float64)
    for layer in net:  # type: ignore[attr-defined]
        if isinstance(layer, torch.nn.Linear):
            product *= float(np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)[0])
        elif isinstance(layer, torch.nn.Conv2d):
            # The matrix of a convolution, column by column, is what it makes of unit images
            size = x.shape[2] // 2 if layer.kernel_size == layer.stride else x.shape[2]
            small = min(size, 4)
            units = torch.eye(x.shape[1] * small * small, dtype=torch.float64)
            columns = torch.nn.functional.conv2d(
                units.view(-1, x.shape[1], small, small),
                layer.weight.detach(),
                stride=layer.stride,
                padding=layer.padding,  # type: ignore[arg-type]
            )
            product *= float(np.linalg.svd(columns.flatten(1).numpy(), compute_uv=False)[0])
        x = layer(x)
    return product


def _equal(one: TrainedModel, other: TrainedModel) -> bool:
    return all(torch.equal(one.state_dict[name], other.state_dict[name]) for name in one.state_dict)


@pytest.mark.parametrize("arch", ["lipconv28", "lipmlp28"])
def test_a_network_learns_with_a_margin_and_its_plain_layers_stretch_nothing(arch: str) -> None:
    model = train(replace(RECIPE, arch=arch), IMAGES, LABELS, num_classes=2)
    assert model.finished
    assert _largest_stretch(model) < 1 + 1e-5
    images, labels = _halves(200, seed=1)
    with torch.no_grad():
        logits = model.network()(images / 255 - torch.tensor(model.mean).view(1, -1, 1, 1))
    margins = logits[torch.arange(200), labels] - logits[torch.arange(200), 1 - labels]
    assert (margins / math.sqrt(2) > 0.5).float().mean() > 0.95


def test_a_convolution_of_overlapping_patches_stretches_nothing_either() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), generator=generator, dtype=torch.uint8)
    recipe = LipschitzTraining(arch="lipconv32", epochs=1, batch_size=4)
    model = train(recipe, images, torch.arange(16) % 2, num_classes=2)
    assert _largest_stretch(model) < 1 + 1e-5


def test_images_are_shifted_and_never_scaled() -> None:
    model = train(replace(RECIPE, epochs=1), IMAGES, LABELS, num_classes=2)
    assert model.std == (1.0,)
    assert model.mean == (round((IMAGES.double() / 255).mean().item(), 4),)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_cut_off_and_resumed_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, precision: str
) -> None:
    recipe = replace(RECIPE, precision=precision, augment="flip-crop")  # type: ignore[arg-type]
    whole = train(recipe, IMAGES, LABELS, num_classes=2)
    path = tmp_path / "training.checkpoint"

    class CutError(Exception):
        pass

    def cut(progress: TrainingProgress) -> None:
        if progress.step == 8:  # in the middle of the second epoch of five steps
            raise CutError

    with pytest.raises(CutError):
        train(recipe, IMAGES, LABELS, num_classes=2, checkpoint=path, progress=cut)
    steps: list[int] = []
    resumed = train(
        recipe, IMAGES, LABELS, num_classes=2, checkpoint=path, progress=lambda p: steps.append(p.step)
    )
    assert steps == list(range(6, 16))
    assert _equal(whole, resumed)
    assert [report.loss for report in whole.history] == [report.loss for report in resumed.history]


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    small = replace(RECIPE, epochs=1)
    before = torch.get_rng_state()
    first = train(small, IMAGES, LABELS, num_classes=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert _equal(first, train(small, IMAGES, LABELS, num_classes=2))
    assert not _equal(first, train(replace(small, seed=6), IMAGES, LABELS, num_classes=2))


def test_a_loss_that_leaves_the_numbers_ends_the_training_and_names_the_rate() -> None:
    with pytest.raises(UsageError, match=r"learning_rate 1e\+30"):
        train(replace(RECIPE, learning_rate=1e30), IMAGES, LABELS, num_classes=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vgg"}, "'vgg'"),
        ({"arch": "cnn28"}, r"cnn28.*conv1 \(Conv2d\)"),
        ({"arch": "resnet20"}, r"resnet20.*conv1 \(Conv2d\)"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"margin": math.nan}, "margin is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"augment": "mixup"}, "'mixup'"),
        ({"precision": "fp16"}, "'fp16'"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_a_recipe_refuses_a_value_that_means_nothing(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LipschitzTraining(**{**asdict(RECIPE), **change})  # type: ignore[arg-type]
