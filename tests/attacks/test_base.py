"""What is alike for all attacks: what is refused, what is searched, and what a result says."""

from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack, GradientAttack
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.attacks.view import Trace, View
from calipers.errors import CalipersError, GradientsUnavailable, InvalidInput, UsageError
from calipers.randomness import Draws, Role
from calipers.target import Access, Target
from calipers.testing.known_answers import half_space, noisy_half_space, staircase
from calipers.threat.threat_model import Norm, Targeted, ThreatModel, Untargeted


@final
@dataclass(frozen=True)
class _Jump(Attack):
    """Gives candidates a fixed way off, and asks for nothing."""

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    by: float = 1.0

    @property
    def access(self) -> Access:
        return Access.DECISIONS

    def _search(self, view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        assert draws.role is Role.SEARCH
        assert len(draws) == len(x) == len(y)
        if isinstance(threat.goal, Targeted):
            assert len(threat.goal.classes) == len(x)
        return x + self.by


LINE = half_space([1.0, 1.0], -1.0)
X = torch.tensor([[0.0, 0.0], [0.2, 0.2], [0.9, 0.9]])
Y = torch.tensor([0, 0, 0])
FREE = ThreatModel(Norm.LINF)


def test_what_the_search_ends_with_is_judged_and_not_believed() -> None:
    found = _Jump(0.4)(LINE.target, X, Y, FREE, seed=0)
    assert found.success.tolist() == [False, True, True]
    assert found.reason == ("not found", "found", "already wrong")
    assert torch.allclose(found.distance, torch.tensor([0.4, 0.4, 0.0], dtype=torch.float64))
    assert torch.equal(found.adversarial[2], X[2])
    assert [record.success for record in found.records()] == [False, True, True]
    assert [record.prediction for record in found.records()] == [0, 1, 1]


def test_wild_candidates_do_no_harm() -> None:
    for wild in (float("nan"), float("inf"), -float("inf"), 1e30):
        found = _Jump(wild)(LINE.target, X, Y, ThreatModel(Norm.L2, 0.5), seed=0)
        assert bool(torch.isfinite(found.adversarial).all())
        assert bool((found.distance <= 0.5).all())
        again = LINE.target.predict(found.adversarial)
        assert torch.equal(again == 1, found.success)


def test_wanted_classes_go_with_the_inputs_that_are_searched() -> None:
    goal = Targeted((1, 0, 1))
    found = _Jump(0.4)(LINE.target, X, torch.tensor([0, 1, 0]), ThreatModel(Norm.LINF, None, goal), seed=0)
    assert found.reason == ("not found", "already wrong", "already wrong")
    assert [record.goal for record in found.records()] == [repr(Targeted((one,))) for one in (1, 0, 1)]


def test_no_inputs_give_no_results() -> None:
    for attack in (_Jump(), PGD(steps=2)):
        found = attack(LINE.target, X[:0], Y[:0], ThreatModel(Norm.LINF, 0.1), seed=0)
        assert len(found.success) == len(found.records()) == len(found.reason) == 0


def test_indices_decide_the_draws_and_stand_in_the_records() -> None:
    attack, threat = PGD(steps=1, step_size=1e-6), ThreatModel(Norm.LINF, 0.1)
    first = attack(LINE.target, X[:2], Y[:2], threat, seed=0, indices=[7, 9])
    other = attack(LINE.target, X[[1, 0]], Y[:2], threat, seed=0, indices=[9, 7])
    plain = attack(LINE.target, X[:2], Y[:2], threat, seed=0)
    assert torch.equal(first.adversarial, other.adversarial[[1, 0]])
    assert not torch.equal(first.adversarial, plain.adversarial)
    assert [record.index for record in first.records()] == [7, 9]


@pytest.mark.parametrize(
    ("attack", "x", "y", "threat", "indices", "error", "says"),
    [
        (
            _Jump(),
            X,
            Y,
            ThreatModel(Norm.L1, 1.0),
            None,
            UsageError,
            "norm is l1 and _Jump searches in linf, l2",
        ),
        (PGD(), X, Y, FREE, None, UsageError, "eps is not given"),
        (PGD(), X, Y, ThreatModel(Norm.L2, 1.0), [0, 1], UsageError, "2 indices for 3 inputs"),
        (PGD(), X, Y, ThreatModel(Norm.L2, 1.0), [0, 1, 1], UsageError, "all different"),
        (PGD(), X, Y - 1, ThreatModel(Norm.L2, 1.0), None, InvalidInput, "input 0 has no label"),
        (PGD(), X, Y + 2, ThreatModel(Norm.L2, 1.0), [5, 6, 7], InvalidInput, "input 5 has label 2"),
        (PGD(), X * torch.nan, Y, ThreatModel(Norm.L2, 1.0), None, InvalidInput, "NaN"),
        (PGD(), X + 1e9, Y, ThreatModel(Norm.L2, 1.0), None, InvalidInput, "outside the bounds"),
        (PGD(), X[:, :1], Y, ThreatModel(Norm.L2, 1.0), None, InvalidInput, "shape"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_line(
    attack: Attack,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    indices: list[int] | None,
    error: type[CalipersError],
    says: str,
) -> None:
    with pytest.raises(error, match=says) as refused:
        attack(LINE.target, x, y, threat, seed=0, indices=indices)
    assert "\n" not in str(refused.value)


def test_wanted_classes_that_do_not_fit_are_refused() -> None:
    for goal in (Targeted((1, 1)), Targeted((1, 1, 5)), Targeted((1, 1, -1))):
        with pytest.raises(CalipersError) as refused:
            _Jump()(LINE.target, X, Y, ThreatModel(Norm.LINF, None, goal), seed=0)
        assert "\n" not in str(refused.value)


def test_a_target_without_gradients_is_refused_and_one_without_any_is_named() -> None:
    scores = Target.from_scores(
        lambda rows: rows @ [[1.0, 0.0], [0.0, 1.0]], num_classes=2, input_shape=(2,), fingerprint="scores"
    )
    with pytest.raises(GradientsUnavailable):
        PGD()(scores, X, Y, ThreatModel(Norm.LINF, 0.1), seed=0)

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)

    cut = Target(Detached().eval(), num_classes=2, input_shape=(2,), probe=False)
    with pytest.raises(GradientsUnavailable, match="bpda"):
        PGD()(cut, torch.tensor([[0.6, 0.1]]), Y[:1], ThreatModel(Norm.LINF, 0.1), seed=0)


def test_a_gradient_that_is_0_everywhere_is_said_to_be_the_reason() -> None:
    known = staircase([0.0, 1.0], [0, 1, 0])
    x = torch.tensor([[0.5], [2.0]])
    found = PGD(steps=3, random_start=False)(
        known.target, x, torch.tensor([1, 0]), ThreatModel(Norm.LINF, 0.3), seed=0
    )
    assert found.reason == ("no gradient", "no gradient")


def test_a_randomized_target_is_not_dropped_on_a_lucky_draw() -> None:
    known = noisy_half_space([1.0, 0.0], flip=0.45)
    x = torch.tensor([[-1.0, 0.0]]).repeat(8, 1)
    y = torch.zeros(8, dtype=torch.int64)
    attack = PGD(steps=6, random_start=False, loss="margin")
    found = attack(known.target, x, y, ThreatModel(Norm.LINF, 0.1), seed=0, judge=Judge(draws=200))
    searched = torch.tensor([reason != "already wrong" for reason in found.reason])
    assert bool(searched.any())
    assert bool((found.forwards[searched] == 7).all())
    assert not bool(found.success[searched].any())
    assert bool((found.verdict.flips > 0).all())


def test_a_trace_changes_nothing() -> None:
    attack, threat = PGD(steps=4, keep=True), ThreatModel(Norm.L2, 0.4)
    trace = Trace()
    traced = attack(LINE.target, X, Y, threat, seed=0, trace=trace)
    assert torch.equal(traced.adversarial, attack(LINE.target, X, Y, threat, seed=0).adversarial)
    assert [rows.tolist() for rows in trace.rows] == [[0, 1]] * 4
    assert bool((trace.value[-1] > trace.value[0]).all())


def test_an_attack_that_forgets_its_search_cannot_be_made() -> None:
    with pytest.raises(TypeError):
        GradientAttack()  # type: ignore[abstract]


def test_float64_inputs_are_attacked_as_float32() -> None:
    found = _Jump(0.0)(LINE.target, X.double() + 1e-12, Y, ThreatModel(Norm.LINF, 0.0), seed=0)
    assert found.adversarial.dtype == torch.float32
    assert not bool(found.distance.any())


@final
class _Picky(nn.Module):
    """Says class 0 everywhere, and rejects what lies near 0."""

    def forward(self, x: Tensor) -> Tensor:
        near = 1 - 10 * x.abs().amax(1)
        return torch.stack([torch.ones_like(near), torch.zeros_like(near), 1 + near], 1)


@pytest.mark.parametrize(("abstain", "undetermined"), [("neither", True), ("right", False)])
def test_a_rejected_clean_input_does_not_stand_for_a_candidate_that_is_accepted(
    abstain: str, undetermined: bool
) -> None:
    target = Target(
        _Picky().eval(), num_classes=2, input_shape=(2,), bounds=(-1.0, 1.0), detector=True, probe=False
    )
    goal = Untargeted(abstain)  # type: ignore[arg-type]
    x, y = torch.tensor([[0.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 0])
    found = _Jump(0.4)(target, x, y, ThreatModel(Norm.LINF, 0.5, goal), seed=0)
    assert found.verdict.prediction.tolist() == [0, 0]
    assert found.success.tolist() == [False, False]
    assert [record.undetermined for record in found.records()] == [undetermined, False]


def test_a_goal_that_wants_the_label_is_refused() -> None:
    # the right answer at the clean input would count as a success at distance 0
    with pytest.raises(UsageError, match="wants class 0 of input 1 .* its label"):
        _Jump(0.4)(LINE.target, X, Y, ThreatModel(Norm.LINF, None, Targeted((1, 0, 1))), seed=0)


def test_a_result_is_shown_in_one_line() -> None:
    known = half_space([1.0, 2.0])
    x, threat = torch.tensor([[0.1, 0.1], [5.0, 5.0]]), ThreatModel(Norm.LINF, 0.5)
    found = PGD(steps=5)(known.target, x, torch.tensor([1, 1]), threat, seed=0)
    assert (
        repr(found) == f"AttackResult(1 of 2 inputs fooled, median distance {float(found.distance[0]):.4g})"
    )
    none = PGD(steps=5)(known.target, x[1:], torch.tensor([1]), threat, seed=0)
    assert repr(none) == "AttackResult(0 of 1 inputs fooled)"
    assert repr(known.target).endswith("2 classes, inputs of shape (2,))")
