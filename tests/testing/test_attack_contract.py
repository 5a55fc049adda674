"""A contract that nothing fails is worth nothing: each broken attack here fails the tests that are meant for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, final

import pytest
import torch
from failed_tests import failed_tests
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.view import View
from calipers.errors import GradientsUnavailable
from calipers.randomness import Draws
from calipers.target import Access
from calipers.testing.attack_contract import AttackContract
from calipers.threat.norms import steepest
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, ThreatModel

Search = Callable[[View, Tensor, Tensor, ThreatModel, Draws], Tensor]


def _honest(view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    found = view.estimate(margin, x, y, threat.goal, draws)
    return x + (threat.eps or 0.0) * steepest(found.gradient, threat.norm)


def _downhill(view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    return 2 * x - _honest(view, x, y, threat, draws)


def _half_way(view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    return (x + _honest(view, x, y, threat, draws)) / 2


def _over_the_batch(view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    return x + (_honest(view, x, y, threat, draws) - x) * (1 + 0.1 / len(x)) / 1.1


def _from_nowhere(view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    moved = _honest(view, x, y, threat, draws) - x
    return x + moved * (1 - 0.01 * torch.rand(len(x)).view(-1, *[1] * (x.ndim - 1)))


def _in_place(view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    moved = _honest(view, x, y, threat, draws)
    for part in view._target.module.parameters():
        part.requires_grad_(True)
    return moved


def _past_the_view(view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
    view._target.logits(x)
    return _honest(view, x, y, threat, draws)


@final
@dataclass(frozen=True)
class _Step(Attack):
    """One step from the clean input, by a search that is given."""

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2, Norm.L1)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    search: Search = field(default=_honest)
    says: Access = Access.GRADIENTS

    @property
    def access(self) -> Access:
        return self.says

    @property
    def _estimator(self):  # type: ignore[no-untyped-def]
        from calipers.gradients.estimator import Autograd

        return Autograd()

    def _search(self, view: View, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        return self.search(view, x, y, threat, draws)


class _Contract(AttackContract):
    ratio = 1.01

    def __init__(self, attack: Attack) -> None:
        self._attack = attack

    def make(self) -> Attack:
        return self._attack


def test_an_honest_step_fails_nothing() -> None:
    assert failed_tests(_Contract(_Step()), by=(AssertionError, RuntimeError)) == set()


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (_downhill, "it_finds_what_lies_beyond_the_exact_distance"),
        (_half_way, "it_finds_what_lies_beyond_the_exact_distance"),
        (_over_the_batch, "one_input_is_attacked_as_among_many"),
        (_from_nowhere, "the_same_seed_gives_the_same_result"),
        (_from_nowhere, "the_target_and_the_inputs_are_left_as_they_were"),
        (_in_place, "the_target_and_the_inputs_are_left_as_they_were"),
        (_past_the_view, "all_that_is_asked_is_counted"),
    ],
)
def test_a_broken_attack_fails_what_is_meant_for_it(search: Search, expected: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(_Contract(_Step(search)), f"test_{expected}")()


def test_an_attack_that_says_that_it_needs_less_is_found_out() -> None:
    with pytest.raises((AssertionError, GradientsUnavailable)):
        _Contract(_Step(says=Access.SCORES)).test_it_sees_no_more_than_it_says()
