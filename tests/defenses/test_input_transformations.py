"""Guo's transformations: what each does to an image, row by row, and what the attacks make of them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.defenses.input_transformations.average import AverageProbabilities, EachCrop, Ensemble
from calipers.defenses.input_transformations.bit_depth import BitDepth
from calipers.defenses.input_transformations.crop import RandomCrops
from calipers.defenses.input_transformations.defense import InputTransformations
from calipers.defenses.input_transformations.jpeg import Jpeg
from calipers.defenses.input_transformations.training import RETRAINED
from calipers.defenses.parts import BUNDLED, load_part, small_network, training_images
from calipers.errors import UsageError
from calipers.runs.catalog import named_defense
from calipers.runs.descriptions import build_attack, build_judge
from calipers.sources.datasets import load_dataset
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

DEFENSE = InputTransformations()
RANDOM = ("", "crop", "total-variation", "quilting")
FIXED = ("bit-depth", "jpeg", "undefended", "retrained")
_MADE: dict[str, Target] = {}


def target(variant: str) -> Target:
    if variant not in _MADE:
        _MADE[variant] = DEFENSE.target(variant)
    return _MADE[variant]


def test_images(count: int) -> tuple[Tensor, Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    rows = [data[index] for index in range(count)]
    return torch.stack([torch.from_numpy(row.image) for row in rows]), torch.tensor([r.label for r in rows])


test_images.__test__ = False  # type: ignore[attr-defined]


def noise(count: int, *, seed: int = 0) -> Tensor:
    return torch.rand((count, 1, 28, 28), generator=torch.Generator().manual_seed(seed))


def seeded(module: nn.Module, x: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        found: Tensor = module(x)
    return found


def test_three_bits_keep_eight_values_and_drop_five_bits_of_each_byte() -> None:
    every = torch.arange(256).view(1, 1, 16, 16) / 255
    kept = torch.tensor([(byte >> 5) << 5 for byte in range(256)]).view(1, 1, 16, 16) / 255
    assert torch.equal(BitDepth()(every), kept)
    assert len(BitDepth()(noise(2)).unique()) == 8


def test_reducing_bits_has_the_gradient_zero() -> None:
    x = noise(1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(BitDepth()(x).sum(), x)
    assert float(gradient.abs().max()) == 0


def test_jpeg_is_what_pillow_makes_of_each_image() -> None:
    x, _ = test_images(5)
    found = Jpeg()(x)
    for row, image in enumerate(x):
        file = BytesIO()
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(file, "JPEG", quality=75)
        expected = torch.from_numpy(np.array(Image.open(file))).float() / 255
        assert torch.equal(found[row, 0], expected)
    assert not torch.equal(found, Jpeg(quality=50)(x))


def test_jpeg_keeps_three_channels_apart() -> None:
    x = torch.zeros((1, 3, 16, 16))
    x[:, 0] = 1
    mean = Jpeg()(x).mean((0, 2, 3))
    assert mean[0] > 0.95 and mean[1] < 0.05 and mean[2] < 0.05


def test_what_leaves_autograd_stays_in_the_graph_with_the_gradient_zero() -> None:
    x = noise(1).requires_grad_(True)
    (gradient,) = torch.autograd.grad((Jpeg()(x) + 2 * x).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2))


def test_a_crop_is_cut_out_and_rescaled() -> None:
    x = noise(1)
    crops = RandomCrops(count=40)
    found = seeded(crops, x, 3)[0]
    expected = {
        (top, left): functional.interpolate(
            x[..., top : top + 24, left : left + 24], size=(28, 28), mode="bilinear", align_corners=False
        )[0, 0]
        for top in range(5)
        for left in range(5)
    }
    places = set()
    for crop in found:
        near = {place: float((crop[0] - other).abs().max()) for place, other in expected.items()}
        place = min(near, key=lambda one: near[one])
        assert near[place] < 1e-5
        places.add(place)
    assert len(places) > 15


def test_the_papers_share_of_a_side_is_a_configuration() -> None:
    assert RandomCrops(size=11).matrices.shape == (18, 28, 11 + 17)
    with pytest.raises(UsageError, match="crops are 30 of side 29"):
        RandomCrops(size=29)


def test_crops_are_averaged_as_probabilities() -> None:
    net = small_network().eval()
    crops = noise(2)[:, None].repeat(1, 3, 1, 1, 1)
    crops[:, 1] = 0
    expected = torch.stack([net(crops[:, crop]).softmax(1) for crop in range(3)]).mean(0)
    found = AverageProbabilities()(EachCrop(net)(crops))
    assert torch.allclose(found.exp(), expected, atol=1e-6)


def test_the_ensemble_averages_the_probabilities_of_its_members() -> None:
    x = noise(3)
    one, other = small_network().eval(), small_network().eval()
    expected = (one(x).softmax(1) + other(x).softmax(1)) / 2
    assert torch.allclose(Ensemble({"one": one, "other": other})(x).exp(), expected, atol=1e-6)


def test_the_ensemble_has_all_five() -> None:
    members = [name for name, _ in target("").module.get_submodule("net").named_children()]
    assert members == ["crop", "bit_depth", "jpeg", "total_variation", "quilting", "average"]


@pytest.mark.parametrize("variant", RANDOM)
def test_rows_draw_each_for_itself_and_anew_in_each_call(variant: str) -> None:
    module = target(variant).module
    x, _ = test_images(1)
    with torch.no_grad():
        first, again = seeded(module, x.repeat(4, 1, 1, 1), 0), seeded(module, x.repeat(4, 1, 1, 1), 1)
        same = seeded(module, x.repeat(4, 1, 1, 1), 0)
    apart = (first[:, None] - first[None]).abs().amax(2) + torch.eye(4)
    assert float(apart.min()) > 1e-4
    assert float((first - again).abs().amax(1).min()) > 1e-4
    assert torch.equal(first, same)


@pytest.mark.parametrize("variant", FIXED)
def test_a_batch_of_one_is_answered_as_in_a_batch_of_many(variant: str) -> None:
    module = target(variant).module
    x, _ = test_images(8)
    with torch.no_grad():
        alone = torch.cat([module(image[None]) for image in x])
        assert torch.allclose(module(x), alone, atol=1e-4)


def test_which_classifiers_draw_is_declared() -> None:
    assert [name for name in RANDOM if not target(name).stochastic] == []
    assert [name for name in FIXED if target(name).stochastic] == []


def test_every_row_is_stored_as_text_and_found_again() -> None:
    rows = DEFENSE.rows()
    for row in rows:
        assert build_attack(repr(row.attack)) == row.attack
        assert build_judge(repr(row.judge)) == row.judge
        assert row.variant in DEFENSE.targets()
        assert row.norm == "l2" and (row.eps or row.within) == "1.4"
    roles = {(row.family, row.role) for row in rows}
    families = {"ensemble", "crop", "bit-depth", "jpeg", "total-variation", "quilting"}
    needed = {"undefended", "naive", "matched", "adaptive"}
    assert roles >= {(family, role) for family in families for role in needed}


def test_matched_and_adaptive_differ_in_the_gradient_alone() -> None:
    rows = DEFENSE.rows()
    for family in {row.family for row in rows}:
        matched, adaptive = (
            next(row for row in rows if row.family == family and row.role == role)
            for role in ("matched", "adaptive")
        )
        assert isinstance(matched.attack, PGD) and isinstance(adaptive.attack, PGD)
        assert matched.attack.gradient != adaptive.attack.gradient
        assert (matched.attack.steps, matched.attack.loss, matched.attack.step_size) == (
            adaptive.attack.steps,
            adaptive.attack.loss,
            adaptive.attack.step_size,
        )
        assert (matched.judge, matched.variant) == (adaptive.judge, adaptive.variant)


def robust(family: str, role: str, count: int, draws: int) -> float:
    x, y = test_images(count)
    row = next(row for row in DEFENSE.rows() if (row.family, row.role) == (family, role))
    threat = ThreatModel(Norm.L2, float(row.eps))
    found = row.attack(target(row.variant), x, y, threat, seed=0, judge=Judge(draws=draws, rule="average"))
    return 1 - float(found.success.double().mean())


@pytest.mark.parametrize("family", ["bit-depth", "jpeg"])
def test_a_shattered_gradient_holds_until_bpda_comes(family: str) -> None:
    assert robust(family, "matched", 20, 1) >= 0.8
    assert robust(family, "adaptive", 20, 1) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["total-variation", "quilting"])
def test_random_transformations_fall_to_bpda_and_eot(family: str) -> None:
    naive, adaptive = (robust(family, role, 12, 12) for role in ("naive", "adaptive"))
    assert adaptive <= 0.15 < robust(family, "matched", 12, 12)
    assert adaptive < naive


@pytest.mark.slow
def test_clean_accuracy_is_kept() -> None:
    x, y = test_images(200)
    plain = float((target("undefended").predict(x) == y).double().mean())
    for variant in ("crop", "bit-depth", "jpeg", "total-variation", "quilting", ""):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            found = torch.cat([target(variant).predict(part) for part in x.split(100)])
        assert float((found == y).double().mean()) >= plain - 0.06, variant


def test_a_tiny_training_writes_what_loads(tmp_path: Path) -> None:
    images, labels = training_images()
    told: list[str] = []
    bytes_ = (images * 255).round().to(torch.uint8)
    DEFENSE.train(bytes_, labels, tmp_path, share=0.01, tell=told.append)
    assert (tmp_path / f"{RETRAINED}.safetensors").is_file() and told
    load_part(small_network(), RETRAINED, tmp_path)
    before = (tmp_path / f"{RETRAINED}.safetensors").stat().st_mtime_ns
    DEFENSE.train(bytes_, labels, tmp_path, share=0.01, tell=told.append)
    assert (tmp_path / f"{RETRAINED}.safetensors").stat().st_mtime_ns == before
    named = named_defense("input-transformations", weights=tmp_path)
    assert named.target("retrained").fingerprint != target("retrained").fingerprint


def test_what_ships_is_small() -> None:
    assert (BUNDLED / f"{RETRAINED}.safetensors").stat().st_size < 450_000
