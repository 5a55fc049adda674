"""A contract that nothing fails is worth nothing: each broken estimator fails the tests that are meant for it."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch

from calipers.errors import CalipersError
from calipers.gradients.estimator import Autograd, GradientEstimate, GradientEstimator
from calipers.gradients.finite_differences import NES
from calipers.randomness import Draws
from calipers.target import Access, Oracle, Target
from calipers.testing.gradient_contract import GradientEstimatorContract
from calipers.threat.threat_model import Targeted, Untargeted

_ASKED = itertools.count()

Change = Callable[[GradientEstimate, Target, Draws], GradientEstimate]
Question = Callable[..., tuple]


def _as_found(found: GradientEstimate, target: Target, draws: Draws) -> GradientEstimate:
    return found


def _as_asked(target, objective, x, y, goal, draws) -> tuple:
    return target, objective, x, y, goal, draws


@dataclass(frozen=True)
class _Changed(GradientEstimator):
    """An estimator whose question or answer is tampered with."""

    inner: GradientEstimator
    change: Change = field(default=_as_found, repr=False)
    question: Question = field(default=_as_asked, repr=False)
    told: Callable[[str], str] = field(default=str, repr=False)
    needs: Access | None = None

    @property
    def access(self) -> Access:
        return self.needs or self.inner.access

    def describe(self) -> str:
        return self.told(self.inner.describe())

    def __eq__(self, other: object) -> bool:
        return self.inner == (other.inner if isinstance(other, _Changed) else other)

    def __hash__(self) -> int:
        return hash(self.inner)

    def __repr__(self) -> str:
        return self.told(repr(self.inner))

    def estimate(self, target, objective, x, y, goal, *, draws) -> GradientEstimate:
        *asked, draws = self.question(target, objective, x, y, goal, draws)
        found = self.inner.estimate(*asked, draws=draws)
        return self.change(found, target, draws)


class _Exact(GradientEstimatorContract):
    inner: GradientEstimator = Autograd()

    def __init__(self, make: Callable[[GradientEstimator], GradientEstimator]) -> None:
        self._make = make

    def make(self) -> GradientEstimator:
        return self._make(self.inner)


class _Drawn(_Exact):
    exact = False
    repeats = 64
    closeness = 2e-3
    inner = NES(40, sigma=0.003)


def _failures(contract: GradientEstimatorContract) -> set[str]:
    failed = set()
    for name in dir(contract):
        if not name.startswith("test_"):
            continue
        test = getattr(contract, name)
        marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        names = [mark[0] for mark in marks]
        assert set(names) == set(inspect.signature(test).parameters)
        for values in itertools.product(*(mark[1] for mark in marks)):
            try:
                test(**dict(zip(names, values, strict=True)))
            except (AssertionError, CalipersError, pytest.fail.Exception):
                failed.add(name.removeprefix("test_"))
    return failed


def _scaled(factor: float) -> Callable[[GradientEstimator], GradientEstimator]:
    return lambda inner: _Changed(inner, lambda found, *_: replace(found, gradient=factor * found.gradient))


def _changing(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[GradientEstimator], GradientEstimator]:
    return lambda inner: _Changed(inner, lambda found, *_: replace(found, gradient=change(found.gradient)))


def _net(target) -> torch.nn.Module:
    return target.module


def _hooked(found: GradientEstimate, target, draws: Draws) -> GradientEstimate:
    if target.access is Access.GRADIENTS:
        _net(target).net.bend.register_forward_hook(lambda *_: None)
    return found


def _in_training(found: GradientEstimate, target, draws: Draws) -> GradientEstimate:
    _net(target).net.train()
    return found


def _trainable(found: GradientEstimate, target, draws: Draws) -> GradientEstimate:
    _net(target).requires_grad_(True)
    return found


def _random_state(found: GradientEstimate, target, draws: Draws) -> GradientEstimate:
    torch.rand(1)
    return found


def _input_in_place(target, objective, x, y, goal, draws) -> tuple:
    x += 1e-3
    return target, objective, x, y, goal, draws


def _uncounted(target, objective, x, y, goal, draws) -> tuple:
    return (target._target if isinstance(target, Oracle) else target), objective, x, y, goal, draws


def _untargeted(target, objective, x, y, goal, draws) -> tuple:
    return target, objective, x, y, Untargeted(), draws


def _shuffled_goal(target, objective, x, y, goal, draws) -> tuple:
    return (
        target,
        objective,
        x,
        y,
        replace(goal, classes=goal.classes[::-1]) if isinstance(goal, Targeted) else goal,
        draws,
    )


def _summed_loss(target, objective, x, y, goal, draws) -> tuple:
    """Foolbox's fault: one loss for the whole batch, which the differences of every input are taken of."""

    def total(logits, labels, wanted):
        rows = len(x)
        values = objective(logits, labels, wanted)
        if len(values) <= rows:
            return values
        return values.view(rows, -1).sum(0).repeat(rows)

    return target, total, x, y, goal, draws


def _by_place(target, objective, x, y, goal, draws) -> tuple:
    return target, objective, x, y, goal, replace(draws, indices=tuple(range(len(draws))))


def _seedless(target, objective, x, y, goal, draws) -> tuple:
    return target, objective, x, y, goal, replace(draws, seed=0)


def _fresh(target, objective, x, y, goal, draws) -> tuple:
    return target, objective, x, y, goal, draws.fold(next(_ASKED))


def _forgiving(inner: GradientEstimator) -> GradientEstimator:
    """Takes scores for gradients that are 0."""

    @dataclass(frozen=True)
    class Forgiving(GradientEstimator):
        access = Access.GRADIENTS

        def describe(self) -> str:
            return "autograd"

        def estimate(self, target, objective, x, y, goal, *, draws) -> GradientEstimate:
            try:
                return inner.estimate(target, objective, x, y, goal, draws=draws)
            except CalipersError:
                return GradientEstimate(torch.zeros(len(x)), torch.zeros_like(x), torch.zeros(len(x), 4))

    return Forgiving()


AGREES = "it_agrees_with_the_truth_in_direction_and_scale"
AMONG = "one_input_is_estimated_as_among_many"
RAISES = "a_step_along_it_raises_the_objective"
LEFT = "the_target_and_the_input_are_left_as_they_were"
SAME = "the_same_draws_give_the_same_estimate"
COUNTED = "all_that_is_asked_is_counted"
LESS = "a_target_that_gives_less_is_refused_in_one_line"
VALUE = "an_estimator_is_a_value"

BREAKS: dict[str, tuple[type[_Exact], Callable[[GradientEstimator], GradientEstimator], set[str]]] = {
    "nothing": (_Exact, _Changed, set()),
    "nothing drawn": (_Drawn, _Changed, set()),
    "the sign": (_Exact, _scaled(-1.0), {AGREES, RAISES}),
    "the sign of one that draws": (_Drawn, _scaled(-1.0), {AGREES, RAISES}),
    "a quarter": (_Exact, _scaled(0.25), {AGREES}),
    "a quarter of one that draws": (_Drawn, _scaled(0.25), {AGREES}),
    "an eighth too much of one that draws": (_Drawn, _scaled(1.125), {AGREES}),
    "a gradient for the batch": (
        _Exact,
        _changing(lambda found: found.sum(0, keepdim=True).expand_as(found)),
        {AGREES, AMONG},
    ),
    "a mean over the batch": (_Exact, _changing(lambda found: found / len(found)), {AGREES, AMONG}),
    "one scale for the batch": (_Exact, _changing(lambda found: found / found.abs().max()), {AGREES, AMONG}),
    "signs": (_Exact, _changing(torch.sign), {AGREES}),
    "losses summed over the batch": (
        _Drawn,
        lambda inner: _Changed(inner, question=_summed_loss),
        {AMONG},
    ),
    "another direction": (_Exact, _changing(lambda found: found.flip(-1)), {AGREES, RAISES}),
    "the goal": (_Exact, lambda inner: _Changed(inner, question=_untargeted), {AGREES, RAISES}),
    "the order of wanted classes": (_Exact, lambda inner: _Changed(inner, question=_shuffled_goal), {AGREES}),
    "the value": (
        _Exact,
        lambda inner: _Changed(inner, lambda found, *_: replace(found, value=-found.value)),
        {AGREES},
    ),
    "the value for the batch": (
        _Exact,
        lambda inner: _Changed(
            inner, lambda found, *_: replace(found, value=found.value.mean().expand_as(found.value))
        ),
        {AGREES, AMONG},
    ),
    "the scores": (
        _Exact,
        lambda inner: _Changed(inner, lambda found, *_: replace(found, logits=found.logits.flip(1))),
        {AGREES},
    ),
    "a hook left behind": (_Exact, lambda inner: _Changed(inner, _hooked), {LEFT}),
    "the mode": (_Exact, lambda inner: _Changed(inner, _in_training), {LEFT}),
    "weights that want gradients": (_Exact, lambda inner: _Changed(inner, _trainable), {LEFT}),
    "the random state": (_Exact, lambda inner: _Changed(inner, _random_state), {LEFT}),
    "the input": (_Exact, lambda inner: _Changed(inner, question=_input_in_place), {LEFT}),
    "the count": (_Exact, lambda inner: _Changed(inner, question=_uncounted), {COUNTED}),
    "draws by the place in the batch": (_Drawn, lambda inner: _Changed(inner, question=_by_place), {AMONG}),
    "the seed": (_Drawn, lambda inner: _Changed(inner, question=_seedless), {SAME}),
    "fresh draws each time": (_Drawn, lambda inner: _Changed(inner, question=_fresh), {SAME}),
    "what it needs": (_Drawn, lambda inner: _Changed(inner, needs=Access.GRADIENTS), {COUNTED, LESS}),
    "zeros where there is no gradient": (_Exact, _forgiving, {LESS, VALUE}),
    "its text": (_Exact, lambda inner: _Changed(inner, told=lambda text: "NES()"), {VALUE}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_estimator_fails_what_it_breaks(name: str) -> None:
    contract, make, wanted = BREAKS[name]
    found = _failures(contract(make))
    assert wanted <= found
    if name.startswith("nothing"):
        assert found == set()


def test_every_test_of_the_contract_is_failed_by_something_broken() -> None:
    """Two are about refusals of ours, which the estimators' own tests break."""
    tests = {name.removeprefix("test_") for name in dir(_Exact) if name.startswith("test_")}
    caught = set().union(*(wanted for _, _, wanted in BREAKS.values()))
    assert tests - caught == {"what_does_not_fit_is_refused", "the_target_is_left_as_it_was_by_a_failure"}
