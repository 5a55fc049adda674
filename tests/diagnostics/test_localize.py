"""localize names the module that hides the gradient, how it does, and no other."""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.smoothed import smooth
from calipers.diagnostics.localize import localize
from calipers.diagnostics.measured import measure_modules
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.testing.obfuscated import OBFUSCATED, smooth_images, undefended
from calipers.threat.threat_model import Norm, ThreatModel

_spec = importlib.util.spec_from_file_location("hiders", Path(__file__).with_name("hiders.py"))
assert _spec is not None and _spec.loader is not None
hiders = importlib.util.module_from_spec(_spec)
sys.modules["hiders"] = hiders
_spec.loader.exec_module(hiders)

LINF = ThreatModel(Norm.LINF, 0.1)
X, Y = hiders.images(8, skip=900)


def _red(target: Target, x: torch.Tensor = X) -> set[tuple[str, str]]:
    return {(each.check, each.module) for each in localize(target, x, LINF) if each.verdict == "red"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("staircase", {("shattered", "encoder")}),
        ("quantizer", {("shattered", "quantizer")}),
        ("dropped features", {("stochastic", "dropout")}),
        ("saturated softmax", {("vanishing", "softmax")}),
        ("unrolled descent", {("exploding", "purifier")}),
        ("python function", {("shattered", "net")}),
    ],
)
def test_each_of_the_six_is_named_with_its_kind(name: str, expected: set[tuple[str, str]]) -> None:
    assert _red(OBFUSCATED[name]().target, smooth_images(8, seed=3)[0]) == expected


@pytest.mark.parametrize(
    "target",
    [
        undefended(),
        load_model("bundled:fashion-cnn28-plain"),
        load_model("bundled:fashion-cnn28-adversarial"),
        load_model("bundled:fashion-cnn28-noise-0.25"),
        Target(hiders.Harmless().eval(), num_classes=10, input_shape=(1, 28, 28), probe=False),
    ],
    ids=["linear", "plain", "adversarial", "noise", "harmless"],
)
def test_nothing_is_named_in_a_network_that_hides_nothing(target: Target) -> None:
    x = smooth_images(8, seed=3)[0] if target.input_shape == (1, 8, 8) else X
    found = localize(target, x, LINF)
    assert [each.verdict for each in found] == ["green"] * 4


def test_of_a_smoothed_classifier_the_noise_alone_is_named() -> None:
    target = smooth(load_model("bundled:fashion-cnn28-plain"), Gaussian(0.25))
    assert _red(target) == {("stochastic", "noise")}


@pytest.mark.parametrize(
    ("made", "kinds"),
    [
        ("Round", {"shattered"}),
        ("StraightThrough", {"shattered"}),
        ("Jpeg", {"shattered"}),
        ("Numpy", {"shattered"}),
        ("NoGrad", {"shattered"}),
        ("Sharp", {"vanishing"}),
        ("Descent", {"vanishing"}),
        ("DeepTanh", {"shattered", "vanishing"}),
    ],
)
def test_a_module_before_the_network_is_named(made: str, kinds: set[str]) -> None:
    assert _red(hiders.before(getattr(hiders, made)())) == {(kind, "pre") for kind in kinds}


def test_a_random_module_is_stochastic_and_nothing_else() -> None:
    assert _red(hiders.before(hiders.Dropped(), stochastic=True)) == {("stochastic", "pre")}


def test_the_jumps_of_a_random_choice_are_not_blamed_on_the_module_around_it() -> None:
    class Choosing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (torch.rand_like(x) < x.detach())  # what is kept depends on the input

    assert _red(hiders.before(Choosing(), stochastic=True)) == {("stochastic", "pre")}


def test_a_sharp_softmax_is_named_though_it_changes_nowhere_in_the_ball() -> None:
    assert _red(hiders.behind(hiders.SharpSoftmax())) == {("vanishing", "post")}


def test_the_module_that_gives_integers_is_named_and_not_the_one_that_gets_them() -> None:
    module = nn.Sequential(hiders.Levels(), hiders.FromLevels())
    assert _red(hiders.before(module)) == {("shattered", "pre.0")}


def test_a_function_inside_a_container_is_blamed_on_the_container() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (4 * self.first(x)).round() / 4

    torch.random.default_generator.manual_seed(1)
    assert _red(hiders.before(Hidden())) == {("shattered", "pre")}


def test_measured_modules_repeat_with_the_seed() -> None:
    target = hiders.before(hiders.Dropped(), stochastic=True)
    assert str(measure_modules(target, X, LINF, seed=4)) == str(measure_modules(target, X, LINF, seed=4))


def test_a_target_without_a_network_leaves_every_way_open() -> None:
    target = Target.from_scores(
        lambda x: x.reshape(len(x), -1)[:, :3], num_classes=3, input_shape=(1, 8, 8), fingerprint="a"
    )
    found = localize(target, smooth_images(4, seed=0)[0], LINF)
    assert {each.verdict for each in found} == {"open"}


def test_time_that_does_not_suffice_is_told() -> None:
    found = localize(load_model("bundled:fashion-cnn28-plain"), X, LINF, budget=0.0)
    assert {each.verdict for each in found} == {"open"}


def test_what_torch_jit_compiled_is_left_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.jit.trace(OBFUSCATED["quantizer"]().target.module, torch.rand(2, 1, 8, 8))
    target = Target(compiled.eval(), num_classes=3, input_shape=(1, 8, 8), probe=False)
    found = localize(target, smooth_images(4, seed=0)[0], ThreatModel(Norm.LINF, 0.1), budget=5.0)
    assert {each.verdict for each in found} == {"open"}
    assert all("torch.jit" in each.explanation for each in found)


def test_what_torch_loads_the_first_time_does_not_take_the_modules_time() -> None:
    script = """
from calipers.diagnostics.localize import localize
from calipers.testing.obfuscated import OBFUSCATED, smooth_images
from calipers.threat.threat_model import Norm, ThreatModel

found = localize(OBFUSCATED["quantizer"]().target, smooth_images(2, seed=0)[0], ThreatModel(Norm.LINF, 0.1), budget=1.0)
print([(each.check, each.module) for each in found if each.verdict == "red"])
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[('shattered', 'quantizer')]"
