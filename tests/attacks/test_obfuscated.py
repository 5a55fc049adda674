"""Six classifiers that hide their gradient: plain PGD finds nothing, and under the right view each falls."""

import pytest
import torch

from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.attacks.standard import Standard
from calipers.errors import GradientsUnavailable
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.estimator import Autograd, GradientEstimate
from calipers.gradients.reparameterization import Reparameterization
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.testing.hiding import Purifier, PythonScores, Thermometer, decode_smooth, encode_smooth
from calipers.testing.obfuscated import (
    OBFUSCATED,
    python_function,
    smooth_images,
    survives,
    undefended,
    unrolled_descent,
)
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, ThreatModel, Untargeted

COUNT, EPS = 200, 0.11
LINF = ThreatModel(Norm.LINF, EPS)
X, Y = smooth_images(COUNT, seed=0)
JUDGE = Judge(draws=300, rule="average")
EXACT = float(survives(X, Y, EPS).float().mean())


def _accuracy(attack: PGD | Standard, target: Target) -> float:
    """Accuracy under attack, by the judge on the target itself."""
    return 1 - float(attack(target, X, Y, LINF, seed=0, judge=JUDGE).success.float().mean())


def _gradient(target: Target, x: torch.Tensor) -> GradientEstimate:
    draws = Draws(0, Role.SEARCH, tuple(range(len(x))))
    return Autograd().estimate(target, margin, x, Y[: len(x)], Untargeted(), draws=draws)


def test_the_undefended_classifier_falls_to_its_exact_accuracy() -> None:
    target = undefended()
    assert bool((target.predict(X) == Y).all())
    assert 0 < EXACT < 0.05
    assert _accuracy(Standard(), target) == pytest.approx(EXACT)


@pytest.mark.parametrize("name", OBFUSCATED)
def test_plain_pgd_reports_it_robust_and_standard_under_the_right_view_does_not(name: str) -> None:
    hidden = OBFUSCATED[name]()
    assert _accuracy(PGD(), hidden.target) > EXACT + 0.7
    assert _accuracy(Standard(hidden.gradient), hidden.target) == pytest.approx(EXACT, abs=0.02)


@pytest.mark.parametrize("name", ["staircase", "quantizer", "saturated softmax", "python function"])
def test_a_gradient_of_zeros_is_told_as_the_reason(name: str) -> None:
    found = PGD()(OBFUSCATED[name]().target, X[:20], Y[:20], LINF, seed=0)
    assert set(found.reason) == {"no gradient"}


def test_a_function_outside_torch_is_refused_with_the_views_that_would_work() -> None:
    function = Target.from_scores(
        PythonScores().scores, num_classes=3, input_shape=(1, 8, 8), fingerprint="python scores"
    )
    with pytest.raises(GradientsUnavailable, match="scores"):
        PGD()(function, X[:4], Y[:4], LINF, seed=0)
    found = Standard(python_function().gradient)(function, X[:4], Y[:4], LINF, seed=0)
    assert bool(found.success.all())


def test_the_thermometer_has_the_levels_of_the_lecture() -> None:
    code = Thermometer(10)(torch.full((1, 1, 8, 8), 0.66))
    assert code[0, :, 0, 0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_the_gradient_of_the_purifier_explodes_and_its_answer_does_not() -> None:
    hidden, plain = unrolled_descent().target, undefended()
    noise = torch.randn((50, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    moved = (X[:50] + 0.05 * noise).clamp(0, 1)
    found, truth = _gradient(hidden, moved), _gradient(plain, moved)
    size = found.gradient.flatten(1).norm(dim=1) / truth.gradient.flatten(1).norm(dim=1)
    assert float(size.median()) > 30
    assert float((found.value - truth.value).abs().max()) < 0.2 * float(truth.value.abs().mean())


def test_the_purifier_leaves_what_is_smooth_alone() -> None:
    purifier = Purifier()
    z = encode_smooth(X)
    x = decode_smooth(z)
    torch.testing.assert_close(purifier(x), x, atol=1e-6, rtol=0)
    torch.testing.assert_close(encode_smooth(x), z, atol=1e-12, rtol=0)


def test_the_purifier_falls_to_its_reparameterization_and_not_to_its_own_gradient() -> None:
    hidden, plain = unrolled_descent().target, undefended()
    threat, x, y = ThreatModel(Norm.L2), X[:32], Y[:32]
    smooth = Reparameterization(decode_smooth, encode_smooth)
    exact = CarliniWagner(steps=40, weights=4)(plain, x, y, threat, seed=0).distance
    fooled = CarliniWagner(steps=40, weights=4)(hidden, x, y, threat, seed=0)
    # on smooth images the purifier is the identity, so that this is the gradient of f(h(z))
    through = BPDA({"purifier": identity})
    found = CarliniWagner(through, steps=40, weights=4, over=smooth)(hidden, x, y, threat, seed=0)
    assert not bool(fooled.success.any())
    assert bool(found.success.all())
    assert float((found.distance / exact).median()) < 1.05
    torch.testing.assert_close(decode_smooth(encode_smooth(found.adversarial)).float(), found.adversarial)
