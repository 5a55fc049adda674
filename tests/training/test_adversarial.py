"""Adversarial training: that it withstands what plain training does not, in its norm, and that it can be cut off."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from calipers.attacks.pgd import PGD
from calipers.errors import UsageError
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel
from calipers.training.adversarial import AdversarialTraining, train
from calipers.training.loop import TrainedModel, TrainingProgress

EPS = 0.1
RECIPE = AdversarialTraining(arch="cnn28", eps=EPS, epochs=3, batch_size=20, steps=3, seed=5)


def _features(n: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images with a faint feature on all pixels that is always right, and a clear one that seldom errs.

    The faint one, 8 of 255, is within reach of an attack of a tenth; the clear one, a square of 150, is not.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    shown = torch.where(torch.rand(n, generator=generator) < 0.1, 1 - labels, labels)
    images = torch.randint(60, 80, (n, 1, 28, 28), generator=generator)
    images += torch.where(labels == 1, 16, 0).view(-1, 1, 1, 1)
    images[shown == 1, :, 10:18, 10:18] += 150
    return images.to(torch.uint8), labels


IMAGES, LABELS = _features(200)


def _withstands(model: TrainedModel, norm: Norm, eps: float) -> float:
    images, labels = _features(100, seed=1)
    target = Target(
        model.network(), num_classes=2, input_shape=model.input_shape, mean=model.mean, std=model.std
    )
    found = PGD(steps=10)(target, images / 255, labels, ThreatModel(norm, eps), seed=0)
    return 1 - float(found.success.float().mean())


def _equal(one: TrainedModel, other: TrainedModel) -> bool:
    return all(torch.equal(one.state_dict[name], other.state_dict[name]) for name in one.state_dict)


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 1.4)])
def test_the_network_withstands_attacks_that_a_plain_one_does_not(norm: str, eps: float) -> None:
    recipe = replace(RECIPE, norm=norm, eps=eps)  # type: ignore[arg-type]
    hardened = train(recipe, IMAGES, LABELS, num_classes=2)
    plain = train(replace(recipe, eps=0.0), IMAGES, LABELS, num_classes=2)
    assert hardened.finished
    assert _withstands(plain, Norm(norm), 0.0) > 0.95
    assert _withstands(plain, Norm(norm), eps) < 0.3
    assert _withstands(hardened, Norm(norm), eps) > 0.7


def test_each_step_of_the_ascent_makes_the_batch_harder() -> None:
    def first_loss(steps: int, eps: float) -> float:
        recipe = replace(RECIPE, steps=steps, eps=eps, epochs=1, learning_rate=1e-12, step_size=0.3)
        return train(recipe, IMAGES, LABELS, num_classes=2).history[0].loss

    assert first_loss(1, 0.0) < first_loss(1, 0.05) < first_loss(4, 0.05) < first_loss(4, 0.1)


def test_batch_normalization_learns_from_the_points_that_are_trained_on_alone() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    recipe = AdversarialTraining(arch="resnet20", eps=0.05, epochs=1, batch_size=4, steps=3)
    model = train(recipe, images, torch.arange(8) % 2, num_classes=2)
    assert int(model.state_dict["bn1.num_batches_tracked"]) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_cut_off_and_resumed_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, precision: str
) -> None:
    recipe = replace(RECIPE, precision=precision, augment="flip-crop", epochs=2)  # type: ignore[arg-type]
    images, labels = IMAGES[:100], LABELS[:100]
    whole = train(recipe, images, labels, num_classes=2)
    path = tmp_path / "training.checkpoint"

    class CutError(Exception):
        pass

    def cut(progress: TrainingProgress) -> None:
        if progress.step == 8:  # in the middle of the second epoch of five steps
            raise CutError

    with pytest.raises(CutError):
        train(recipe, images, labels, num_classes=2, checkpoint=path, progress=cut)
    steps: list[int] = []
    resumed = train(
        recipe, images, labels, num_classes=2, checkpoint=path, progress=lambda p: steps.append(p.step)
    )
    assert steps == list(range(6, 11))
    assert _equal(whole, resumed)


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    small = replace(RECIPE, epochs=1, steps=1)
    before = torch.get_rng_state()
    first = train(small, IMAGES, LABELS, num_classes=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert _equal(first, train(small, IMAGES, LABELS, num_classes=2))
    assert not _equal(first, train(replace(small, seed=6), IMAGES, LABELS, num_classes=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vgg"}, "'vgg'"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": math.nan}, "eps is nan"),
        ({"norm": "l1"}, "'l1'.*linf, l2"),
        ({"steps": 0}, "steps is 0"),
        ({"step_size": 0.0}, "step_size is 0.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"warmup_epochs": -1.0}, "warmup_epochs is -1.0"),
        ({"augment": "mixup"}, "'mixup'"),
        ({"precision": "fp16"}, "'fp16'"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_a_recipe_refuses_a_value_that_means_nothing(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdversarialTraining(**{**asdict(RECIPE), **change})  # type: ignore[arg-type]
