"""GradientEstimatorContract: what every gradient estimator must pass, as a class of tests to inherit.

In adversarial robustness a broken gradient looks like a robust model, so the tests ask for direction and scale, for
each input by itself, and for a target that is left alone.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import calipers.gradients.bpda
import calipers.gradients.double
import calipers.gradients.eot
import calipers.gradients.estimator
import calipers.gradients.finite_differences
import calipers.gradients.transformations
from calipers.errors import CalipersError, GradientsUnavailable, ScoresUnavailable
from calipers.gradients.estimator import GradientEstimate, GradientEstimator, Objective, View
from calipers.gradients.text import parse_gradient
from calipers.randomness import Draws, Role
from calipers.target import Access, Oracle, Target
from calipers.threat.objectives import cross_entropy, margin
from calipers.threat.threat_model import Goal, Targeted, Untargeted

__all__ = ["GradientEstimatorContract"]

_HOMES = (
    calipers.gradients.bpda,
    calipers.gradients.double,
    calipers.gradients.eot,
    calipers.gradients.estimator,
    calipers.gradients.finite_differences,
    calipers.gradients.transformations,
)


class _Smooth(nn.Module):
    """Two layers, smooth, with a module to be named; weights from a fixed seed."""

    def __init__(self, seed: int, classes: int, inputs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.bend, self.last = nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, classes)
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.normal_(0, 1.5 / layer.in_features**0.5, generator=generator)
                layer.bias.normal_(0, 0.1, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bend(self.first(x.flatten(1))))  # type: ignore[no-any-return]


class GradientEstimatorContract(ABC):
    """What every gradient estimator must pass, on a smooth network whose gradient autograd knows.

    Attributes:
        exact: whether one estimate is the gradient up to rounding; otherwise its mean over draws is.
        repeats: how many estimates the mean is taken over, for one that is not exact.
        closeness: the share of the gradient's size by which one estimate in two batches may differ: rounding alone.
        shape: the shape of one input.
    """

    exact: ClassVar[bool] = True
    repeats: ClassVar[int] = 64
    closeness: ClassVar[float] = 1e-5
    shape: ClassVar[tuple[int, ...]] = (1, 3, 3)

    @abstractmethod
    def make(self) -> GradientEstimator:
        """Make the estimator.

        Returns:
            One that agrees with autograd on :meth:`target`, or with :meth:`truth` if that is overridden.
        """

    def target(self) -> Target:
        """Make the classifier, of 4 classes; by default a smooth network whose modules are first, bend and last.

        Returns:
            The classifier.
        """
        inputs = torch.Size(self.shape).numel()
        return Target(
            _Smooth(0, 4, inputs).eval(), num_classes=4, input_shape=self.shape, bounds=(-10.0, 10.0)
        )

    def truth(
        self, target: Target, objective: Objective, x: Tensor, y: Tensor, goal: Goal
    ) -> GradientEstimate:
        """Compute the gradient of one input in the plainest way.

        Args:
            target: the classifier.
            objective: the loss.
            x: one input, (1, *dims).
            y: its label.
            goal: what the adversary wants of it.

        Returns:
            What the estimator must find.
        """
        leaf = x.clone().requires_grad_(True)
        logits = target.logits(leaf)
        value = objective(logits, y, goal)
        value.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return GradientEstimate(value.detach(), leaf.grad, logits.detach())

    @pytest.mark.parametrize("objective", [cross_entropy, margin])
    @pytest.mark.parametrize("targeted", [False, True])
    def test_it_agrees_with_the_truth_in_direction_and_scale(
        self, objective: Objective, targeted: bool
    ) -> None:
        """Value and gradient of each input are those found for it alone; in the mean, for an estimator that draws."""
        target, x, y = self._problem(7)
        goal: Goal = Targeted(tuple((int(label) + 1 + row % 3) % 4 for row, label in enumerate(y)))
        goal = goal if targeted else Untargeted()
        rows = [
            self.truth(target, objective, x[row : row + 1], y[row : row + 1], _goal_of(goal, row))
            for row in range(len(x))
        ]
        gradient, value = torch.cat([row.gradient for row in rows]), torch.cat([row.value for row in rows])
        size = gradient.flatten(1).norm(dim=1)
        assert float(size.min()) > 1e-3, "a gradient that is nearly 0 shows nothing"
        found = self._repeated(target, objective, x, y, goal)
        mean = found.mean(0)
        spread = (mean - gradient).flatten(1).norm(dim=1)
        if self.exact:
            assert bool((spread <= 1e-4 * size).all())
        else:
            error = (found - mean).square().flatten(2).sum(2).sum(0) / (len(found) * (len(found) - 1))
            assert bool((spread <= 3 * error.sqrt() + 1e-3 * size).all())
            share = ((found * gradient).flatten(2).sum(2) / size.square()).mean(1)
            allowed = 5 * float(share.std()) / len(found) ** 0.5 + 1e-3
            assert abs(float(share.mean()) - 1) <= allowed
            assert allowed < 0.1, "too few repeats to tell a scale"
        first = self._estimate(target, objective, x, y, goal)
        assert torch.allclose(first.value, value, atol=1e-4)
        assert torch.allclose(objective(first.logits, y, goal), value, atol=1e-4)

    def test_one_input_is_estimated_as_among_many(self) -> None:
        """What else is in the batch, and in which order, changes nothing: the input and its draws decide."""
        target, x, y = self._problem(9)
        many = self._estimate(target, cross_entropy, x, y, Untargeted())
        size = float(many.gradient.flatten(1).norm(dim=1).max())
        order = [4, 0, 8, 2, 7, 1, 3, 6, 5]
        goal = Untargeted()
        mixed = self._estimate(target, cross_entropy, x[order], y[order], goal, indices=order)
        for place, row in enumerate(order):
            one = slice(row, row + 1)
            alone = self._estimate(target, cross_entropy, x[one], y[one], goal, indices=[row])
            for found in (alone.gradient[0], mixed.gradient[place]):
                assert float((found - many.gradient[row]).norm()) <= self.closeness * size
            assert abs(float(alone.value[0] - many.value[row])) <= 1e-4

    def test_a_step_along_it_raises_the_objective(self) -> None:
        """The sign is that of ascent, for the label's loss and for a wanted class."""
        target, x, y = self._problem(7)
        for goal in (Untargeted(), Targeted(tuple((int(label) + 1) % 4 for label in y))):
            gradient = self._repeated(target, margin, x, y, goal).mean(0)
            before, after = (
                torch.cat(
                    [
                        self.truth(
                            target, margin, moved[row : row + 1], y[row : row + 1], _goal_of(goal, row)
                        ).value
                        for row in range(len(x))
                    ]
                )
                for moved in (x, x + 1e-2 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
            )
            assert bool((after > before).all())

    def test_the_target_and_the_input_are_left_as_they_were(self) -> None:
        """Weights, hooks, mode, requires_grad and torch's random state are not touched."""
        target, x, y = self._problem(5)
        kept = x.clone()
        before, state = _marks(target), torch.get_rng_state()
        self._estimate(target, cross_entropy, x, y, Untargeted())
        assert _marks(target) == before
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(x, kept)
        assert not x.requires_grad
        assert x.grad is None

    def test_the_target_is_left_as_it_was_by_a_failure(self) -> None:
        """An objective that raises leaves no hook and no state behind."""

        def failing(logits: Tensor, y: Tensor, goal: Goal) -> Tensor:
            raise ZeroDivisionError

        target, x, y = self._problem(5)
        before, state = _marks(target), torch.get_rng_state()
        with pytest.raises(ZeroDivisionError):
            self._estimate(target, failing, x, y, Untargeted())
        assert _marks(target) == before
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_same_draws_give_the_same_estimate(self) -> None:
        """Draws decide everything, and other draws give another estimate where anything is drawn."""
        target, x, y = self._problem(5)
        first, again, other = (
            self._estimate(target, cross_entropy, x, y, Untargeted(), seed=seed).gradient
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert self.exact or not torch.allclose(first, other, rtol=1e-3)

    def test_all_that_is_asked_is_counted(self) -> None:
        """A counting view gives the same estimate; backwards are counted where there are any."""
        target, x, y = self._problem(5)
        plain = self._estimate(target, cross_entropy, x, y, Untargeted())
        view = Oracle(target, self.make().access)
        seen: list[int] = []
        handle = target.module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        counted = self._estimate(view, cross_entropy, x, y, Untargeted())
        handle.remove()
        assert torch.equal(plain.gradient, counted.gradient)
        assert view.counts.forwards == sum(seen) >= len(x)
        assert (view.counts.backwards >= len(x)) == (view.access is Access.GRADIENTS)
        assert view.access is Access.GRADIENTS or view.counts.backwards == 0

    def test_a_target_that_gives_less_is_refused_in_one_line(self) -> None:
        """Scores are not taken for gradients that are 0, nor decisions for scores."""
        target, x, y = self._problem(3)
        answers = {
            Access.SCORES: lambda rows: target.logits(torch.from_numpy(rows)).numpy(),
            Access.DECISIONS: lambda rows: target.logits(torch.from_numpy(rows)).numpy().argmax(1),
        }
        for access, answer in answers.items():
            make = Target.from_scores if access is Access.SCORES else Target.from_decisions
            less = make(
                answer, num_classes=4, input_shape=self.shape, fingerprint="less", bounds=(-10.0, 10.0)
            )
            if access >= self.make().access:
                found = self._estimate(less, cross_entropy, x, y, Untargeted())
                own = self._estimate(target, cross_entropy, x, y, Untargeted())
                size = own.gradient.norm()
                assert float((found.gradient - own.gradient).norm() / size) <= self.closeness
            else:
                with pytest.raises((GradientsUnavailable, ScoresUnavailable)) as caught:
                    self._estimate(less, cross_entropy, x, y, Untargeted())
                assert "\n" not in str(caught.value)

    def test_what_does_not_fit_is_refused(self) -> None:
        """Wanted classes and draws come one for each input."""
        target, x, y = self._problem(3)
        for wanted, indices in ((Targeted((0, 1)), [0, 1, 2]), (Untargeted(), [0, 1])):
            with pytest.raises(CalipersError, match="for 3 inputs"):
                self._estimate(target, cross_entropy, x, y, wanted, indices=indices)

    def test_an_estimator_is_a_value(self) -> None:
        """Equal settings make equal estimators; repr and text form rebuild them."""
        one, two = self.make(), self.make()
        assert one == two
        assert (hash(one), repr(one)) == (hash(two), repr(two))
        names = {name: getattr(home, name) for home in _HOMES for name in home.__all__}
        assert eval(repr(one), names) == one  # noqa: S307 - the text is our own
        assert parse_gradient(one.describe(), trust_code=True) == one

    def _problem(self, count: int) -> tuple[Target, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(count)
        x = torch.randn((count, *self.shape), generator=generator)
        return self.target(), x, torch.randint(0, 4, (count,), generator=generator)

    def _estimate(
        self,
        target: View,
        objective: Objective,
        x: Tensor,
        y: Tensor,
        goal: Goal,
        *,
        seed: int = 0,
        indices: list[int] | None = None,
    ) -> GradientEstimate:
        numbers = tuple(range(len(x)) if indices is None else indices)
        draws = Draws(seed, Role.SEARCH, numbers)
        return self.make().estimate(target, objective, x, y, goal, draws=draws)

    def _repeated(self, target: Target, objective: Objective, x: Tensor, y: Tensor, goal: Goal) -> Tensor:
        """Estimate with several seeds: (repeats, batch, *dims)."""
        seeds = range(1 if self.exact else self.repeats)
        return torch.stack(
            [self._estimate(target, objective, x, y, goal, seed=seed).gradient for seed in seeds]
        )


def _goal_of(goal: Goal, row: int) -> Goal:
    return Targeted((goal.classes[row],)) if isinstance(goal, Targeted) else goal


def _marks(target: Target) -> list[object]:
    """List what an estimator could leave behind in a network."""
    found: list[object] = []
    for path, module in target.module.named_modules():
        hooks = [
            len(held) for name, held in vars(module).items() if "hooks" in name and isinstance(held, dict)
        ]
        found.append((path, id(module), module.training, hooks, "forward" in vars(module)))
    tensors = [*target.module.named_parameters(), *target.module.named_buffers()]
    found += [(name, part.requires_grad, part.grad is None, part.tolist()) for name, part in tensors]
    return found
