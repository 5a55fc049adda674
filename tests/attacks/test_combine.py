"""Combinations: worst_of and minimize_eps pass the contract of any attack, and do what their names say."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.apgd import APGD
from calipers.attacks.base import Attack
from calipers.attacks.combine import minimize_eps, worst_of
from calipers.attacks.ddn import DDN
from calipers.attacks.fgsm import FGSM
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.attacks.ray import Ray
from calipers.attacks.transfer import Transfer
from calipers.attacks.view import View
from calipers.errors import ScoresUnavailable, UsageError
from calipers.gradients.eot import EOT
from calipers.gradients.finite_differences import NES
from calipers.randomness import Draws
from calipers.target import Access, Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import half_space, noisy_half_space
from calipers.threat.threat_model import Norm, ThreatModel


class TestWorstOf(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return worst_of(FGSM(), APGD(steps=10))


class TestMinimizeEps(AttackContract):
    ratio = 1.05

    def make(self) -> Attack:
        return minimize_eps(FGSM(), tolerance=0.04)


class TestWorstOfTheNearest(AttackContract):
    ratio = 1.1

    def make(self) -> Attack:
        return worst_of(
            minimize_eps(FGSM(), tolerance=0.3), minimize_eps(FGSM(loss="margin"), tolerance=0.09)
        )


# ------------------------------------------------------------------------------------------- what the names say

X = torch.tensor([[0.2, 0.1], [0.9, 0.8], [2.0, 2.0]])
Y = torch.tensor([1, 1, 1])
LINE = half_space([1.0, 1.0])


@final
@dataclass(frozen=True)
class _Revised(Attack):
    """A member in the form that its authors gave it last."""

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF,)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 3

    access: ClassVar[Access] = Access.DECISIONS

    def _search(self, view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        return x


def test_a_combination_is_another_one_when_a_member_is_revised() -> None:
    """Its text stays the same, so the revision alone keeps what was found before out of what is found now."""
    new, old = _Revised(), FGSM()
    assert old.revision == 1
    combined = (worst_of(new, old), minimize_eps(new), worst_of(old, minimize_eps(new)), Transfer("x", new))
    unrevised = (worst_of(old, old), minimize_eps(old), worst_of(old, minimize_eps(old)), Transfer("x", old))
    raised = [one.revision - other.revision for one, other in zip(combined, unrevised, strict=True)]
    assert raised == [new.revision - old.revision] * 4 == [2] * 4
    assert Ray(minimize_eps(new)).revision - Ray(minimize_eps(old)).revision == 2
    assert replace(combined[1], tolerance=0.5).revision == combined[1].revision


@final
@dataclass(frozen=True)
class _Shift(Attack):
    """Gives every input one shift, and asks as often as it is told."""

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    by: float
    asks: int = 1

    @property
    def access(self) -> Access:
        return Access.DECISIONS

    def _search(self, view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        for _ in range(self.asks):
            view.predict(x, draws)
        return x + self.by


def test_members_run_in_order_each_on_what_still_stands() -> None:
    found = worst_of(_Shift(-0.3, 3), _Shift(-1.0, 5), _Shift(-1.5, 7))(
        LINE.target, X, Y, ThreatModel(Norm.LINF, 5.0), seed=0
    )
    assert found.success.tolist() == [True, True, False]
    # each member asks, and its candidate is asked for once more
    assert found.queries.tolist() == [3 + 1, 3 + 1 + 5 + 1, 3 + 1 + 5 + 1 + 7 + 1]
    assert torch.allclose(found.distance[:2], torch.tensor([0.3, 1.0], dtype=torch.float64))


def test_where_nothing_falls_the_strongest_candidate_is_kept() -> None:
    for order in ((-1.0, -0.5), (-0.5, -1.0)):
        members = [PGD(steps=1, step_size=1e-6, random_start=False), FGSM()]
        members = members if order[0] > order[1] else members[::-1]
        found = worst_of(*members)(LINE.target, X[2:], Y[2:], ThreatModel(Norm.LINF, 0.5), seed=0)
        assert torch.allclose(found.distance, torch.tensor([0.5], dtype=torch.float64))


def test_a_candidate_outside_the_ball_is_weighed_where_it_comes_to_lie() -> None:
    """A member that leaves the ball does not put out one that stays inside and succeeds."""
    found = worst_of(_Shift(-50.0), FGSM())(LINE.target, X[1:2], Y[1:2], ThreatModel(Norm.L2, 1.3), seed=0)
    assert bool(found.success[0])
    assert float(found.distance[0]) <= 1.3


def test_a_member_that_sees_decisions_alone_is_shown_no_scores() -> None:
    @final
    @dataclass(frozen=True)
    class Curious(Attack):
        norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF,)
        sized: ClassVar[bool] = True
        revision: ClassVar[int] = 1

        @property
        def access(self) -> Access:
            return Access.DECISIONS

        def _search(self, view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
            view.logits(x, draws)
            return x

    with pytest.raises(ScoresUnavailable):
        worst_of(FGSM(), Curious())(LINE.target, X, Y, ThreatModel(Norm.LINF, 0.01), seed=0)


def test_members_keep_their_own_gradients() -> None:
    """One that hides nothing and one that sees scores alone: each is counted as what it is."""
    both = worst_of(FGSM(), FGSM(NES(samples=8)))
    assert both.access is Access.GRADIENTS
    found = both(LINE.target, X[2:], Y[2:], ThreatModel(Norm.LINF, 0.01), seed=0)
    assert found.backwards.tolist() == [1]
    assert int(found.forwards[0]) >= 1 + 8


def test_a_randomized_target_is_not_down_on_one_lucky_answer() -> None:
    known = noisy_half_space([1.0, 0.0], flip=0.2)
    x, y = torch.tensor([[1.0, 0.0]]).repeat(5, 1), torch.ones(5, dtype=torch.int64)
    found = worst_of(_Shift(0.1), _Shift(-1.5))(known.target, x, y, ThreatModel(Norm.LINF, 2.0), seed=0)
    assert bool((found.distance > 1.4).all()), "the second member ran, and its rate of .8 beat that of .2"
    assert bool(found.success.all())


def test_what_a_combination_says_of_itself_is_what_its_members_say() -> None:
    assert worst_of(FGSM(), _Shift(1.0)).norms == (Norm.L2, Norm.LINF)
    assert worst_of(FGSM(), _Shift(1.0)).sized
    nearest = worst_of(minimize_eps(FGSM()))
    assert not nearest.sized
    assert minimize_eps(FGSM()).norms == FGSM.norms
    with pytest.raises(UsageError, match="eps is not given"):
        worst_of(FGSM(), minimize_eps(FGSM()))(LINE.target, X, Y, ThreatModel(Norm.LINF), seed=0)
    with pytest.raises(UsageError, match="norm is l1"):
        worst_of(FGSM(), _Shift(1.0))(LINE.target, X, Y, ThreatModel(Norm.L1, 1.0), seed=0)


def test_combinations_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="give at least one"):
        worst_of()
    with pytest.raises(UsageError, match="leave minimize_eps out"):
        minimize_eps(minimize_eps(FGSM()))
    for tolerance in (0.0, -1.0, 2.0, float("nan")):
        with pytest.raises(UsageError, match="tolerance"):
            minimize_eps(FGSM(), tolerance=tolerance)


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
def test_the_least_size_is_found_within_the_tolerance(norm: Norm) -> None:
    for tolerance in (0.3, 0.01):
        found = minimize_eps(FGSM(), tolerance=tolerance)(LINE.target, X, Y, ThreatModel(norm), seed=0)
        exact = torch.from_numpy(LINE.distance(X, norm))
        assert bool(found.success.all())
        assert bool((found.distance <= exact * (1 + tolerance) * 1.001).all())


def test_a_size_that_is_given_bounds_the_least_one() -> None:
    found = minimize_eps(FGSM())(LINE.target, X, Y, ThreatModel(Norm.LINF, 0.5), seed=0)
    assert found.success.tolist() == [True, False, False]
    assert float(found.distance[0]) < 0.16


def test_what_cannot_fall_is_not_found_and_is_left_alone() -> None:
    known = half_space([1.0, 1.0], 50.0, bounds=(0.0, 1.0))
    found = minimize_eps(FGSM())(known.target, X[:1], Y[:1], ThreatModel(Norm.LINF), seed=0)
    assert found.reason == ("not found",)
    assert torch.equal(found.adversarial, X[:1])


class _Noisy(nn.Module):
    """A half-space that sees its input under noise: near the plane every answer is a lottery."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 2.0, -1.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        side = (x + 0.3 * torch.randn_like(x)) @ self.weights
        return torch.stack([-side, side], 1)


def test_a_combination_loses_nothing_that_a_member_finds_of_a_randomized_classifier() -> None:
    net = _Noisy().eval()
    target = Target(net, num_classes=2, input_shape=(4,), bounds=(-100.0, 100.0), stochastic=True)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    side = x @ net.weights.detach()
    x, y = x[side.abs() > 0.8], (side[side.abs() > 0.8] > 0).long()
    threat, judge = ThreatModel(Norm.L2), Judge(draws=100)
    alone = DDN(EOT(20), steps=50)
    combined = worst_of(alone, minimize_eps(APGD(EOT(20), steps=10), tolerance=0.05))
    one = alone(target, x, y, threat, seed=0, judge=judge)
    both = combined(target, x, y, threat, seed=0, judge=judge)
    assert int(one.success.sum()) >= 20
    assert int(both.success.sum()) >= int(one.success.sum()) - 1
    shared = one.success & both.success
    assert float(both.distance[shared].median()) <= 1.1 * float(one.distance[shared].median())
