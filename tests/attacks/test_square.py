"""Square: the contract from scores alone, windows as the paper has them, and targets without any gradient."""

import numpy as np
import pytest
import torch

from calipers.attacks.base import Attack
from calipers.attacks.pgd import PGD
from calipers.attacks.square import Square, _bump, _layout, _mass, _pair, _window
from calipers.errors import UsageError
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import half_space, noisy_half_space, staircase
from calipers.threat.threat_model import Norm, ThreatModel


class TestSquare(AttackContract):
    ratio = 2.0
    """In l2 it moves whole windows of mass: on a half-space of few coordinates it needs more than the distance."""

    def make(self) -> Attack:
        return Square(queries=300)


@pytest.mark.parametrize("shape", [(12,), (3, 2, 2)])
def test_a_half_space_falls_in_linf_just_beyond_its_distance(shape: tuple[int, ...]) -> None:
    known = half_space(np.linspace(-1, 1, 12).tolist(), input_shape=shape, bounds=(-3.0, 3.0))
    x = torch.linspace(-1, 1, 12).view(1, *shape)
    eps = 1.02 * float(known.distance(x, Norm.LINF)[0])
    found = Square(queries=600)(known.target, x, known.target.predict(x), ThreatModel(Norm.LINF, eps), seed=0)
    assert bool(found.success.all())


def test_a_staircase_falls_where_pgd_has_no_gradient() -> None:
    known = staircase([0.3], [0, 1], bounds=(-2.0, 2.0))
    x = torch.tensor([[0.0], [0.1], [0.6]])
    y = known.target.predict(x)
    for norm in (Norm.LINF, Norm.L2):
        threat = ThreatModel(norm, 0.4)
        blind = PGD(steps=10, random_start=False)(known.target, x, y, threat, seed=0)
        found = Square(queries=50)(known.target, x, y, threat, seed=0)
        assert blind.reason == ("no gradient",) * 3
        assert bool(found.success.all())


def test_inputs_that_have_fallen_are_asked_no_more() -> None:
    known = staircase([0.3], [0, 1], bounds=(-2.0, 2.0))
    x = torch.tensor([[0.0], [-1.5]])
    y = known.target.predict(x)
    found = Square(queries=40)(known.target, x, y, ThreatModel(Norm.LINF, 0.5), seed=0)
    assert found.success.tolist() == [True, False]
    assert int(found.queries[0]) < 20
    assert int(found.queries[1]) == 40
    kept = Square(queries=40, keep=True)(known.target, x, y, ThreatModel(Norm.LINF, 0.5), seed=0)
    assert kept.queries.tolist() == [40, 40]


def test_a_randomized_target_falls_by_the_judges_majority() -> None:
    known = noisy_half_space([1.0, 2.0, -1.0], 0.1, flip=0.2, bounds=(-10.0, 10.0))
    x = torch.tensor([[0.5, 0.3, 0.1], [-0.4, -0.2, 0.3]])
    eps = 1.5 * float(known.distance(x, Norm.LINF).max())
    found = Square(queries=60)(known.target, x, torch.tensor([1, 0]), ThreatModel(Norm.LINF, eps), seed=0)
    assert bool(found.success.all())
    assert found.queries.tolist() == [300, 300], "five draws a point, and no stop at a lucky one"


@pytest.mark.parametrize(
    ("sides", "step", "norm", "window"),
    [
        ((28, 28), 1, Norm.LINF, (25, 25)),
        ((28, 28), 9_000, Norm.LINF, (1, 1)),
        ((28, 28), 9_000, Norm.L2, (3, 3)),
        ((32, 32), 11, Norm.LINF, (20, 20)),
        ((32, 32), 11, Norm.L2, (21, 21)),
        ((1, 100), 1, Norm.LINF, (1, 80)),
        ((1, 100), 9_000, Norm.L2, (1, 1)),
        ((4, 64), 1, Norm.LINF, (4, 51)),
        ((64, 4), 1, Norm.LINF, (51, 4)),
    ],
)
def test_windows_shrink_by_the_schedule_and_fit(
    sides: tuple[int, int], step: int, norm: Norm, window: tuple[int, int]
) -> None:
    """sqrt(.8 * 28 * 28) = 25.04; after 10 of 10 000 steps sqrt(.4 * 32 * 32) = 20.2."""
    assert _window(torch.Size(sides), 0.8, step, 10_000, norm=norm) == window


def test_shapes_are_read_as_channels_rows_and_columns() -> None:
    assert [_layout(shape) for shape in ((7,), (5, 6), (3, 4, 5), (2, 3, 4, 5))] == [
        (1, 1, 7),
        (1, 5, 6),
        (3, 4, 5),
        (6, 4, 5),
    ]


def test_a_bump_is_the_papers_pyramid() -> None:
    """Rings around the middle: 1 + 1/4 + 1/9, 1/4 + 1/9, 1/9, for a side of 5."""
    bump = _bump(5, 5)
    middle = 1 + 1 / 4 + 1 / 9
    assert bump[2, 2] / bump[1, 2] == pytest.approx(middle / (1 / 4 + 1 / 9), rel=1e-5)
    assert bump[2, 2] / bump[0, 4] == pytest.approx(middle * 9, rel=1e-5)
    assert float(bump.norm()) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (2, 1), (1, 7), (3, 3), (5, 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_pair_of_bumps_has_size_1_and_both_signs(sides: tuple[int, int], turned: bool) -> None:
    pair = _pair(*sides, turned=turned)
    assert pair.shape == sides
    assert float(pair.norm()) == pytest.approx(1, rel=1e-6)
    if sides != (1, 1):
        assert float(pair.min()) < 0 < float(pair.max())


def test_an_l2_proposal_keeps_the_whole_budget_and_touches_two_windows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(50, 3, 12, 12)
    delta = torch.randn(x.shape, generator=generator)
    delta = 2.0 * delta / delta.flatten(1).norm(dim=1)[:, None, None, None]
    numbers = torch.rand((50, 8), generator=generator)
    new = _mass(x + delta, x, 2.0, (5, 5), numbers) - x
    assert torch.allclose(new.flatten(1).norm(dim=1), torch.full((50,), 2.0), rtol=1e-5)
    changed = (new != delta).any(1).flatten(1).sum(1)
    assert int(changed.min()) >= 25
    assert int(changed.max()) <= 50


def test_an_l2_proposal_takes_up_the_budget_that_the_box_left_unused() -> None:
    x = torch.zeros(1, 1, 9, 9)
    delta = torch.zeros_like(x)
    delta[0, 0, 0, 0] = 0.5
    new = _mass(x + delta, x, 2.0, (3, 3), torch.full((1, 6), 0.5)) - x
    assert float(new.norm()) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"share": 0.0}, {"share": 1.5}, {"votes": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        Square(**wrong)  # type: ignore[arg-type]


def test_more_queries_break_more() -> None:
    """On a random network of 16 inputs, in both norms."""
    from calipers.target import Target

    generator = torch.Generator().manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).double().float().eval()
    with torch.no_grad():
        for part in net.parameters():
            part.normal_(generator=generator)
    target = Target(net, num_classes=4, input_shape=(1, 8, 8))
    x = torch.rand((16, 1, 8, 8), generator=generator)
    y = target.predict(x)
    for norm, eps in ((Norm.LINF, 0.05), (Norm.L2, 0.4)):
        fallen = [
            int(Square(queries=n)(target, x, y, ThreatModel(norm, eps), seed=0).success.sum())
            for n in (1, 300)
        ]
        assert fallen[0] < fallen[1]
        best = PGD(steps=40)(target, x, y, ThreatModel(norm, eps), seed=0)
        assert fallen[1] >= 0.6 * int(best.success.sum())
        assert np.isfinite(fallen).all()
