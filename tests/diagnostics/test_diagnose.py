"""diagnose: green on an honest network, red where a behaviour is there, open where a check cannot be made."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.apgd import APGD
from calipers.attacks.ddn import DDN
from calipers.attacks.fgsm import FGSM
from calipers.attacks.pgd import PGD
from calipers.attacks.square import Square
from calipers.attacks.view import Trace
from calipers.diagnostics import behaviours, flags, indicators
from calipers.diagnostics.binarization import binarization, last_layer
from calipers.diagnostics.case import Case, Ran
from calipers.diagnostics.convergence import more_steps_help
from calipers.diagnostics.diagnose import Diagnosis, diagnose
from calipers.diagnostics.making import make_case
from calipers.diagnostics.texts import TEXTS
from calipers.errors import UsageError
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.testing.obfuscated import OBFUSCATED, smooth_images, undefended
from calipers.threat.threat_model import Norm, ThreatModel

_spec = importlib.util.spec_from_file_location("hiders", Path(__file__).with_name("hiders.py"))
assert _spec is not None and _spec.loader is not None
hiders = importlib.util.module_from_spec(_spec)
sys.modules["hiders"] = hiders
_spec.loader.exec_module(hiders)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "diagnosis"
LINF = ThreatModel(Norm.LINF, 0.11)
X, Y = smooth_images(20, seed=2)
MODULE_CHECKS = ("shattered", "stochastic", "exploding", "vanishing")


def _case(target: Target, *, attack: PGD | FGSM | None = None, run: bool = True, count: int = 20) -> Case:
    case = make_case(target, X[:count], Y[:count], LINF, attack or PGD(steps=20), seed=0)
    if run:
        case.main = case.within(case.attack, 5.0)
    return case


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("restarts", [2, 5])
def test_every_check_is_green_on_the_adversarially_trained_network(restarts: int) -> None:
    x, y = hiders.images(50)
    target = load_model("bundled:fashion-cnn28-adversarial")
    attack = PGD(steps=40, restarts=restarts)
    # four times the usual time, for a machine that does other things
    found = diagnose(target, x, y, ThreatModel(Norm.LINF, 0.1), attack=attack, budget=240.0)
    assert {each.check: each.verdict for each in found.findings if each.verdict != "green"} == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quantizer", {"black-box-beats-white-box", "unbounded-attack-fails", "zero-gradient"}),
        ("saturated softmax", {"softmax-output", "unbounded-attack-fails", "zero-gradient"}),
        ("dropped features", {"randomized"}),
        ("unrolled descent", {"black-box-beats-white-box", "unbounded-attack-fails"}),
    ],
)
def test_what_a_hidden_gradient_shows_is_red(name: str, expected: set[str]) -> None:
    case = _case(OBFUSCATED[name]().target, count=12)
    found = [
        behaviours.unbounded_attack_fails(case, seconds=30.0)[0],
        flags.randomized(case),
        flags.softmax_output(case),
        flags.zero_gradient(case),
    ]
    if "black-box-beats-white-box" in expected:
        found.append(behaviours.black_box_beats_white_box(case, seconds=5.0)[0])
    assert {each.check for each in found if each.verdict == "red"} == expected


def test_a_search_without_time_is_not_called_green() -> None:
    case = _case(OBFUSCATED["python function"]().target)
    case.target = undefended()
    found, _ = behaviours.black_box_beats_white_box(case, seconds=0.0)
    assert "with 10 queries" in found.measured
    assert found.verdict in ("open", "red")


@pytest.mark.parametrize("weak", [False, True])
def test_square_with_few_queries_that_finds_nothing_leaves_its_flag_open(weak: bool) -> None:
    case = _case(OBFUSCATED["quantizer"]().target)
    ran = case.within(Square(queries=1), 5.0, rows=case.standing())
    none = replace(ran, success=torch.zeros_like(ran.success))
    assert len(none.rows) > 1
    assert flags.square_better(case, none, seconds=5.0, weak=weak).verdict == ("open" if weak else "green")


def test_what_square_finds_and_stronger_gradients_find_too_masks_no_gradient() -> None:
    weak = PGD(steps=1, step_size=0.001, random_start=False)
    for target, verdict, stronger in (
        (undefended(), "green", True),
        (OBFUSCATED["quantizer"]().target, "red", False),
    ):
        case = _case(target, attack=weak)
        ran = case.within(Square(queries=1000), 10.0, rows=case.standing())
        assert int(ran.success.sum()) > 5
        found = flags.square_better(case, ran, seconds=20.0)
        assert found.verdict == verdict
        assert (found.statistic == 0) is stronger
        assert (
            flags.square_better(case, ran, seconds=0.0).verdict == "red"
        )  # none of them was tried in no time


def test_every_check_has_a_finding_a_text_and_a_page() -> None:
    found = diagnose(undefended(), X[:6], Y[:6], LINF, budget=3.0)
    checks = {each.check for each in found.findings}
    assert checks == set(TEXTS) | set(MODULE_CHECKS)
    assert [check for check in checks if not (DOCS / f"{check}.md").is_file()] == []
    for each in found.findings:
        assert each.measured and each.explanation and each.page == f"diagnosis/{each.check}"
        assert bool(each.remedy) is (each.verdict == "red")
    assert found.right == 6 and len(found.records()) == found.attacked >= 2
    assert "fall to PGD" in found.text()


def test_an_attack_without_a_size_is_refused() -> None:
    with pytest.raises(UsageError, match="DDN looks for the least size"):
        diagnose(undefended(), X, Y, LINF, attack=DDN())
    with pytest.raises(UsageError, match="give eps"):
        diagnose(undefended(), X, Y, ThreatModel(Norm.LINF))


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="none of 20 inputs"):
        diagnose(undefended(), X, (Y + 1) % 3, LINF, budget=1.0)


def test_inputs_that_are_answered_wrongly_are_left_out() -> None:
    labels = Y.clone()
    labels[:5] = (labels[:5] + 1) % 3
    assert len(make_case(undefended(), X, labels, LINF, PGD(), seed=0).x) == 15


class _Inverted(nn.Module):
    """Honest for one step from the input itself, and misleading farther away: the gradient turns around."""

    def __init__(self) -> None:
        super().__init__()
        self.net = undefended().module

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x)
        return scores + 2 * (scores.detach() - scores)


def test_a_gradient_that_leads_away_is_beaten_by_one_step_somewhere_else() -> None:
    honest = _case(undefended())
    case = _case(Target(_Inverted().eval(), num_classes=3, input_shape=(1, 8, 8), probe=False))
    assert case.main is not None and honest.main is not None
    assert int(case.main.success.sum()) == 0 and int(honest.main.success.sum()) >= 18
    found, _ = behaviours.black_box_beats_white_box(case, seconds=2.0)
    assert found.verdict == "red"


def test_one_step_is_compared_input_by_input() -> None:
    case = _case(undefended(), attack=PGD(steps=20))
    assert case.main is not None
    case.main.success = torch.zeros_like(case.main.success)
    found = behaviours.one_step_beats_iterative(case, seconds=2.0)
    alone = int(FGSM()(case.target, case.x, case.y, LINF, seed=0).success.sum())
    assert f"{alone} fall to one step alone, 0 to the attack alone" in found.measured
    assert found.statistic == pytest.approx(0.5**alone)
    assert found.verdict == ("red" if alone >= 7 else "green")


def test_a_curve_that_falls_is_red() -> None:
    case = _case(undefended())
    assert behaviours.success_falls_with_size(case, seconds=5.0).verdict == "green"
    assert case.main is not None
    case.attack = PGD(steps=1, step_size=1e-6)  # finds nothing at any size but what it is told it found
    case.main.success = torch.ones_like(case.main.success)
    assert behaviours.success_falls_with_size(case, seconds=5.0).verdict == "red"


def test_a_check_that_the_time_cut_to_two_inputs_is_open_and_not_green() -> None:
    case = _case(undefended(), run=False)
    case.main = case.within(case.attack, 0.0, surely=True)
    assert len(case.main.rows) == 2
    unbounded, whole = behaviours.unbounded_attack_fails(case, seconds=0.0)
    found = [
        behaviours.one_step_beats_iterative(case, seconds=5.0),
        unbounded,
        indicators.unconstrained_attack_fails(case, whole),
        indicators.silent_success(case),
        indicators.incomplete_optimization(case),
        behaviours.success_falls_with_size(case, seconds=5.0),
        behaviours.black_box_beats_white_box(case, seconds=5.0)[0],
        behaviours.random_search_finds_more(case, seconds=5.0),
        more_steps_help(case, seconds=5.0),
    ]
    assert {each.check: each.verdict for each in found if each.verdict != "open"} == {}


def test_what_was_left_open_is_not_called_green() -> None:
    case = _case(undefended(), run=False)
    left = case.finding("binarization", 0.0, 0.95, None, "no time")
    found = Diagnosis((left,), (), repr(case.attack), "f", 20, 20, 0, 1.0)
    assert repr(found) == "Diagnosis(0 of 0 inputs fall; 0 of 1 findings red, 1 open)"
    told = found.text()
    assert "open  binarization" in told and "green" not in told


def _ran(values: list[float], reached: list[bool], fell: bool) -> Ran:
    trace = Trace()
    for value, hit in zip(values, reached, strict=True):
        trace.rows.append(torch.tensor([0]))
        trace.value.append(torch.tensor([value]))
        trace.reached.append(torch.tensor([hit]))
    return Ran([0], torch.tensor([fell]), X[:1], [(0, trace)], (), 0.0)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([float(step) for step in range(40)], "red"), ([min(step, 20) / 20 for step in range(40)], "green")],
)
def test_a_loss_that_still_rises_is_told_from_one_that_has_settled(values: list[float], verdict: str) -> None:
    case = _case(undefended(), run=False, count=1)
    case.main = _ran(values, [False] * 40, False)
    assert indicators.incomplete_optimization(case).verdict == verdict


class _Far(nn.Module):
    """A half-space that is reached at a change of .15 in the mean."""

    def forward(self, x: Tensor) -> Tensor:
        far = x.flatten(1).mean(1) - 0.65
        return torch.stack([-far, far], 1)


def test_what_is_reached_in_a_larger_ball_alone_is_no_silent_success() -> None:
    target = Target(_Far().eval(), num_classes=2, input_shape=(6,))
    x, y = torch.full((3, 6), 0.5), torch.zeros(3, dtype=torch.int64)
    case = make_case(target, x, y, ThreatModel(Norm.LINF, 0.05), APGD(steps=20), seed=0)
    case.main = case.within(case.attack, 20.0, surely=True)
    assert not bool(case.main.success.any())
    assert indicators.silent_success(case).verdict == "green"


def test_a_success_that_was_not_reported_is_silent() -> None:
    case = _case(undefended(), run=False, count=1)
    case.main = _ran([0.0, 1.0], [True, False], False)
    assert indicators.silent_success(case).verdict == "red"
    case.main = _ran([0.0, 1.0], [True, False], True)
    assert indicators.silent_success(case).verdict == "green"


def test_few_steps_are_helped_by_more() -> None:
    case = _case(undefended(), attack=PGD(steps=2, step_size=0.2))
    assert more_steps_help(case, seconds=3.0).verdict == "red"
    assert more_steps_help(_case(undefended()), seconds=3.0).verdict == "green"


def test_the_flags_say_what_the_classifier_is() -> None:
    case = _case(undefended(), run=False)
    assert flags.randomized(case).statistic == 0
    assert flags.softmax_output(case).verdict == "green"
    assert flags.optimization_at_inference(case).verdict == "green"
    optimizing = make_case(
        hiders.before(hiders.Descent()), *hiders.images(4), ThreatModel(Norm.LINF, 0.1), PGD(), seed=0
    )
    assert flags.optimization_at_inference(optimizing).statistic >= 20
    wanting = replace(case, attack=PGD(loss="dlr"))
    assert flags.few_classes(wanting).verdict == "green"


def test_the_last_layer_is_found_behind_a_softmax_and_refused_at_the_input() -> None:
    assert last_layer(undefended(), X[:2]) is None
    assert last_layer(load_model("bundled:fashion-cnn28-plain"), hiders.images(2)[0]) == "net.dense2"
    assert (
        last_layer(hiders.behind(hiders.SharpSoftmax()), hiders.images(2)[0]) == "net.classifier.net.dense2"
    )


def test_binarization_passes_a_sound_attack_and_fails_a_weak_one() -> None:
    x, y = hiders.images(14)
    target, threat = load_model("bundled:fashion-cnn28-adversarial"), ThreatModel(Norm.LINF, 0.1)
    sound = binarization(make_case(target, x, y, threat, PGD(steps=20), seed=0), seconds=30.0)
    weak = binarization(make_case(target, x, y, threat, PGD(steps=1, step_size=1e-3), seed=0), seconds=30.0)
    assert (sound.verdict, weak.verdict) == ("green", "red")
    assert sound.statistic > 0.9 > weak.statistic


class _Refusing(nn.Module):
    """Leaves torch, so that autograd refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = undefended().module

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.net(x.detach()).numpy())


def test_a_comparison_of_two_searches_without_a_gradient_is_open() -> None:
    case = _case(Target(_Refusing().eval(), num_classes=3, input_shape=(1, 8, 8), probe=False))
    assert case.main is not None and case.main.refused
    for found in (
        behaviours.one_step_beats_iterative(case, seconds=5.0),
        more_steps_help(case, seconds=5.0),
        indicators.incomplete_optimization(case),
    ):
        assert found.verdict == "open"


class _Undefined(nn.Module):
    """Gives scores that are no numbers wherever the input is not one of the images that it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = undefended().module
        self.register_buffer("known", X[:, :, 0, 0])

    def forward(self, x: Tensor) -> Tensor:
        known = (x[:, None, 0, 0, 0] == self.known[None, :, 0]).any(1)
        return torch.where(known[:, None], self.net(x), torch.nan)


def test_scores_that_are_no_numbers_leave_checks_open_and_never_green() -> None:
    case = _case(Target(_Undefined().eval(), num_classes=3, input_shape=(1, 8, 8), probe=False))
    assert len(case.x) == 20
    assert indicators.incomplete_optimization(case).verdict == "open"
    case.x = case.x + 0.001
    assert flags.randomized(case).verdict == flags.softmax_output(case).verdict == "open"


def test_inputs_for_which_the_classifier_abstains_are_not_answered_rightly() -> None:
    abstains = Target(_Undefined().eval(), num_classes=3, input_shape=(1, 8, 8), probe=False)
    with pytest.raises(UsageError, match="none of 20 inputs"):
        make_case(abstains, X + 0.001, Y, LINF, PGD(), seed=0)


def test_a_size_beyond_the_box_leaves_the_sizes_open() -> None:
    case = make_case(undefended(), X, Y, ThreatModel(Norm.LINF, 5.0), PGD(steps=5), seed=0)
    case.main = case.within(case.attack, 5.0)
    assert behaviours.success_falls_with_size(case, seconds=5.0).verdict == "open"


def test_a_loss_that_rises_from_every_start_is_unfinished_however_many_starts_there_are() -> None:
    for restarts in (1, 2, 8):
        attack = PGD(steps=10, step_size=0.01, restarts=restarts)
        found = indicators.incomplete_optimization(_case(undefended(), attack=attack))
        assert found.verdict == "red" and found.statistic > 0.9


def test_checks_are_open_where_few_inputs_were_asked_for_want_of_time() -> None:
    case = _case(undefended())
    assert not case.scant(20)
    few = replace(case, x=case.x[:3], y=case.y[:3], looked=3)
    assert few.given == 20 and few.scant(3)
    assert not replace(few, given=3).scant(3)  # there were no others


def test_half_precision_probabilities_are_seen() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = undefended().module

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).softmax(1).bfloat16()

    target = Target(Half().eval(), num_classes=3, input_shape=(1, 8, 8), probe=False)
    assert flags.softmax_output(_case(target, run=False)).verdict == "red"
    assert flags.softmax_output(_case(undefended(), run=False)).verdict == "green"


def test_what_is_found_more_is_told_where_it_is_too_little_to_be_red() -> None:
    case = _case(OBFUSCATED["quantizer"]().target)
    assert case.main is not None
    rows = list(range(20))
    case.main = replace(case.main, rows=rows, success=torch.zeros(20, dtype=torch.bool))
    one = replace(case.main, success=torch.arange(20) == 3)
    found = case.more("more-steps-help", one, what="twice")
    assert found.verdict == "green" and "1 more" in found.explanation
    none = case.more("more-steps-help", case.main, what="twice")
    assert none.verdict == "green" and none.explanation == TEXTS["more-steps-help"].green
