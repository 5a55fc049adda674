"""AttackContract: what every attack must pass, as a class of tests to inherit.

In adversarial robustness a broken attack looks like a robust model, so the tests ask for what an attack must find, not
only for what it must not do.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calipers.attacks.base import Attack, AttackResult
from calipers.errors import GradientsUnavailable, ScoresUnavailable
from calipers.evidence.records import Attempt, record_from_json
from calipers.target import Access, Target
from calipers.testing.known_answers import KnownAnswer, half_space
from calipers.threat.threat_model import Norm, Targeted, ThreatModel

__all__ = ["AttackContract"]

_SHAPES = ((2,), (5,), (12,), (1, 3, 4), (3, 2, 2))
_BOUNDS = (-10.0, 10.0)
_JUDGED_ROWS = 100


class _Bent(nn.Module):
    """Two smooth layers, computed in float64, so that an input's scores are the same in any batch."""

    def __init__(self, seed: int, inputs: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.empty(16, inputs).normal_(0, inputs**-0.5, generator=generator))
        self.last = nn.Parameter(torch.empty(classes, 16).normal_(0, 0.5, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.linear(x.double().flatten(1), self.first.double()).tanh()
        return functional.linear(hidden, self.last.double())


class AttackContract(ABC):
    """What every attack must pass, on half-spaces whose distances are known and on a smooth network of 4 classes.

    Attributes:
        ratio: how far beyond the exact distance of a half-space the attack may need to go: an attack within a size is
            given that size, one that looks for the least size may not exceed it. In l0, where the distance is 1, one
            coordinate more is allowed.
        targeted: whether it can be aimed at a class.
        agreement: the share of its distance by which an input's result may differ between two batches.
        count: how many inputs the half-space tests take.
    """

    ratio: ClassVar[float] = 1.25
    targeted: ClassVar[bool] = True
    agreement: ClassVar[float] = 1e-3
    count: ClassVar[int] = 7

    @abstractmethod
    def make(self) -> Attack:
        """Make the attack.

        Returns:
            One with settings that suffice for the half-space.
        """

    def test_it_finds_what_lies_beyond_the_exact_distance(self) -> None:
        """On half-spaces of several shapes, every input falls in every norm, at no less than the distance."""
        attack = self.make()
        for norm in attack.norms:
            for number, shape in enumerate(_SHAPES):
                count = 64 if shape == (12,) else self.count
                known, x, y = self._half_space(number, shape, count, alike=attack.sized)
                exact = torch.from_numpy(known.distance(x, norm))
                eps = float(exact.max()) * self.ratio if attack.sized else None
                found = self._run(attack, known.target, x, y, norm, eps)
                assert bool(found.success.all()), f"{norm}, {shape}: {found.reason}"
                assert bool((found.distance >= exact * (1 - 1e-5)).all())
                allowed = exact + 1 if norm is Norm.L0 else exact * self.ratio
                assert attack.sized or bool((found.distance <= allowed).all()), (
                    f"{norm}, {shape}: {(found.distance / exact).max():.4f} times the exact distance"
                )

    def test_nothing_is_found_nearer_than_the_exact_distance(self) -> None:
        """Within a ball that does not reach the boundary, no attempt is a success."""
        attack = self.make()
        for norm in attack.norms:
            known, x, y = self._half_space(1, (5,), self.count)
            eps = float(known.distance(x, norm).min()) * 0.99
            found = self._run(attack, known.target, x, y, norm, eps)
            assert not bool(found.success.any()), f"{norm}"

    def test_it_stays_in_the_ball_and_the_box(self) -> None:
        """Whatever the shape, the norm and the size: measured in float64, with no slack."""
        attack = self.make()
        for number, (norm, eps) in enumerate(
            (norm, eps) for norm in attack.norms for eps in (0.05, 0.5, 3.0)
        ):
            shape = _SHAPES[number % len(_SHAPES)]
            target, x, y = self._bent(number, shape, 5, bounds=(-0.5, 1.0))
            adversarial = self._run(attack, target, x, y, norm, eps).adversarial
            assert adversarial.dtype == torch.float32
            assert float(adversarial.min()) >= -0.5
            assert float(adversarial.max()) <= 1.0
            delta = (adversarial.double() - x.double()).flatten(1).numpy()
            size = {
                Norm.L0: (delta != 0).sum(1),
                Norm.L1: np.abs(delta).sum(1),
                Norm.L2: np.sqrt((delta**2).sum(1)),
                Norm.LINF: np.abs(delta).max(1),
            }[norm]
            assert (size <= eps).all(), f"{norm}: {size.max()} > {eps}"

    def test_a_success_is_a_fresh_forward_that_is_wrong(self) -> None:
        """The candidate that is handed out fools the classifier, at the distance that is said."""
        attack = self.make()
        for norm in attack.norms:
            target, x, y = self._bent(2, (1, 3, 4), 9)
            found = self._run(attack, target, x, y, norm, 1.0)
            again = target.predict(found.adversarial)
            assert torch.equal(again != y, found.success)
            assert torch.equal(again, found.verdict.prediction)
            measured = (found.adversarial.double() - x.double()).flatten(1)
            order = {Norm.L0: 0, Norm.L1: 1, Norm.L2: 2, Norm.LINF: float("inf")}[norm]
            exact = torch.linalg.vector_norm(measured, ord=order, dim=1)
            assert bool((found.distance >= exact * (1 - 1e-15)).all())
            assert bool((found.distance <= exact * (1 + 1e-12)).all())

    def test_one_input_is_attacked_as_among_many(self) -> None:
        """What else is in the batch, and in which order, changes nothing: the input and its index decide."""
        attack = self.make()
        for norm in attack.norms:
            target, x, y = self._bent(3, (5,), 6)
            eps = {Norm.L0: 2.0, Norm.L1: 1.0, Norm.L2: 0.5, Norm.LINF: 0.2}[norm] if attack.sized else None
            many = self._run(attack, target, x, y, norm, eps)
            mixed = self._run(attack, target, x, y, norm, eps, rows=[4, 0, 5, 1, 3, 2])
            for place, row in enumerate((4, 0, 5, 1, 3, 2)):
                alone = self._run(attack, target, x, y, norm, eps, rows=[row])
                for other, at in ((alone, 0), (mixed, place)):
                    assert other.reason[at] == many.reason[row], f"{norm}, input {row}"
                    difference = abs(float(other.distance[at] - many.distance[row]))
                    assert difference <= self.agreement * float(many.distance[row]), f"{norm}, input {row}"

    def test_the_same_seed_gives_the_same_result(self) -> None:
        """Bit for bit, whatever torch's own generator has drawn before."""
        attack = self.make()
        target, x, y = self._bent(4, (5,), 5)
        norm = attack.norms[0]
        first, torch_draws = self._run(attack, target, x, y, norm, 0.5), torch.rand(3)
        again = self._run(attack, target, x, y, norm, 0.5)
        assert len(torch_draws) == 3
        assert torch.equal(first.adversarial, again.adversarial)
        assert torch.equal(first.queries, again.queries)
        assert [_without_time(one) for one in first.records()] == [
            _without_time(one) for one in again.records()
        ]

    def test_a_size_of_0_changes_nothing(self) -> None:
        """The candidate is the clean input, and it is no success."""
        attack = self.make()
        for norm in attack.norms:
            target, x, y = self._bent(5, (12,), 4)
            found = self._run(attack, target, x, y, norm, 0.0)
            assert torch.equal(found.adversarial, x)
            assert not bool(found.success.any())
            assert not bool(found.distance.any())

    def test_what_is_wrong_already_is_not_searched(self) -> None:
        """Its candidate is the clean input, at distance 0, for no query."""
        attack = self.make()
        target, x, y = self._bent(6, (5,), 4)
        y[1] = (y[1] + 1) % 4
        found = self._run(attack, target, x, y, attack.norms[0], 0.5)
        assert found.reason[1] == "already wrong"
        assert bool(found.success[1])
        assert float(found.distance[1]) == int(found.queries[1]) == int(found.backwards[1]) == 0
        assert torch.equal(found.adversarial[1], x[1])
        assert bool((found.queries[[0, 2, 3]] > 0).all())

    def test_it_can_be_aimed_at_a_class(self) -> None:
        """A success of a targeted goal is the wanted class, and there are some."""
        attack = self.make()
        if not self.targeted:
            return
        wanted_found = 0
        for norm in attack.norms:
            target, x, y = self._bent(7, (12,), 6)
            wanted = tuple(int(label + 1 + row % 3) % 4 for row, label in enumerate(y))
            eps = {Norm.L0: 12.0, Norm.L1: 40.0, Norm.L2: 12.0, Norm.LINF: 4.0}[norm]
            found = self._run(attack, target, x, y, norm, eps, wanted=wanted)
            again = target.predict(found.adversarial)
            assert torch.equal(again == torch.tensor(wanted), found.success)
            wanted_found += int(found.success.sum())
        assert wanted_found > 0

    def test_the_target_and_the_inputs_are_left_as_they_were(self) -> None:
        """Weights, mode, hooks, requires_grad and torch's random state are not touched."""
        attack = self.make()
        target, x, y = self._bent(8, (5,), 4)
        before, kept, state = _marks(target), (x.clone(), y.clone()), torch.get_rng_state()
        self._run(attack, target, x, y, attack.norms[0], 0.5)
        assert _marks(target) == before
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(x, kept[0])
        assert torch.equal(y, kept[1])
        assert not x.requires_grad

    def test_it_sees_no_more_than_it_says(self) -> None:
        """On a function that gives just its access it finds the same; on one that gives less it says so in a line."""
        attack = self.make()
        target, x, y = self._bent(9, (5,), 5)
        norm = attack.norms[0]
        full = self._run(attack, target, x, y, norm, 0.5)

        def scores(rows: np.ndarray) -> np.ndarray:
            return np.asarray(target.logits(torch.from_numpy(rows)).detach().numpy())

        for access, make in ((Access.SCORES, Target.from_scores), (Access.DECISIONS, Target.from_decisions)):
            answer = scores if access is Access.SCORES else lambda rows: scores(rows).argmax(1)
            less = make(answer, num_classes=4, input_shape=(5,), fingerprint="less", bounds=_BOUNDS)
            if access >= attack.access:
                found = self._run(attack, less, x, y, norm, 0.5)
                assert torch.equal(found.adversarial, full.adversarial)
                continue
            try:
                self._run(attack, less, x, y, norm, 0.5)
            except (GradientsUnavailable, ScoresUnavailable) as refused:
                assert "\n" not in str(refused)
            else:
                raise AssertionError(f"{attack!r} ran on {access.name.lower()}")

    def test_all_that_is_asked_is_counted(self) -> None:
        """Forwards are those of the network, the judge's left out; records carry them, and survive being stored."""
        attack = self.make()
        target, x, y = self._bent(10, (5,), 5)
        seen: list[int] = []
        handle = target.module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        found = self._run(attack, target, x, y, attack.norms[0], 0.5)
        handle.remove()
        assert int(found.forwards.sum()) + 2 * _JUDGED_ROWS == sum(seen)
        assert bool((found.queries <= found.forwards).all())
        assert (attack.access is Access.GRADIENTS) == bool((found.backwards > 0).any())
        for row, record in enumerate(found.records()):
            assert record_from_json(record.kind, record.to_json()) == record
            assert (record.index, record.label) == (row, int(y[row]))
            assert (record.forwards, record.queries) == (int(found.forwards[row]), int(found.queries[row]))
            assert record.method == repr(attack)

    def test_an_attack_is_a_value(self) -> None:
        """Equal settings make equal attacks, and the repr shows every one of them."""
        one, two = self.make(), self.make()
        assert one == two
        assert (hash(one), repr(one)) == (hash(two), repr(two))
        assert all(f"{field.name}=" in repr(one) for field in fields(one))
        assert one.norms
        assert all(isinstance(norm, Norm) for norm in one.norms)

    def _run(
        self,
        attack: Attack,
        target: Target,
        x: Tensor,
        y: Tensor,
        norm: Norm,
        eps: float | None,
        *,
        rows: list[int] | None = None,
        wanted: tuple[int, ...] | None = None,
    ) -> AttackResult:
        chosen = list(range(len(x))) if rows is None else rows
        threat = (
            ThreatModel(norm, eps)
            if wanted is None
            else ThreatModel(norm, eps, Targeted(tuple(wanted[row] for row in chosen)))
        )
        return attack(target, x[chosen], y[chosen], threat, seed=0, indices=chosen)

    def _half_space(
        self, number: int, shape: tuple[int, ...], count: int, *, alike: bool = False
    ) -> tuple[KnownAnswer, Tensor, Tensor]:
        """Make a half-space and inputs on either side, at l2 distances between .2 and 1, or alike at .6."""
        generator = torch.Generator().manual_seed(number)
        inputs = torch.Size(shape).numel()
        weights = torch.empty(inputs).uniform_(0.2, 1, generator=generator)
        weights *= torch.empty(inputs).normal_(generator=generator).sign()
        x = torch.empty(count, inputs).uniform_(-1, 1, generator=generator)
        aside = torch.empty(count, 1).uniform_(0.2, 1, generator=generator)
        aside = torch.full_like(aside, 0.6) if alike else aside
        aside *= torch.empty(count, 1).normal_(generator=generator).sign()
        unit = weights / weights.norm()
        x = x - (x @ unit)[:, None] * unit + aside * unit
        known = half_space(weights.tolist(), input_shape=shape, bounds=_BOUNDS)
        x = x.view(count, *shape)
        return known, x, known.label(x)

    def _bent(
        self, seed: int, shape: tuple[int, ...], count: int, bounds: tuple[float, float] = _BOUNDS
    ) -> tuple[Target, Tensor, Tensor]:
        inputs = torch.Size(shape).numel()
        target = Target(_Bent(seed, inputs, 4).eval(), num_classes=4, input_shape=shape, bounds=bounds)
        generator = torch.Generator().manual_seed(seed)
        x = torch.empty((count, *shape)).uniform_(max(bounds[0], -1), min(bounds[1], 1), generator=generator)
        return target, x, target.predict(x)


def _without_time(record: Attempt) -> dict[str, object]:
    return {name: held for name, held in asdict(record).items() if name != "seconds"}


def _marks(target: Target) -> list[object]:
    """List what an attack could leave behind in a network."""
    found: list[object] = []
    for path, module in target.module.named_modules():
        hooks = [
            len(held) for name, held in vars(module).items() if "hooks" in name and isinstance(held, dict)
        ]
        found.append((path, module.training, hooks))
    tensors = [*target.module.named_parameters(), *target.module.named_buffers()]
    found += [(name, part.requires_grad, part.grad is None, part.tolist()) for name, part in tensors]
    return found
