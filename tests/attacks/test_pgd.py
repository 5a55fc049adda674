"""PGD: the contract, and what its settings do."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.pgd import PGD
from calipers.attacks.view import Trace
from calipers.errors import UsageError
from calipers.target import Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import concentric_balls, half_space
from calipers.threat.threat_model import Norm, ThreatModel


class TestPGD(AttackContract):
    ratio = 1.05

    def make(self) -> Attack:
        return PGD(steps=20)


class TestPGDWithMomentumAndMargin(AttackContract):
    ratio = 1.05

    def make(self) -> Attack:
        return PGD(steps=20, momentum=0.5, loss="margin", restarts=2)


LINE = half_space([1.0, 2.0, -1.0])
X = torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.5, 0.5]])
Y = torch.tensor([1, 1])


class _Valleys(nn.Module):
    """Class 1 near two places; the nearer one to the origin has the smaller reach, so that a start decides."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).double()
        near = 0.5 - 40 * (flat - torch.tensor([0.2, 0.0])).square().sum(1)
        far = 1.5 - 40 * (flat - torch.tensor([-0.8, 0.0])).square().sum(1)
        lead = torch.maximum(near - 0.6, far)
        return torch.stack([-lead, lead], 1)


def _valleys() -> Target:
    return Target(_Valleys().eval(), num_classes=2, input_shape=(2,), bounds=(-1.0, 1.0))


def test_concentric_balls_fall_just_beyond_the_exact_distance_in_every_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    known = concentric_balls([0.0] * 6, 2.0)
    x = torch.empty(6, 6).uniform_(-0.6, 0.6, generator=generator)
    y = known.label(x)
    for norm in PGD.norms:
        for row, exact in enumerate(known.distance(x, norm).tolist()):
            part = slice(row, row + 1)
            for share, falls in ((0.99, False), (1.05, True)):
                threat = ThreatModel(norm, exact * share)
                found = PGD(steps=60, loss="margin", random_start=False)(
                    known.target, x[part], y[part], threat, seed=0
                )
                assert bool(found.success[0]) == falls, f"{norm}, input {row}, {share}"


def test_a_coordinate_at_the_edge_of_the_box_does_not_stop_an_l1_search() -> None:
    """The steepest coordinate is at the edge already, and the next one reaches it on the way."""
    known = half_space([3.0, 2.0, 1.0, 0.5], -5.2, bounds=(0.0, 1.0))
    # 3 + 1.2 + .5 - 5.2 = -.5: the second coordinate, by .25; then by .05 and the third one by .2
    for x, eps in (([1.0, 0.6, 0.5, 0.0], 0.27), ([1.0, 0.95, 0.1, 0.0], 0.165)):
        found = PGD(steps=40)(
            known.target, torch.tensor([x]), torch.tensor([0]), ThreatModel(Norm.L1, eps), seed=0
        )
        assert bool(found.success[0]), f"eps {eps}"


def test_restarts_go_on_where_nothing_has_fallen_and_nowhere_else() -> None:
    x = torch.zeros(1, 2)
    once, often = (
        [
            PGD(steps=10, restarts=count, loss="margin")(
                _valleys(), x, torch.tensor([0]), ThreatModel(Norm.LINF, 0.9), seed=seed
            )
            for seed in range(8)
        ]
        for count in (1, 12)
    )
    fell = [bool(found.success[0]) for found in once]
    assert 0 < sum(fell) < 8
    assert all(bool(found.success[0]) for found in often)
    for first, more in zip(once, often, strict=True):
        if bool(first.success[0]):
            assert torch.equal(first.adversarial, more.adversarial)
            assert torch.equal(first.queries, more.queries)


def test_what_has_fallen_leaves_the_search_unless_it_is_kept() -> None:
    threat = ThreatModel(Norm.LINF, 2.0)
    dropped = PGD(steps=30)(LINE.target, X, Y, threat, seed=0)
    kept = PGD(steps=30, keep=True)(LINE.target, X, Y, threat, seed=0)
    assert bool(dropped.success.all())
    assert bool((dropped.backwards < 30).all())
    assert kept.backwards.tolist() == [30, 30]
    assert kept.forwards.tolist() == [31, 31]
    assert torch.equal(dropped.success, kept.success)


def test_the_best_point_is_kept_and_not_the_last() -> None:
    """A step so long that it leaps over the valley and out again."""
    x = torch.tensor([[-0.5, 0.0]])
    target = _valleys()
    found = PGD(steps=8, step_size=0.4, random_start=False, keep=True, loss="margin")(
        target, x, torch.tensor([0]), ThreatModel(Norm.LINF, 0.45), seed=0
    )
    assert bool(found.success[0])


def test_a_step_is_a_share_of_eps() -> None:
    trace = Trace()
    attack = PGD(steps=3, step_size=0.25, random_start=False, loss="margin", keep=True)
    attack(LINE.target, X[:1], Y[:1], ThreatModel(Norm.L2, 0.4), seed=0, trace=trace)
    # in l2 a step along the normal changes the signed distance by its size, and the margin by twice that
    values = torch.cat(trace.value)
    assert torch.allclose(values.diff(), torch.tensor([0.2, 0.2]), atol=1e-5)


def test_without_a_random_start_the_first_point_is_the_clean_input() -> None:
    trace, drawn = Trace(), Trace()
    threat = ThreatModel(Norm.LINF, 0.1)
    PGD(steps=1, random_start=False, loss="margin")(LINE.target, X, Y, threat, seed=0, trace=trace)
    PGD(steps=1, loss="margin")(LINE.target, X, Y, threat, seed=0, trace=drawn)
    clean = -2 * LINE.net.signed(X).float().detach()  # type: ignore[union-attr]
    assert torch.allclose(trace.value[0], clean, atol=1e-6)
    assert not torch.allclose(drawn.value[0], clean, atol=1e-3)


def test_the_objective_rises_from_step_to_step_on_a_half_space() -> None:
    for norm in PGD.norms:
        trace = Trace()
        PGD(steps=10, step_size=0.05, keep=True, loss="margin")(
            LINE.target, X, Y, ThreatModel(norm, 0.5), seed=0, trace=trace
        )
        assert bool((torch.stack(trace.value).diff(dim=0) > -1e-6).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGD(steps=0),
        lambda: PGD(restarts=0),
        lambda: PGD(step_size=0.0),
        lambda: PGD(step_size=math.inf),
        lambda: PGD(step_size=math.nan),
        lambda: PGD(momentum=1.0),
        lambda: PGD(momentum=-0.1),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], PGD]) -> None:
    with pytest.raises(UsageError) as refused:
        make()
    assert "\n" not in str(refused.value)
