"""prescribe in time: trials and the attack fit what was allowed, and what was left out is said."""

import time

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.apgd import APGD
from calipers.attacks.combine import WorstOf
from calipers.attacks.pgd import PGD
from calipers.attacks.square import Square
from calipers.attacks.standard import Standard
from calipers.attacks.view import OutOfTime, Trace
from calipers.diagnostics.candidates import Candidate
from calipers.diagnostics.composition import PLAIN, Composed, compose
from calipers.diagnostics.diagnose import Diagnosis, diagnose
from calipers.diagnostics.making import make_case
from calipers.diagnostics.pace import Pace, measure_pace
from calipers.diagnostics.prescribe import RUN, prescribe
from calipers.diagnostics.prescription import Trial
from calipers.diagnostics.trials import Tried, halved, try_candidate, try_scores
from calipers.evidence.records import Finding
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd
from calipers.gradients.finite_differences import NES
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.testing.obfuscated import OBFUSCATED, smooth_images, undefended
from calipers.threat.threat_model import Norm, ThreatModel

LINF = ThreatModel(Norm.LINF, 0.11)
X, Y = smooth_images(40, seed=5)


class _Slow(nn.Module):
    """Sleeps for every row."""

    def __init__(self, each: float) -> None:
        super().__init__()
        self.each = each

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.each * len(x))
        return x


def _slowed(name: str, each: float) -> Target:
    net = nn.Sequential()
    net.add_module("wait", _Slow(each))
    net.add_module("rest", OBFUSCATED[name]().target.module if name else undefended().module)
    return Target(net.eval(), num_classes=3, input_shape=(1, 8, 8), probe=False, name="slow")


def _blamed(target: Target) -> Diagnosis:
    """A diagnosis that blames the quantizer."""
    (path,) = [path for path, _ in target.module.named_modules() if path.endswith("quantizer")]
    found = Finding("shattered", 0.0, 0.5, "red", "", "", "", module=path.removeprefix("net."))
    return Diagnosis((found,), (), "", target.fingerprint, len(X), len(X), 0, 0.0, tuple(range(len(X))))


def test_modules_that_were_not_measured_are_not_said_to_be_honest() -> None:
    target = undefended()
    left = Finding("shattered", 0.0, 1.0, "open", "", "", "")
    diagnosis = Diagnosis((left,), (), "", target.fingerprint, len(X), len(X), 0, 0.0, tuple(range(len(X))))
    unmeasured = prescribe(target, X, Y, LINF, diagnosis, budget=1e-9)
    assert unmeasured.cut and unmeasured.why[0].startswith("No module that was measured hides")
    measured = prescribe(target, X, Y, LINF, diagnosis, budget=40.0)
    assert not measured.cut and measured.why[0].startswith("No module hides")


def test_a_slow_classifier_is_prescribed_for_in_time_and_the_cut_is_said() -> None:
    target = _slowed("quantizer", 0.01)
    diagnosis = _blamed(target)
    began = time.perf_counter()
    found = prescribe(target, X, Y, LINF, diagnosis, budget=4.0)
    assert time.perf_counter() - began < 10.0
    assert 0 < found.expected <= RUN * 4.0
    assert found.cut and all(f"cut for want of time: {each}" in found.text() for each in found.cut)
    assert found.to_dict()["cut"] == list(found.cut)
    assert "bpda" in repr(found.attack).lower()


def test_a_quick_classifier_gets_everything() -> None:
    found = prescribe(*_asked("quantizer"), budget=20.0)
    assert found.cut == () and "cut" not in found.text()
    # and a gradient of zeros is not followed
    assert found.trials[0].refused == "its gradient is 0 on 12 inputs"
    assert PLAIN not in getattr(found.attack, "attacks", (found.attack,))


def test_where_nothing_can_be_tried_the_likeliest_stand_in_is_prescribed() -> None:
    target = _slowed("quantizer", 0.02)
    found = prescribe(target, X, Y, LINF, _blamed(target), budget=0.5)
    assert "BPDA" in repr(found.attack) and "not tried" in " ".join(found.why)


def _asked(name: str) -> tuple[Target, Tensor, Tensor, ThreatModel, Diagnosis]:
    target = OBFUSCATED[name]().target
    return target, X, Y, LINF, _blamed(target)


def _tried(
    candidate: Candidate, *, draws: int = 0, fell: int = 12, scale: float = 1.0, refused: str = ""
) -> Tried:
    trial = Trial(candidate.what, "", fell, 12, 0.0, refused)
    return Tried(candidate, trial, frozenset(range(fell)), fell / 12, scale, draws)


def _composed(*ranked: Tried, seconds: float, **others: object) -> Composed:
    # a pass of n inputs takes n seconds, and there are 10 inputs
    asked: dict[str, object] = {"stochastic": False, "plain": None, "scores": False, **others}
    return compose(ranked, pace=Pace(0.0, 1.0), inputs=10, tried=12, seconds=seconds, **asked)  # type: ignore[arg-type]


STAND_IN = Candidate("a stand-in", BPDA({"net": identity}))
VIEW = STAND_IN.view(0)


@pytest.mark.parametrize(
    ("seconds", "attack"),
    [
        (10_751.0, Standard(VIEW)),
        (10_749.0, APGD(VIEW, steps=60, loss="margin")),
        (599.0, APGD(VIEW, steps=40, loss="margin")),
        (399.0, APGD(VIEW, steps=20, loss="margin")),
        (1.0, APGD(VIEW, steps=10, loss="margin")),
    ],
)
def test_steps_are_what_the_time_holds(seconds: float, attack: object) -> None:
    found = _composed(_tried(STAND_IN), seconds=seconds)
    assert found.attack == attack
    assert bool(found.cut) is (not isinstance(attack, Standard))
    assert found.expected <= max(seconds, 100.0)


def test_standard_costs_what_it_is_taken_to_cost() -> None:
    target = Target(_Certain().eval(), num_classes=5, input_shape=(4,))
    found = Standard()(target, torch.full((1, 4), 0.5), torch.tensor([0]), ThreatModel(Norm.L1, 0.1), seed=0)
    taken = _composed(_tried(Candidate("the plain gradient", Autograd())), seconds=1e6)
    assert found.backwards.tolist() == [430] and taken.expected == 430 * 10


class _Certain(nn.Module):
    """Five classes, of which the first wins everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.stack([share * x.flatten(1).sum(1) for share in (0.0, 0.1, 0.2, 0.3, 0.4)], 1)
        return scores + 9.0 * torch.eye(5)[0]


def test_draws_are_given_up_before_steps_are_few() -> None:
    noisy = Candidate("a draw", Autograd(), draws=-1)
    forms = [
        _composed(_tried(noisy, draws=8), seconds=seconds, stochastic=True).attack
        for seconds in (3300.0, 1700.0, 850.0, 430.0, 220.0, 1.0)
    ]
    expected = [(EOT(8), 40), (EOT(4), 40), (EOT(2), 40), (EOT(2), 20), (Autograd(), 20), (Autograd(), 10)]
    assert forms == [PGD(gradient, steps=steps, loss="margin") for gradient, steps in expected]


def test_what_does_not_fit_beside_the_best_is_named() -> None:
    other = Candidate("another", Autograd())
    both = _composed(_tried(STAND_IN), _tried(other), seconds=100_000.0)
    assert isinstance(both.attack, WorstOf) and len(both.attack.attacks) == 2 and both.cut == ()
    best = _composed(_tried(STAND_IN, fell=6), _tried(other, fell=6), seconds=110.0, scores=True)
    assert best.attack == APGD(VIEW, steps=10, loss="margin")
    assert any("another" in each for each in best.cut) and any("scores alone" in each for each in best.cut)


def test_the_plain_attack_goes_first_if_it_fits() -> None:
    plain = _tried(Candidate("the plain gradient", Autograd()), fell=0)
    found = _composed(_tried(STAND_IN), seconds=100_000.0, plain=plain)
    assert isinstance(found.attack, WorstOf) and found.attack.attacks[0] == PLAIN
    found = _composed(_tried(STAND_IN), seconds=650.0, plain=plain)
    assert found.attack == APGD(VIEW, steps=60, loss="margin") and any("plain" in each for each in found.cut)


def test_a_search_by_scores_has_as_many_queries_as_fit() -> None:
    found = _composed(_tried(STAND_IN, fell=0), seconds=10_750.0, scores=True)
    assert isinstance(found.attack, WorstOf) and found.attack.attacks[-1] == Square(queries=644)


def test_rows_of_a_gradient_are_counted() -> None:
    blind = Candidate("scores", Autograd(), draws=64, sigma=0.1)
    assert [blind.rows(64), STAND_IN.rows(0), Candidate("", Autograd(), draws=-1).rows(7)] == [129, 1, 7]
    assert blind.view(8) == NES(8, sigma=0.1) and blind.least == 8
    assert Candidate("", Autograd(), draws=-1).view(1) == Autograd()
    assert halved(40, 8) == [40, 20, 10, 8] and halved(0, 0) == [0]


def test_a_trial_is_as_small_as_its_time() -> None:
    case = make_case(_slowed("", 0.002), X[:12], Y[:12], LINF, PLAIN, seed=0)
    plain = Candidate("the plain gradient", Autograd())
    whole = try_candidate(case, plain, seconds=10.0)
    assert whole.trial.tried == len(case.x) and "steps" not in whole.trial.what
    part = try_candidate(case, plain, seconds=0.2)
    assert 0 < part.trial.tried <= 4 and "steps" in part.trial.what
    none = try_candidate(case, plain, seconds=0.005)
    assert none.late and "left out" in none.trial.refused
    assert "left out, there is time for" in try_scores(case, [0, 1], seconds=0.1).refused


def test_a_search_is_given_up_between_steps() -> None:
    target, began = _slowed("", 0.0005), time.perf_counter()
    trace = Trace(until=began + 0.5)
    with pytest.raises(OutOfTime):
        PGD(steps=10_000, keep=True)(target, X[:4], Y[:4], LINF, seed=0, trace=trace)
    assert time.perf_counter() - began < 3.0 and len(trace.value) >= 2
    later = Trace(until=time.perf_counter() + 100.0)
    PGD(steps=5, keep=True)(undefended(), X[:4], Y[:4], LINF, seed=0, trace=later)
    assert len(later.value) >= 5


def test_a_check_that_does_not_fit_stays_open_and_says_so() -> None:
    target = _slowed("quantizer", 0.001)
    began = time.perf_counter()
    found = diagnose(target, X[:6], Y[:6], LINF, attack=PGD(steps=400), budget=0.5)
    assert time.perf_counter() - began < 20.0
    said = {each.check: each for each in found.findings}
    late = said["more-steps-help"]
    assert late.verdict == "open" and "does not suffice for 2 inputs" in late.measured


def test_a_case_in_a_hurry_leaves_inputs_out_and_counts_them() -> None:
    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.002 * len(x))
            return x + 1e-3 * torch.rand_like(x)

    net = nn.Sequential(Drawn(), undefended().module)
    target = Target(net.eval(), num_classes=3, input_shape=(1, 8, 8), stochastic=True, probe=False)
    case = make_case(target, X, Y, LINF, PLAIN, seed=0, seconds=0.1)
    assert case.looked < len(X) and case.judge.draws == 5
    assert set(case.rows) <= set(range(case.looked)) and torch.equal(case.x, X[list(case.rows)])
    every = make_case(target, X, Y, LINF, PLAIN, seed=0)
    assert every.looked == len(X) and every.judge.draws == 20 and every.rows[: len(case.rows)] == case.rows


def test_a_pace_is_a_line_in_the_rows() -> None:
    draws = Draws(0, Role.ESTIMATE, tuple(range(20)))
    pace = measure_pace(_slowed("", 0.01), X[:20], draws)
    assert 0.15 < pace.seconds(16) < 0.4 and pace.seconds(32) > 1.7 * pace.seconds(16)
