"""Noise training: what it learns, that it can be cut off anywhere, and what it refuses."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from calipers.errors import InvalidInput, UsageError
from calipers.training.accuracy import accuracy
from calipers.training.batches import Batch
from calipers.training.loop import TrainedModel, TrainingProgress
from calipers.training.noise import NoiseTraining, _Trainer, train

RECIPE = NoiseTraining(arch="cnn28", sigma=0.2, epochs=3, batch_size=20, learning_rate=0.02, seed=5)


def _halves(n: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose upper (class 0) or lower (class 1) half is bright, with some dirt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    images = torch.randint(0, 60, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    images[labels == 0, :, :14] += 150
    images[labels == 1, :, 14:] += 150
    return images, labels


IMAGES, LABELS = _halves(100)


def _weights(model: TrainedModel) -> list[torch.Tensor]:
    return [model.state_dict[name] for name in sorted(model.state_dict)]


def _equal(one: TrainedModel, other: TrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_weights(one), _weights(other), strict=True))


def _losses(model: TrainedModel) -> list[float]:
    return [report.loss for report in model.history]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sigma": 0.0},
        {"optimizer": "adamw", "learning_rate": 0.001, "augment": "flip-crop"},
        {"draws": 2, "consistency": 2.0},
        {"precision": "bf16", "schedule": "step"},
    ],
    ids=str,
)
def test_a_recipe_learns_what_can_be_learned(change: dict[str, object]) -> None:
    recipe = replace(RECIPE, epochs=4, **change)  # type: ignore[arg-type]
    model = train(recipe, IMAGES, LABELS, num_classes=2)
    images, labels = _halves(200, seed=1)
    net = model.network()
    measured = accuracy(net, images, labels, mean=model.mean, std=model.std, sigma=recipe.sigma, draws=2)
    assert measured > 0.97
    assert model.history[-1].accuracy > 0.9
    assert model.finished


@pytest.mark.parametrize(("optimizer", "augment"), [("sgd", "flip-crop"), ("adamw", "none")])
def test_a_training_cut_off_and_resumed_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, optimizer: str, augment: str
) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, augment=augment, draws=2, consistency=1.0)  # type: ignore[arg-type]
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
    assert _losses(whole) == _losses(resumed)


def test_a_resumed_residual_network_keeps_its_batch_statistics(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(16) % 3
    recipe = NoiseTraining(arch="resnet20", sigma=0.1, epochs=2, batch_size=8)
    whole = train(recipe, images, labels, num_classes=3)
    path = tmp_path / "training.checkpoint"
    part = train(recipe, images, labels, num_classes=3, checkpoint=path, stop=lambda: True)
    assert not part.finished
    assert len(part.history) == 1
    resumed = train(recipe, images, labels, num_classes=3, checkpoint=path)
    assert _equal(whole, resumed)
    assert "bn1.running_mean" in resumed.state_dict


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "training.checkpoint"
    first = train(RECIPE, IMAGES, LABELS, num_classes=2, checkpoint=path)
    steps: list[TrainingProgress] = []
    again = train(RECIPE, IMAGES, LABELS, num_classes=2, checkpoint=path, progress=steps.append)
    assert steps == []
    assert again.history == first.history
    assert _equal(first, again)


def test_the_checkpoint_of_another_recipe_or_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.checkpoint"
    train(RECIPE, IMAGES, LABELS, num_classes=2, checkpoint=path, stop=lambda: True)
    with pytest.raises(UsageError, match=r"recipe .*sigma=0\.2.*sigma=0\.3"):
        train(replace(RECIPE, sigma=0.3), IMAGES, LABELS, num_classes=2, checkpoint=path)
    with pytest.raises(UsageError, match="data"):
        train(RECIPE, IMAGES, 1 - LABELS, num_classes=2, checkpoint=path)


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first = train(RECIPE, IMAGES, LABELS, num_classes=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert _equal(first, train(RECIPE, IMAGES, LABELS, num_classes=2))
    assert not _equal(first, train(replace(RECIPE, seed=6), IMAGES, LABELS, num_classes=2))


def test_noise_is_added_in_units_of_the_image_with_a_fresh_draw_for_each_copy() -> None:
    recipe = replace(RECIPE, sigma=0.3, draws=3)
    trainer = _Trainer(recipe, 2, ((0.5,), (0.01,)), torch.device("cpu"), None)
    images = torch.rand(50, 28, 28, 1, generator=torch.Generator().manual_seed(0))
    x = trainer._noisy(Batch(images, torch.zeros(50), torch.Generator().manual_seed(1)))
    noise = (x.permute(0, 2, 3, 1) - images.repeat(3, 1, 1, 1)).view(3, -1)
    assert noise.std(dim=1).sub(0.3).abs().max() < 0.01
    assert noise.mean(dim=1).abs().max() < 0.01
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.03
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.min() < -0.5  # not clipped


def test_the_mean_and_deviation_of_the_images_are_measured_or_given() -> None:
    model = train(replace(RECIPE, epochs=1), IMAGES, LABELS, num_classes=2)
    pixels = IMAGES.double() / 255
    assert model.mean == (round(pixels.mean().item(), 4),)
    assert model.std == (round(pixels.std(correction=0).item(), 4),)
    given = train(
        replace(RECIPE, epochs=1), IMAGES.float() / 255, LABELS, num_classes=2, mean=[0.1], std=[2.0]
    )
    assert (given.mean, given.std) == ((0.1,), (2.0,))
    with pytest.raises(UsageError, match="std has 3 values"):
        train(RECIPE, IMAGES, LABELS, num_classes=2, std=[1, 1, 1])
    with pytest.raises(UsageError, match=r"std is \(0.0,\)"):
        train(RECIPE, IMAGES, LABELS, num_classes=2, std=[0])


def test_bytes_and_their_fractions_give_the_same_network() -> None:
    small = replace(RECIPE, epochs=1)
    from_bytes = train(small, IMAGES, LABELS, num_classes=2)
    from_floats = train(small, IMAGES.float() / 255, LABELS, num_classes=2)
    assert _equal(from_bytes, from_floats)


def test_the_cosine_rate_warms_up_and_falls_to_zero() -> None:
    recipe = replace(RECIPE, epochs=10, learning_rate=1.0, warmup_epochs=2)
    rates = [recipe.rate(step, steps_per_epoch=4) for step in range(40)]
    assert rates[:8] == pytest.approx([0.125 * k for k in range(1, 9)])
    assert rates[8] == 1.0
    assert rates[24] == pytest.approx(0.5)
    assert rates[39] == pytest.approx((1 + math.cos(math.pi * 31 / 32)) / 2)
    assert 0 < rates[39] < 0.01


def test_the_step_rate_falls_to_a_tenth_after_each_third() -> None:
    recipe = replace(RECIPE, epochs=9, learning_rate=1.0, schedule="step")
    rates = [recipe.rate(2 * epoch, steps_per_epoch=2) for epoch in range(9)]
    assert rates == pytest.approx([1.0] * 3 + [0.1] * 3 + [0.01] * 3)


def test_progress_comes_after_each_step_with_a_report_at_the_end_of_an_epoch() -> None:
    seen: list[TrainingProgress] = []
    model = train(RECIPE, IMAGES, LABELS, num_classes=2, progress=seen.append)
    assert [p.step for p in seen] == list(range(1, 16))
    assert {p.steps for p in seen} == {15}
    assert [p.report for p in seen if p.report is not None] == list(model.history)
    assert [p.step for p in seen if p.report is not None] == [5, 10, 15]
    assert [r.epoch for r in model.history] == [1, 2, 3]


def test_a_loss_that_leaves_the_numbers_ends_the_training_and_names_the_rate() -> None:
    with pytest.raises(UsageError, match=r"learning_rate 1e\+20"):
        train(replace(RECIPE, learning_rate=1e20), IMAGES, LABELS, num_classes=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vgg"}, "'vgg'"),
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"draws": 0}, "draws is 0"),
        ({"consistency": 1.0}, "draws is 1"),
        ({"consistency": 1.0, "draws": 2, "sigma": 0.0}, "sigma is 0.0"),
        ({"augment": "mixup"}, "'mixup'"),
        ({"optimizer": "adam"}, "'adam'"),
        ({"precision": "fp16"}, "'fp16'"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_a_recipe_refuses_a_value_that_means_nothing(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NoiseTraining(**{**asdict(RECIPE), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 28, 28, dtype=torch.uint8), torch.zeros(4).long(), r"\(4, 28, 28\)"),
        (torch.zeros(4, 1, 32, 32, dtype=torch.uint8), torch.zeros(4).long(), r"\(4, 1, 32, 32\)"),
        (torch.zeros(4, 1, 28, 28).double(), torch.zeros(4).long(), "float64"),
        (torch.full((4, 1, 28, 28), 1.5), torch.zeros(4).long(), r"\[0, 1\]"),
        (torch.full((4, 1, 28, 28), math.nan), torch.zeros(4).long(), "NaN"),
        (torch.zeros(4, 1, 28, 28), torch.zeros(3).long(), r"labels of shape \(3,\)"),
        (torch.zeros(0, 1, 28, 28), torch.zeros(0).long(), "0 images"),
        (torch.zeros(4, 1, 28, 28), torch.zeros(4), "labels are torch.float32"),
        (torch.zeros(4, 1, 28, 28), torch.tensor([0, 1, 2, 1]), "from 0 to 2"),
        (torch.zeros(4, 1, 28, 28), torch.tensor([0, 1, -1, 1]), "from -1 to 1"),
    ],
    ids=str,
)
def test_data_that_cannot_be_trained_on_are_refused(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        train(RECIPE, images, labels, num_classes=2)


def test_data_whose_images_are_all_alike_are_refused_for_their_deviation() -> None:
    with pytest.raises(UsageError, match=r"std is \(0.0,\)"):
        train(RECIPE, torch.zeros(4, 1, 28, 28), torch.tensor([0, 1, 0, 1]), num_classes=2)
