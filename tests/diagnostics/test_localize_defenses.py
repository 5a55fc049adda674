"""localize says of each defense what was fixed before it was run, and of networks that hide nothing, nothing."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.smoothed import smooth
from calipers.defenses.stochastic_activation_pruning import prune
from calipers.diagnostics.localize import localize
from calipers.runs.catalog import DEFENSES, load_model, named_defense
from calipers.sources.architectures import CifarResNet
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

_here = Path(__file__).parent


def _loaded(name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, _here / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


hiders, broken_defenses = _loaded("hiders"), _loaded("broken_defenses")

LINF, SMALL = ThreatModel(Norm.LINF, 0.1), ThreatModel(Norm.LINF, 0.05)
GUO, GAN = ThreatModel(Norm.L2, 1.4), ThreatModel(Norm.L2, 1.98)


@dataclass(frozen=True)
class Fixed:
    """What is to be said of a classifier: in each way, these modules and no other."""

    threat: ThreatModel = LINF
    shattered: tuple[str, ...] = ()
    stochastic: tuple[str, ...] = ()
    exploding: tuple[str, ...] = ()
    vanishing: tuple[str, ...] = ()
    long: bool = field(default=False, kw_only=True)

    def said(self) -> set[tuple[str, str]]:
        kinds = ("shattered", "stochastic", "exploding", "vanishing")
        return {(kind, module) for kind in kinds for module in getattr(self, kind)}


# The kinds were fixed before the diagnosis was written; the modules are where the mechanism stands in each network.
# Stochastic activation pruning was to be "stochastic, and exploding where it divides by small p": this one's division
# is differentiated with the rest, and its derivative is below that of the network that is not pruned.
NINE = {
    "thermometer": Fixed(shattered=("encoder",)),
    "thermometer/adversarial": Fixed(shattered=("encoder",)),
    "lid": Fixed(long=True),
    "input-transformations/bit-depth": Fixed(GUO, shattered=("transform",)),
    "input-transformations/jpeg": Fixed(GUO, shattered=("transform",)),
    "input-transformations/total-variation": Fixed(GUO, shattered=("transform",), stochastic=("transform",)),
    "input-transformations/quilting": Fixed(GUO, shattered=("transform",), stochastic=("transform",)),
    "input-transformations/crop": Fixed(GUO, stochastic=("transform",)),
    "input-transformations/one-crop": Fixed(GUO, stochastic=("transform",)),
    "input-transformations": Fixed(
        GUO,
        shattered=(
            "bit_depth.transform",
            "jpeg.transform",
            "total_variation.transform",
            "quilting.transform",
        ),
        stochastic=("crop.transform", "total_variation.transform", "quilting.transform"),
        long=True,
    ),
    "stochastic-activation-pruning": Fixed(SMALL, stochastic=("prune1", "prune2", "prune3", "prune4")),
    "stochastic-activation-pruning/reimplementation": Fixed(SMALL, stochastic=("prune1", "prune2", "prune3")),
    "randomization": Fixed(stochastic=("net",)),
    "pixel-defend": Fixed(shattered=("purifier",), vanishing=("purifier",), long=True),
    "pixel-defend/window-16": Fixed(shattered=("purifier",), vanishing=("purifier",), long=True),
    "defense-gan": Fixed(GAN, vanishing=("projection",), stochastic=("projection",), long=True),
    "adversarial-training": Fixed(),
    "cascade": Fixed(),
}
UNDEFENDED = {
    f"{name}/{variant}": Fixed(long=True)
    for name in DEFENSES
    for variant in named_defense(name).targets()
    if variant.startswith(("undefended", "retrained"))
}
BROKEN = {
    "k winners take all": Fixed(shattered=("winners",), long=True),
    "random projection": Fixed(shattered=("projection",), stochastic=("projection",)),
    "median filter": Fixed(shattered=("filter",)),
    "lookup": Fixed(shattered=("lookup",)),
    "temperature": Fixed(),  # its logits have honest gradients; what saturates is a loss
    "stochastic ensemble": Fixed(
        stochastic=("conv1_member", "conv2_member", "conv3_member", "dense1_member")
    ),
}
OTHERS: dict[str, tuple[Callable[[], Target], Fixed]] = {
    "plain": (lambda: load_model("bundled:fashion-cnn28-plain"), Fixed()),
    "adversarially trained": (lambda: load_model("bundled:fashion-cnn28-adversarial"), Fixed()),
    "smoothed": (
        lambda: smooth(load_model("bundled:fashion-cnn28-noise-0.25"), Gaussian(0.25)),
        Fixed(stochastic=("noise",)),
    ),
    "smoothed, trained without noise": (
        lambda: smooth(load_model("bundled:fashion-cnn28-plain"), Gaussian(0.5)),
        Fixed(stochastic=("noise",)),
    ),
}
SLOW = ("lid", "input-transformations", "pixel-defend", "defense-gan")
SAMPLES = ((0, 0, 16), (1, 200, 8), (2, 500, 16))
"""Seed, the first image, and how many."""


def _target(name: str) -> Target:
    if name in OTHERS:
        return OTHERS[name][0]()
    if name in BROKEN:
        made: Target = broken_defenses.BROKEN[name].target()  # type: ignore[attr-defined]
        return made
    defense, _, variant = name.partition("/")
    return named_defense(defense).target(variant)


ALL = {**NINE, **UNDEFENDED, **BROKEN, **{name: fixed for name, (_, fixed) in OTHERS.items()}}


def _images(skip: int, count: int) -> torch.Tensor:
    x: torch.Tensor = hiders.images(count, skip=skip)[0]  # type: ignore[attr-defined]
    return x


def test_every_classifier_of_the_nine_has_its_line() -> None:
    known = {f"{name}/{variant}" for name in DEFENSES for variant in named_defense(name).targets()}
    # the unrolled descent is an ablation: its derivative is there, and nothing was fixed of it
    assert known == {name if "/" in name else f"{name}/" for name in NINE | UNDEFENDED} | {
        "defense-gan/unrolled"
    }


@pytest.mark.parametrize("name", [name for name, fixed in ALL.items() if not fixed.long])
def test_what_was_fixed_beforehand_is_said(name: str) -> None:
    found = localize(_target(name), _images(0, 4), ALL[name].threat, budget=60.0)
    assert {(each.check, each.module) for each in found if each.verdict == "red"} == ALL[name].said()
    assert not [each for each in found if each.verdict == "open"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sample", SAMPLES, ids=[f"seed-{seed}" for seed, _, _ in SAMPLES])
@pytest.mark.parametrize("name", ALL)
def test_what_was_fixed_beforehand_is_said_of_any_images(name: str, sample: tuple[int, int, int]) -> None:
    seed, skip, count = sample
    found = localize(_target(name), _images(skip, count), ALL[name].threat, seed=seed, budget=30.0)
    assert {(each.check, each.module) for each in found if each.verdict == "red"} == ALL[name].said()
    assert not [each for each in found if each.verdict == "open"]


def test_the_gradient_of_a_pruned_network_is_smaller_than_without_pruning() -> None:
    defense, x = named_defense("stochastic-activation-pruning"), _images(0, 16)
    bare = _slopes(defense.target("undefended"), x)
    drawn = [_slopes(defense.target(), x, seed=seed) for seed in range(10)]
    assert float((torch.stack(drawn) / bare).median()) < 0.3
    assert float((torch.stack(drawn) / bare).max()) < 1


def _slopes(target: Target, x: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Measure the length of each image's gradient of the best score against the second, in one draw."""
    x = x.clone().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        best = target.module(x).topk(2).values
    (found,) = torch.autograd.grad((best[:, 0] - best[:, 1]).sum(), x)
    return found.flatten(1).norm(dim=1)


def test_choices_in_nineteen_layers_are_not_blamed_on_the_network_around_them() -> None:
    whole = load_model("bundled:cifar10-resnet20-noise-0.25").module
    net = next(each for each in whole.modules() if isinstance(each, CifarResNet))
    target = Target(prune(net), num_classes=10, input_shape=(3, 32, 32), stochastic=True, probe=False)
    x = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    found = localize(target, x, ThreatModel(Norm.LINF, 0.03), budget=60.0)
    said = [(each.check, each.module.rpartition(".")[2]) for each in found if each.verdict == "red"]
    assert len(said) == 19 and set(said) == {("stochastic", "prune1"), ("stochastic", "prune2")}
    assert not [each for each in found if each.verdict == "open"]


def test_a_purifier_is_told_in_little_time_too() -> None:
    found = localize(_target("pixel-defend"), _images(0, 2), LINF, budget=5.0)
    said = {(each.check, each.module) for each in found if each.verdict == "red"}
    assert said == NINE["pixel-defend"].said()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in NINE if name.partition("/")[0] in SLOW])
def test_little_time_leaves_a_way_open_and_says_nothing_false(name: str) -> None:
    found = localize(_target(name), _images(0, 8), NINE[name].threat, budget=2.0)
    assert {(each.check, each.module) for each in found if each.verdict == "red"} <= NINE[name].said()
    shown = {check for check, _ in NINE[name].said()}
    assert not [each for each in found if each.verdict == "green" and each.check in shown]
