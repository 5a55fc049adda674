"""The forms of defenses that train networks of their own: what is trained of colour images is measured as such."""

from pathlib import Path
from shutil import copyfile, copytree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.adversarial_training import AdversarialLoss, AdversarialTraining
from calipers.defenses.base import Defense
from calipers.defenses.cascade import Cascade, CascadeLoss
from calipers.defenses.form import COLOUR, GREY, form_of, form_of_part
from calipers.defenses.thermometer import Thermometer
from calipers.defenses.thermometer.defense import LogitSpaceLoss, encoded_network
from calipers.defenses.thermometer.encoding import next_bucket
from calipers.defenses.undefended import plain_loss, train_undefended
from calipers.errors import InvalidInput, UsageError
from calipers.gradients.bpda import BPDA
from calipers.runs import defense_training
from calipers.runs.case_rows import (
    COLOUR_FIGURE_SIZES,
    CaseRow,
    Question,
    case_rows,
    defense_names,
    figure_rows,
)
from calipers.runs.catalog import images_of_parts, load_model
from calipers.runs.defense_training import expected_minutes, train_defenses
from calipers.runs.descriptions import build_attack
from calipers.threat.threat_model import Norm, ThreatModel

THREE = ("thermometer", "adversarial-training", "cascade")
BALL = ThreatModel(Norm.LINF, 8 / 255)


def colour(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return x, torch.randint(0, 10, (count,), generator=generator)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a tiny training on colour images writes."""
    folder = tmp_path_factory.mktemp("parts")
    for kind in (Thermometer, AdversarialTraining, Cascade):
        kind(folder).train(*colour(256), folder, share=0.01, tell=lambda words: None)
    return folder


def test_images_of_neither_form_are_refused() -> None:
    assert form_of((3, 32, 32)) is COLOUR
    with pytest.raises(InvalidInput, match="images are 3x28x28: .* are for 1x28x28 and 3x32x32"):
        form_of((3, 28, 28))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Thermometer, {("linf", "8/255")}),
        (AdversarialTraining, {("linf", "8/255"), ("l2", "128/255"), ("l1", "12")}),
        (Cascade, {("linf", "4/255")}),
    ],
)
def test_what_was_trained_of_colour_images_is_measured_on_them(
    parts: Path, kind: type[Defense], sizes: set[tuple[str, str]]
) -> None:
    defense = kind(parts)
    assert defense.images() == (3, 32, 32)
    assert kind().images() == (1, 28, 28)
    assert {(row.norm, row.eps) for row in defense.rows()} == sizes
    assert [row.what for row in defense.rows()] == [row.what for row in kind().rows()]
    x = colour(3)[0].float() / 255
    for variant in defense.targets():
        target = defense.target(variant)
        assert target.input_shape == (3, 32, 32)
        assert target.logits(x).shape == (3, 10)
    for row in defense.rows():
        assert build_attack(repr(row.attack)) == row.attack


def test_no_row_of_colour_reaches_for_a_network_of_grey_images(parts: Path) -> None:
    """Transfer from what ships would find nothing, and say so in the defense's favour."""
    sources = set()
    for row in Thermometer(parts).rows():
        if isinstance(row.attack, Transfer):
            sources.add(row.attack.substitute)
    assert sources == {f"iclr2018:adversarial-training?weights={parts}"}
    loaded = load_model(sources.pop())
    assert loaded.fingerprint == AdversarialTraining(parts).target().fingerprint
    assert loaded.fingerprint == Thermometer(parts).target("undefended-adversarial").fingerprint


def test_examples_of_a_network_that_was_trained_again_are_asked_for_anew(parts: Path, tmp_path: Path) -> None:
    """A stored run of the earlier network's examples would be shown for the later one's."""
    folder = tmp_path / "parts"
    copytree(parts, folder)
    question = Question("folder:images", Path("runs"), folder, limit=2)

    def transferred() -> list[CaseRow]:
        return [row for row in case_rows(["thermometer"], question) if row.what.startswith("examples of")]

    before = transferred()
    assert transferred() == before
    copyfile(folder / "undefended.safetensors", folder / "adversarial-training.safetensors")
    after = transferred()
    assert len(before) == len(after) == 2
    assert not {row.path for row in before} & {row.path for row in after}
    found = build_attack(after[0].spec.method)
    assert isinstance(found, Transfer)
    assert found.fingerprint == Thermometer(folder).target("undefended").fingerprint
    (folder / "adversarial-training.safetensors").unlink()
    assert len(transferred()) == 2


def test_colour_channels_are_encoded_one_after_another_and_the_ramp_passes_them(parts: Path) -> None:
    x, y = colour(4)
    image = x.float() / 255
    target = Thermometer(parts).target()
    y = target.predict(image)
    blind = PGD(steps=2, random_start=False)(target, image, y, BALL, seed=0)
    assert set(blind.reason) == {"no gradient"}
    seeing = PGD(BPDA({"encoder": next_bucket}), steps=2)(target, image, y, BALL, seed=0)
    assert "no gradient" not in seeing.reason
    codes = encoded_network(COLOUR).get_submodule("encoder")(image)
    assert codes.shape == (4, 48, 32, 32)
    assert torch.equal(codes.view(4, 3, 16, 32, 32).sum(2), (0.99999 * image * 16).floor() + 1)


def test_a_folder_of_one_form_is_not_mixed_with_the_other(parts: Path) -> None:
    grey = torch.zeros(256, 1, 28, 28, dtype=torch.uint8)
    assert form_of_part("thermometer", parts) is COLOUR
    assert form_of_part("thermometer", None) is GREY
    for train in (train_undefended, Thermometer(parts).train, AdversarialTraining(parts).train):
        with pytest.raises(
            InvalidInput, match="is for CIFAR-10, 3x32x32, and the images are 1x28x28: choose"
        ):
            train(grey, torch.zeros(256).long(), parts, share=0.01, tell=lambda words: None)


@pytest.mark.parametrize("kind", [Thermometer, AdversarialTraining, Cascade])
def test_a_network_of_a_trial_is_not_compared_with_those_of_a_whole_training(
    parts: Path, tmp_path: Path, kind: type[Defense]
) -> None:
    """An undefended network of one epoch would make a defense look good."""
    copyfile(parts / "undefended.safetensors", tmp_path / "undefended.safetensors")
    with pytest.raises(InvalidInput, match="trained with --share 0.01 and not 1: choose another folder"):
        kind(tmp_path).train(*colour(256), tmp_path, share=1.0, tell=lambda words: None)
    kind(parts).train(*colour(256), parts, share=0.01, tell=lambda words: None)


def test_the_loss_of_adversarial_training_is_that_of_the_worst_point_of_a_linear_network() -> None:
    layer = nn.Linear(12, 2)
    net = nn.Sequential(nn.Flatten(), layer)
    x = torch.full((5, 3, 2, 2), 0.5)
    y = torch.tensor([0, 1, 0, 1, 1])
    weight, bias = layer.weight, layer.bias
    margin = ((weight[0] - weight[1]) * 0.5).sum() + bias[0] - bias[1]
    toll = 0.1 * (weight[0] - weight[1]).abs().sum()
    wanted = torch.stack([functional.softplus(-(margin if label == 0 else -margin) + toll) for label in y])
    found = AdversarialLoss(0.1)(net, x, y, torch.Generator().manual_seed(0))
    assert float(found.detach()) == pytest.approx(float(wanted.mean().detach()), rel=2e-2)  # bfloat16
    assert all(one.requires_grad for one in net.parameters())
    assert float(found.detach()) > float(plain_loss(net, x, y, torch.Generator()).detach()) * 1.02


def test_the_loss_of_logit_space_takes_colour_and_needs_the_ball() -> None:
    x, y = colour(6)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        net = encoded_network(COLOUR)
    image = x.float() / 255
    still = LogitSpaceLoss(0.0)(net, image, y, torch.Generator().manual_seed(0))
    assert float(still.detach()) == pytest.approx(
        float(plain_loss(net, image, y, torch.Generator()).detach()), rel=1e-3
    )
    moved = LogitSpaceLoss(8 / 255)(net, image, y, torch.Generator().manual_seed(0))
    assert float(moved.detach()) != pytest.approx(float(still.detach()), rel=1e-4)


def test_stored_colour_images_stand_for_half_of_the_adversarial_ones() -> None:
    x = colour(4)[0]
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5), nn.Linear(5, 10))
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    both = torch.cat([x, 255 - x], 1).float() / 255
    y = net(both[:, 3:]).argmin(1)  # far likelier where the image is clean
    found = CascadeLoss(most=0.0, weight=4.0, pull=0.0, channels=3)(
        net, both, y, torch.Generator().manual_seed(0)
    )
    clean, stored = both[:, :3], both[:, 3:]
    beside = torch.cat([stored[:2], clean[2:]])
    wanted = (
        functional.cross_entropy(net(clean), y, reduction="sum")
        + 4 * functional.cross_entropy(net(beside), y, reduction="sum")
    ) / (4 * 5)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=2e-2)


def folder_of(here: Path, shape: tuple[int, int, int], count: int, *, classes: int = 2) -> str:
    for label in range(classes):
        place = here / f"class{label:02}"
        place.mkdir()
        for number in range(count):
            level = 20 * number + label
            pixels = np.full(shape, level, dtype=np.uint8)
            Image.fromarray(pixels if shape[2] == 3 else pixels[..., 0]).save(place / f"{number:02}.png")
    return f"folder:{here}"


def test_images_sorted_by_class_are_mixed_and_keep_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Tensor, Tensor]] = []

    class Noted:
        def train(self, images: Tensor, labels: Tensor, folder: Path, **_: object) -> None:
            given.append((images, labels))

    monkeypatch.setattr(defense_training, "named_defense", lambda name: Noted())
    (tmp_path / "images").mkdir()
    data = folder_of(tmp_path / "images", (32, 32, 3), 10)
    for _ in range(2):
        train_defenses(("cascade",), data=data, folder=tmp_path / "out", share=1.0, tell=lambda words: None)
    (images, labels), again = given
    assert not bool((labels.diff() >= 0).all())
    assert torch.equal((images[:, 0, 0, 0] % 20).long(), labels)
    assert sorted(images[:, 0, 0, 0].tolist()) == sorted(
        20 * n + label for n in range(10) for label in (0, 1)
    )
    assert torch.equal(again[0], images)


def test_more_classes_than_the_networks_have_are_refused(tmp_path: Path) -> None:
    data = folder_of(tmp_path, (32, 32, 3), 1, classes=11)
    with pytest.raises(InvalidInput, match="has 11 classes: the defenses' own networks are for 10"):
        train_defenses(("cascade",), data=data, folder=tmp_path, share=1.0, tell=lambda words: None)


def test_the_images_say_what_can_be_trained_of_them(tmp_path: Path) -> None:
    data = folder_of(tmp_path, (32, 32, 3), 1)
    assert tuple(expected_minutes((), data=data)) == THREE
    assert tuple(expected_minutes(["cascade"], data=data)) == ("cascade",)
    with pytest.raises(
        UsageError, match="lid has no network of its own for images of 3x32x32: thermometer, .* --network"
    ):
        expected_minutes(["lid"], data=data)
    assert "lid" in expected_minutes((), data="bundled:fashion-mnist")


def test_a_folder_of_colour_parts_asks_for_its_own_defenses_and_figure(parts: Path) -> None:
    assert images_of_parts(parts) == (3, 32, 32)
    assert images_of_parts(None) == (1, 28, 28)
    assert defense_names((), weights=parts) == THREE
    assert len(defense_names(())) == 9
    question = Question("folder:images", Path("runs"), parts, limit=2)
    figure = figure_rows(question)
    assert {row.size for row in figure} == set(COLOUR_FIGURE_SIZES)
    table = {
        row.spec.hash
        for row in case_rows(["thermometer"], question)
        if row.role in ("adaptive", "undefended")
    }
    assert {row.family for row in figure if row.size == "8/255" and row.spec.hash in table} == {
        "neither",
        "adversarial training",
        "both",
    }
