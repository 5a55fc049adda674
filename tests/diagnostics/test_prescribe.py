"""prescribe: an attack under which hidden gradients are there again, chosen by what was measured alone."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.combine import worst_of
from calipers.attacks.fgsm import FGSM
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.attacks.standard import Standard
from calipers.diagnostics.composition import Composed
from calipers.diagnostics.diagnose import Diagnosis, diagnose
from calipers.diagnostics.localize import localize
from calipers.diagnostics.prescribe import _beside, prescribe
from calipers.diagnostics.substitutes import Secant, ancestors, learned_for, substitutes_for
from calipers.randomness import Draws, Role
from calipers.sources.models import load_model
from calipers.target import Access, Target
from calipers.testing.hiding import Thermometer
from calipers.testing.obfuscated import OBFUSCATED, smooth_images, undefended
from calipers.threat.threat_model import Norm, ThreatModel

_spec = importlib.util.spec_from_file_location("hiders", Path(__file__).with_name("hiders.py"))
assert _spec is not None and _spec.loader is not None
hiders = importlib.util.module_from_spec(_spec)
sys.modules["hiders"] = hiders
_spec.loader.exec_module(hiders)

LINF = ThreatModel(Norm.LINF, 0.11)
X, Y = smooth_images(40, seed=5)
JUDGE = Judge(draws=100, rule="average")


def _localized(target: Target, x: torch.Tensor, threat: ThreatModel) -> Diagnosis:
    """What prescribe reads of a diagnosis, without the checks that it does not need."""
    return Diagnosis(localize(target, x, threat), (), "", target.fingerprint, len(x), len(x), 0, 0.0)


@pytest.mark.parametrize("name", OBFUSCATED)
def test_the_six_fall_as_far_as_to_the_recipe_by_hand(name: str) -> None:
    hidden = OBFUSCATED[name]()
    found = prescribe(hidden.target, X, Y, LINF, _localized(hidden.target, X, LINF), budget=20.0)
    chosen = found.attack(hidden.target, X, Y, LINF, seed=3, judge=JUDGE).success.float().mean()
    byhand = Standard(hidden.gradient)(hidden.target, X, Y, LINF, seed=3, judge=JUDGE).success.float().mean()
    assert float(chosen) >= float(byhand) - 0.05


def test_what_was_fitted_is_stored_by_name_and_hash() -> None:
    # in a process of its own: the checks of shapes that this suite puts around functions change their hash
    code = f"""
import warnings
warnings.simplefilter("ignore")
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from calipers.diagnostics.diagnose import Diagnosis
from calipers.diagnostics.localize import localize
from calipers.diagnostics.prescribe import prescribe
from calipers.runs.descriptions import build_attack
from calipers.testing.obfuscated import smooth_images, staircase
from calipers.threat.threat_model import Norm, ThreatModel
x, y = smooth_images(16, seed=5)
target, threat = staircase().target, ThreatModel(Norm.LINF, 0.11)
diagnosis = Diagnosis(localize(target, x, threat), (), "", target.fingerprint, 16, 16, 0, 0.0)
attack = prescribe(target, x, y, threat, diagnosis, budget=10.0).attack
assert "secant-" in repr(attack)
assert build_attack(repr(attack)) == attack
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("made", ["Jpeg", "NoGrad", "Descent", "SharpSoftmax"])
def test_modules_of_other_kinds_fall_too(made: str) -> None:
    x, y = hiders.images(16)
    place = hiders.behind if made == "SharpSoftmax" else hiders.before
    target, threat = place(getattr(hiders, made)()), ThreatModel(Norm.LINF, 0.1)
    found = prescribe(target, x, y, threat, _localized(target, x, threat), budget=30.0)
    assert float(found.attack(target, x, y, threat, seed=3).success.float().mean()) >= 0.9


def test_an_honest_network_is_attacked_plainly() -> None:
    found = prescribe(undefended(), X, Y, LINF, _localized(undefended(), X, LINF), budget=2.0)
    assert "BPDA" not in repr(found.attack) and "EOT" not in repr(found.attack)
    assert "NES" not in repr(found.attack)


def test_a_secant_is_the_mean_slope_of_steps() -> None:
    x = torch.full((1, 1, 8, 8), 0.52, requires_grad=True)
    secant = Secant(Thermometer(10), 0.1)
    secant(x)[0, 5].sum().backward()  # the sixth level: a step at 0.6, inside (0.42, 0.62)
    assert x.grad is not None and torch.allclose(x.grad, torch.full_like(x, 1 / 0.2))


def test_stand_ins_are_offered_by_what_a_module_does() -> None:
    draws = Draws(0, Role.ESTIMATE, tuple(range(8)))

    def offered(target: Target, path: str, x: torch.Tensor) -> list[str]:
        return [
            each.what.split()[-1] if "identity" in each.what else "secant"
            for each in substitutes_for(target.module, path, x, draws, eps=0.1)
        ]

    assert offered(OBFUSCATED["staircase"]().target, "encoder", X[:8]) == ["secant"]
    assert offered(OBFUSCATED["quantizer"]().target, "quantizer", X[:8]) == ["identity", "secant"]
    assert offered(OBFUSCATED["unrolled descent"]().target, "purifier", X[:8]) == ["identity"]
    assert (
        offered(
            hiders.before(torch.nn.Sequential(hiders.Levels(), hiders.FromLevels())),
            "pre.0",
            hiders.images(8)[0],
        )
        == []
    )


def test_what_takes_itself_out_of_the_graph_is_offered_with_nothing_detached() -> None:
    draws, x = Draws(0, Role.ESTIMATE, tuple(range(4))), hiders.images(4)[0]

    def first(module: torch.nn.Module) -> str:
        return substitutes_for(hiders.before(module).module, "pre", x, draws, eps=0.1)[0].what

    class Rounded(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (7 * x.detach()).round() / 7

    for smooth in (hiders.NoGrad(), hiders.Descent()):
        assert first(smooth) == "itself with nothing detached"
    for other in (hiders.Round(), Rounded(), hiders.Jpeg()):
        assert first(other) == "the identity"


def test_a_surrogate_is_offered_only_where_it_learned_something() -> None:
    draws = Draws(0, Role.ESTIMATE, tuple(range(20)))

    class Noise(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand_like(x)

    net = torch.nn.Sequential(Noise(), undefended().module).eval()
    assert learned_for(net, "0", X[:20], draws, eps=0.1, seconds=2.0) is None
    kept = OBFUSCATED["quantizer"]().target.module
    assert learned_for(kept, "quantizer", X[:20], draws, eps=0.1, seconds=2.0) is not None


def test_the_modules_around_a_module_come_from_inside_out() -> None:
    assert ancestors("a.b.c", ["a", "a.b", "a.b.c", "x"]) == ("a.b", "a")


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L1])
def test_what_gives_decisions_alone_gets_an_attack_that_it_can_be_attacked_by(norm: Norm) -> None:
    target = Target.from_decisions(
        lambda x: x.reshape(len(x), -1).argmax(1) % 3, num_classes=3, input_shape=(1, 8, 8), fingerprint="a"
    )
    threat = ThreatModel(norm, 0.11)
    found = prescribe(target, X, Y, threat, _localized(target, X, threat), budget=2.0)
    assert found.why == ("The classifier gives decisions alone.",)
    assert found.attack.access is Access.DECISIONS
    found.attack.rehearse(target, threat)


def test_the_bundled_plain_network_falls_as_before() -> None:
    x, y = hiders.images(16)
    target, threat = load_model("bundled:fashion-cnn28-plain"), ThreatModel(Norm.LINF, 0.1)
    found = prescribe(target, x, y, threat, _localized(target, x, threat), budget=10.0)
    assert bool(found.attack(target, x, y, threat, seed=3).success.all())


class _Shadowed(nn.Module):
    """Adds noise, and a class that follows the winner closely: the margin says nothing of any other class."""

    def __init__(self) -> None:
        super().__init__()
        self.net = undefended().module

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x + 0.02 * torch.randn_like(x))
        return torch.cat([scores, scores.amax(1, keepdim=True) - 0.05], 1)


def test_where_the_margin_is_flat_the_cross_entropy_is_followed() -> None:
    target = Target(_Shadowed().eval(), num_classes=4, input_shape=(1, 8, 8), stochastic=True)
    found = prescribe(target, X, Y, LINF, _localized(target, X, LINF), budget=8.0)
    assert "cross_entropy" in repr(found.attack)
    fell = found.attack(target, X, Y, LINF, seed=0).success
    plain = PGD(steps=40, restarts=2)(target, X, Y, LINF, seed=0).success
    assert int(fell.sum()) >= int(plain.sum()) - 1 >= len(X) - 4


def test_what_the_attack_under_diagnosis_brought_down_is_not_lost() -> None:
    target, attack = OBFUSCATED["quantizer"]().target, PGD(steps=3, loss="dlr")
    found = diagnose(target, X, Y, LINF, attack=attack, budget=2.0)
    best = Composed(PGD(steps=10), ("because",), (), 1.0)
    both = _beside(best, found, frozenset({1, 4}), len(X), 2.0)
    assert both.attack == worst_of(attack, PGD(steps=10)) and "brought down 2" in both.why[-1]
    assert both.expected > 1.0
    assert _beside(best, found, frozenset(), len(X), 2.0) is best
    late = _beside(best, found, frozenset({1}), len(X), 0.0)
    assert late.attack == best.attack and "attack under diagnosis" in late.cut[-1]
    again = replace(best, attack=worst_of(FGSM(), attack))
    assert _beside(again, found, frozenset({1}), len(X), 2.0) is again
