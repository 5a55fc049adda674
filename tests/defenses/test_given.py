"""Defenses around a given network: sizes, patterns, references, what is refused, what needs training images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.transfer import Transfer
from calipers.defenses.given import MADE_FOR, check_made_for, given_network, network_digest, sizes_for
from calipers.defenses.input_transformations.crop import RandomCrops
from calipers.defenses.input_transformations.defense import InputTransformations
from calipers.defenses.input_transformations.quilting import Quilting
from calipers.defenses.lid import LocalIntrinsicDimension
from calipers.defenses.lid.detection import Logistic
from calipers.defenses.lid.dimension import layer_names
from calipers.defenses.normalized import Normalized
from calipers.defenses.parts import has_part, load_images, save_images, save_part
from calipers.defenses.randomization import PATTERNS, Randomization, RandomizedClassifier, patterns_for
from calipers.defenses.stochastic_activation_pruning import LaterPruning, PrunedResNet, Pruning, prune
from calipers.errors import BadReference, InvalidInput, UsageError
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd
from calipers.randomness import Draws, Role
from calipers.runs.case_rows import Question, case_rows
from calipers.runs.catalog import DEFENSES, around_a_network, load_model, named_defense
from calipers.runs.descriptions import build_attack
from calipers.runs.reproduce import measure_case
from calipers.runs.store import RunStore
from calipers.sources.architectures import CifarResNet
from calipers.threat.objectives import margin
from calipers.threat.threat_model import ABSTAIN, Untargeted

CIFAR = "bundled:cifar10-resnet20-noise-0.25"
FOUR = ("lid", "input-transformations", "stochastic-activation-pruning", "randomization")


def pictures(count: int, *, seed: int = 0) -> Tensor:
    """Smooth colour pictures: bytes, as floats in [0, 1]."""
    coarse = torch.rand((count, 3, 6, 6), generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=False)
    return (smooth * 255).round() / 255


def bytes_of(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Take patches of made-up pictures, and put a detector that was fitted to nothing beside their reference."""
    folder = tmp_path_factory.mktemp("parts")
    images = bytes_of(pictures(200, seed=1))
    InputTransformations(network=CIFAR).train(
        images, torch.zeros(200), folder, share=0.01, tell=lambda text: None
    )
    network = given_network(CIFAR)
    about = {MADE_FOR: network_digest(network)}
    save_images(images, "around-lid-reference", folder, about=about)
    for name in ("around-lid", "around-lid-leaky"):
        save_part(Logistic(len(layer_names(network.net))), name, folder, about=about)
    return folder


def test_sizes_follow_the_images() -> None:
    assert sizes_for((3, 32, 32)) == ("8/255", "4/255", "2/255", "2.771")
    assert sizes_for((1, 28, 28)) == ("0.1", "0.05", "0.03", "1.4")
    for name in FOUR[1:]:
        rows = named_defense(name, network=CIFAR).rows()
        sizes = {row.eps or row.within for row in rows} - {""}
        assert (
            sizes
            == {
                "input-transformations": {"2.771"},
                "stochastic-activation-pruning": {"8/255", "4/255"},
                "randomization": {"8/255", "2/255"},
            }[name]
        )


def test_the_four_and_pixel_defend_are_those_that_can_be_put_around_a_network() -> None:
    assert around_a_network() == (*FOUR, "pixel-defend")


@pytest.mark.parametrize("name", [name for name in DEFENSES if name not in (*FOUR, "pixel-defend")])
def test_a_defense_with_a_network_of_its_own_says_why_it_takes_no_other(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot be put around a given network: its? "):
        load_model(f"iclr2018:{name}?network={CIFAR}")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("python:net:make", "cannot be put inside another model: save its weights"),
        ("iclr2018:lid", "cannot be put inside another model"),
        ("bundled:none", "no bundled model is called 'none'"),
        (f"{CIFAR}&weights=parts", "network= takes all that follows it: write weights= before it"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(network: str, words: str) -> None:
    with pytest.raises(BadReference, match=words):
        load_model(f"iclr2018:randomization?network={network}")


def test_a_network_for_one_size_cannot_be_resized() -> None:
    with pytest.raises(UsageError, match="takes no images of 36x36"):
        load_model("iclr2018:randomization?network=bundled:cifar10-lipschitz")


def test_options_of_the_network_are_its_own() -> None:
    target = load_model(f"iclr2018:input-transformations/undefended?network={CIFAR}")
    other = load_model("iclr2018:stochastic-activation-pruning/undefended?weights=a&network=" + CIFAR)
    x = pictures(4)
    plain = load_model(CIFAR).logits(x)
    for one in (target, other, load_model(f"iclr2018:randomization/undefended?network={CIFAR}")):
        assert torch.allclose(one.logits(x), plain, atol=1e-4), "normalized as the network wants it"


def test_there_are_54_patterns_on_36() -> None:
    every = patterns_for(32)
    assert (every.smallest, every.largest, every.side) == (32, 35, 36)
    assert len(every.patterns()) == 54
    assert sum(chance for _, chance in every.patterns()) == pytest.approx(1)
    assert patterns_for(28) == PATTERNS


def test_exact_enumeration_is_the_mean_of_samples() -> None:
    defense = Randomization(network=CIFAR)
    bare, whole = defense.target("undefended"), defense.target()
    x = pictures(1)
    y, draws = bare.predict(x), Draws(0, Role.SEARCH, (0,))
    exact = EOT(54, over=patterns_for(32)).estimate(bare, margin, x, y, Untargeted(), draws=draws).gradient
    sampled = EOT(160).estimate(whole, margin, x, y, Untargeted(), draws=draws).gradient
    one = Autograd().estimate(whole, margin, x, y, Untargeted(), draws=draws).gradient

    def apart(found: Tensor) -> Tensor:
        return torch.as_tensor((found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1))

    assert float(apart(sampled).max()) < 0.3
    assert float(apart(one).min()) > 0.4


def test_what_lies_around_an_image_is_grey_before_the_network_s_normalization() -> None:
    seen: list[Tensor] = []
    network = given_network(CIFAR)
    whole = RandomizedClassifier(Normalized(network), patterns_for(32), fill=0.5)
    network.net.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    with torch.no_grad():
        whole(torch.zeros(2, 3, 32, 32))
    mean, std = network.feeding.normalization()
    assert mean is not None and std is not None and seen[0].shape[2:] == (36, 36)
    for channel in range(3):
        found = seen[0][:, channel].double() * std[channel] + mean[channel]
        assert sorted({round(value, 4) for value in found.flatten().tolist()}) == [0.0, 0.5]


def test_pruning_stands_where_something_reads_a_relu_and_not_in_the_shortcut() -> None:
    net = prune(given_network(CIFAR).net)
    layers = [each for each in net.modules() if isinstance(each, Pruning)]
    assert [each.fraction for each in layers] == [1.0] * 19
    first = prune(given_network(CIFAR).net, fraction=1e-9).get_submodule("blocks.0")
    unpruned = prune(given_network(CIFAR).net, fraction=1e4).get_submodule("blocks.0")
    x = torch.rand((2, 16, 32, 32), generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    first.get_submodule("conv1").register_forward_hook(lambda module, given, found: seen.append(given[0]))
    with torch.no_grad():
        found, dense = first(100 + x), unpruned(100 + x)
    assert [int(row.count_nonzero()) for row in seen[0]] == [1, 1], (
        "one activation is drawn for the convolution"
    )
    assert float((found[:, :, 2, 2] > 50).float().mean()) == 1, "and the shortcut carries all of them"
    assert not torch.allclose(found, dense)


def test_the_reimplementation_prunes_what_convolutions_give() -> None:
    given = given_network(CIFAR).net
    assert isinstance(given, CifarResNet)
    net = PrunedResNet(given, LaterPruning, later=True).eval()
    layers = [each for each in net.modules() if isinstance(each, LaterPruning)]
    seen: list[Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    with torch.no_grad():
        net(pictures(1))
    assert len(seen) == 19 and all(bool((each < 0).any()) for each in seen)


def test_shapes_and_what_draws() -> None:
    x = pictures(2)
    target = load_model(f"iclr2018:stochastic-activation-pruning?network={CIFAR}")
    assert target.stochastic and target.logits(x).shape == (2, 10)
    defense = InputTransformations(network=CIFAR)
    found = defense.target("total-variation")
    assert found.logits(x).shape == (2, 10) and found.stochastic
    crops = RandomCrops(size=27, side=32)(x)
    assert crops.shape == (2, 30, 3, 32, 32)
    middle = nn.functional.interpolate(x[:, :, 2:29, 3:30], size=32, mode="bilinear", align_corners=False)
    many = RandomCrops(size=27, side=32, count=400)(x)
    assert float((many - middle[:, None]).abs().amax((2, 3, 4)).amin(1).max()) < 1e-5


def test_without_training_images_what_needs_them_is_left_out_and_said() -> None:
    defense = InputTransformations(network=CIFAR)
    families = {row.family for row in defense.rows()}
    assert families == {"crop", "bit-depth", "jpeg", "total-variation"}
    assert "quilting and the ensemble are left out" in defense.lacks()
    for variant in ("", "quilting"):
        with pytest.raises(UsageError, match="no patches for bundled:cifar10"):
            defense.target(variant)
    lid = LocalIntrinsicDimension(network=CIFAR)
    assert lid.rows() == ()
    with pytest.raises(UsageError, match="no detector for bundled:cifar10.*calipers train iclr2018 lid"):
        lid.target()


def test_with_parts_everything_is_measured(parts: Path) -> None:
    x = pictures(2, seed=5)
    lid = LocalIntrinsicDimension(weights=parts, network=CIFAR)
    assert lid.lacks() == "" and len(lid.rows()) == 7
    assert lid.target().logits(x).shape == (2, 11)
    assert torch.allclose(lid.target().logits(x)[:, :10], load_model(CIFAR).logits(x), atol=1e-3)
    assert load_images("around-lid-reference", parts).shape == (200, 3, 32, 32)
    defense = InputTransformations(weights=parts, network=CIFAR)
    quilted = Quilting(load_images("around-quilting", parts))(x)
    assert quilted.shape == x.shape
    assert 0 < float((quilted - x).abs().mean()) < 0.1
    assert defense.target("quilting").logits(x).shape == (2, 10)
    members = [name for name, _ in defense._ensemble().named_children()]
    assert members == ["crop", "bit_depth", "jpeg", "total_variation", "quilting", "average"]
    assert {row.family for row in defense.rows()} >= {"ensemble", "quilting"}


def test_a_detector_is_for_its_own_network_only(parts: Path) -> None:
    with pytest.raises(UsageError, match="made for another network than bundled:cifar10-lipschitz"):
        check_made_for(
            given_network("bundled:cifar10-lipschitz"),
            "around-lid",
            parts,
            reference="bundled:cifar10-lipschitz",
        )
    assert not has_part("lid", parts), "what ships for Fashion-MNIST has other names"
    with pytest.raises(UsageError, match="made for another network"):
        LocalIntrinsicDimension(weights=parts, network="bundled:cifar10-lipschitz").target()
    with pytest.raises(UsageError, match="Sequential has no layers that are known"):
        layer_names(given_network("bundled:cifar10-lipschitz").net)


def test_every_reference_in_a_row_carries_the_network_and_the_parts(parts: Path) -> None:
    question = Question(data="folder:images", folder=Path("runs"), weights=parts, network=CIFAR)
    rows = case_rows(FOUR, question)
    for row in rows:
        assert row.spec.model.endswith(f"?weights={parts}&network={CIFAR}")
        attack = build_attack(row.spec.method)
        if isinstance(attack, Transfer):
            assert attack.substitute == CIFAR or attack.substitute.endswith(f"&network={CIFAR}")
    assert len({row.path for row in rows}) == len(rows)


def test_a_row_is_measured_stored_and_gone_on_with(tmp_path: Path) -> None:
    question = Question(
        data="bundled:fashion-mnist",
        folder=tmp_path,
        limit=2,
        network="bundled:fashion-cnn28-adversarial",
    )
    rows = [
        row
        for row in case_rows(["stochastic-activation-pruning"], question)
        if row.role in ("undefended", "matched")
    ]
    found = []
    for _ in range(2):
        assert list(measure_case(rows, question)) == rows
        with RunStore.read(rows[0].path) as store:
            assert store.spec == rows[0].spec and store.progress() == (2, 2)
            found.append(store.attempts())
    assert found[0] == found[1]
    assert rows[0].spec.model.endswith("?network=bundled:fashion-cnn28-adversarial")


def test_roles_are_those_of_the_form_that_ships(parts: Path) -> None:
    for name in FOUR:
        shipped = named_defense(name).rows()
        given = named_defense(name, weights=parts, network=CIFAR).rows()
        assert {(row.family, row.role) for row in shipped} == {(row.family, row.role) for row in given}
        for one, other in zip(shipped, given, strict=False):
            if "patterns" in one.what or one.what.startswith("BPDA alone at twice"):
                continue
            assert (one.role, one.family) == (other.role, other.family)
            if not isinstance(one.attack, Transfer) and "EOT(29" not in repr(one.attack):
                assert one.attack == other.attack


def test_the_form_that_ships_is_the_same_where_no_network_is_given() -> None:
    for name in FOUR:
        defense = named_defense(name)
        assert defense.network is None and defense.lacks() == ""
        assert defense.reference() == f"iclr2018:{name}"
        assert dataclasses.replace(defense) == defense


@pytest.mark.slow
def test_a_detector_is_trained_around_a_network(tmp_path: Path) -> None:
    images = bytes_of(pictures(900, seed=1))
    labels = load_model(CIFAR).predict(images.float() / 255)
    told: list[str] = []
    defense = LocalIntrinsicDimension(weights=tmp_path, network=CIFAR)
    defense.train(images, labels, tmp_path, share=0.01, tell=told.append)
    assert torch.equal(load_images("around-lid-reference", tmp_path) * 255, images[:600].float())
    x = pictures(100, seed=2)
    rejected = (defense.target().predict(x) == ABSTAIN).float().mean()
    assert 0 < float(rejected) < 0.2
    areas = [
        defense.detection(x, (x + 8 / 255 * torch.randn(x.shape).sign()).clamp(0, 1), reference=one).area
        for one in ("training", "leaky minibatch")
    ]
    assert all(0 <= area <= 1 for area in areas)
    defense.train(images, labels, tmp_path, share=0.01, tell=told.append)
    assert told[-1].endswith("there already")
    with pytest.raises(InvalidInput, match="there are 800 training images: lid needs 900"):
        defense.train(images[:800], labels[:800], tmp_path / "few", share=0.01, tell=told.append)
