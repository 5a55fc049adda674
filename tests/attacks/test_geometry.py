"""Geometry of candidates, held against exact rational arithmetic: what is inside is inside, and nothing is lost."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from calipers.attacks.geometry import (
    distances,
    inside_box,
    levels,
    on_grid,
    settle,
    settle_on_grid,
    unblocked,
    within,
)
from calipers.threat.norms import project, size
from calipers.threat.threat_model import Norm

EVERY = tuple(Norm)
CONTINUOUS = (Norm.L1, Norm.L2, Norm.LINF)


def _exact(candidate: Tensor, x: Tensor, norm: Norm) -> list[Fraction]:
    """The size of each perturbation, without rounding; squared in l2."""
    found = []
    for moved, clean in zip(candidate.flatten(1).tolist(), x.flatten(1).tolist(), strict=True):
        delta = [abs(Fraction(a) - Fraction(b)) for a, b in zip(moved, clean, strict=True)]
        found.append(
            {
                Norm.L0: Fraction(sum(one != 0 for one in delta)),
                Norm.L1: sum(delta, Fraction(0)),
                Norm.L2: sum((one**2 for one in delta), Fraction(0)),
                Norm.LINF: max(delta),
            }[norm]
        )
    return found


def _images(seed: int, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.empty(shape).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", EVERY)
def test_a_distance_is_never_below_the_true_one_and_hardly_above(norm: Norm) -> None:
    for seed, scale in enumerate((1e-6, 1e-3, 1.0, 1e6)):
        x = _images(seed, (6, 3, 50), -scale, scale)
        moved = x + _images(seed + 9, (6, 3, 50), -1, 1) * scale * _images(seed, (6, 1, 1)) ** 8
        for found, exact in zip(distances(moved, x, norm).tolist(), _exact(moved, x, norm), strict=True):
            value = Fraction(found) ** (2 if norm is Norm.L2 else 1)
            assert exact <= value <= exact * (1 + Fraction(1, 10**12))


def test_coordinates_of_far_exponents_are_rounded_up_too() -> None:
    x = torch.tensor([[1e-30, 1.0, 3e20]])
    moved = torch.tensor([[1.0, 1e-25, 1e-3]])
    for norm in CONTINUOUS:
        value = Fraction(float(distances(moved, x, norm))) ** (2 if norm is Norm.L2 else 1)
        assert value >= _exact(moved, x, norm)[0]


@pytest.mark.parametrize("norm", EVERY)
@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-7, 0.03, 8 / 255, 0.5, 3.0, 1e3])
def test_what_is_settled_lies_inside_beyond_doubt(norm: Norm, eps: float) -> None:
    x = _images(1, (5, 1, 4, 4))
    for wild in (1e-3, 1.0, 1e8):
        candidate = x + wild * _images(2, x.shape, -1, 1)
        candidate[0, 0, 0, 0] = torch.nan
        candidate[1, 0, 0, 1] = torch.inf
        candidate[2, 0, 1, 0] = -torch.inf
        candidate[3] = torch.nan
        settled = settle(candidate, x, norm, eps, (0.0, 1.0))
        assert settled.dtype == torch.float32
        assert float(settled.min()) >= 0
        assert float(settled.max()) <= 1
        limit = Fraction(eps) ** (2 if norm is Norm.L2 else 1)
        assert all(exact <= limit for exact in _exact(settled, x, norm))
        assert bool((distances(settled, x, norm) <= eps).all())
        assert torch.equal(settled[3], x[3])


@pytest.mark.parametrize("norm", CONTINUOUS)
@pytest.mark.parametrize("eps", [1e-3, 0.03, 8 / 255, 0.5])
def test_settling_gives_almost_nothing_away(norm: Norm, eps: float) -> None:
    x = _images(3, (6, 40), 0.3, 0.7)
    sign = _images(4, x.shape, -1, 1).sign()
    candidate = x + 10 * eps * sign
    settled = settle(candidate, x, norm, eps, (-100.0, 100.0))
    assert bool((distances(settled, x, norm) >= eps * (1 - 1e-4) - 1e-6).all())


@pytest.mark.parametrize("norm", EVERY)
def test_what_is_inside_is_left_alone_beside_what_is_not(norm: Norm) -> None:
    x = _images(5, (3, 10), 0.2, 0.8)
    candidate = x.clone()
    candidate[0, :2] += 0.01
    candidate[1] += 0.3
    settled = settle(candidate, x, norm, 2.0 if norm is Norm.L0 else 0.05, (0.0, 1.0))
    assert torch.equal(settled[0], candidate[0])
    assert not torch.equal(settled[1], candidate[1])
    assert torch.equal(settled[2], x[2])


def test_settling_one_is_settling_many() -> None:
    x = _images(6, (7, 30))
    candidate = x + _images(7, x.shape, -1, 1)
    for norm in EVERY:
        many = settle(candidate, x, norm, 2.0 if norm is Norm.L0 else 0.1, (0.0, 1.0))
        for row in range(7):
            part = slice(row, row + 1)
            alone = settle(candidate[part], x[part], norm, 2.0 if norm is Norm.L0 else 0.1, (0.0, 1.0))
            assert torch.equal(alone, many[part])


def test_float64_candidates_are_rounded_as_a_file_would_hold_them() -> None:
    x = torch.full((1, 4), 0.1)
    candidate = x.double() + 0.1
    settled = settle(candidate, x, Norm.LINF, 0.1, (0.0, 1.0))
    assert settled.dtype == torch.float32
    assert max(_exact(settled, x, Norm.LINF)) <= Fraction(0.1)


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (-0.3, 0.7), (0.0, 255.0)])
def test_an_input_at_the_edge_of_a_box_is_inside_it(bounds: tuple[float, float]) -> None:
    low, high = bounds
    edge = settle(torch.tensor([[1e9, -1e9]]), torch.full((1, 2), low), Norm.LINF, None, bounds)
    assert bool(inside_box(edge, bounds).all())
    assert edge.tolist() == [[float(torch.tensor(high)), float(torch.tensor(low))]]
    assert not bool(inside_box(torch.tensor([[high + 1e-3, low]]), bounds).any())
    assert not bool(inside_box(torch.tensor([[torch.nan, low]]), bounds).any())


# ---------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("norm", EVERY)
def test_bytes_stay_bytes_inside_the_ball(norm: Norm, bounds: tuple[float, float]) -> None:
    low, high = bounds
    unit = (high - low) / 255
    generator = torch.Generator().manual_seed(8)
    clean = torch.randint(0, 256, (5, 30), generator=generator)
    x = (clean.double() * unit + low).float()
    assert bool(on_grid(x, bounds).all())
    for steps in (0.0, 0.4, 1.0, 2.5, 8.0, 30.0):
        eps = float(round(steps)) if norm is Norm.L0 else steps * unit
        candidate = x + unit * 40 * torch.empty(5, 30).normal_(generator=generator)
        candidate[4, 3] = torch.nan
        settled, distance = settle_on_grid(candidate, x, norm, eps, bounds)
        assert bool(on_grid(settled, bounds).all())
        assert bool((distance <= eps).all())
        delta = (levels(settled, bounds) - clean).flatten(1)
        exact = size(delta, norm) * (1 if norm is Norm.L0 else unit)
        assert torch.allclose(distance, exact, rtol=1e-12, atol=0)
        assert bool((distance >= exact * (1 - 1e-15)).all())


def test_a_byte_that_the_ball_reaches_exactly_is_not_lost() -> None:
    x = (torch.arange(0, 240, 12).double() / 255).float()[None]
    for steps in range(1, 16):
        eps = steps / 255
        settled, distance = settle_on_grid(x + 0.5, x, Norm.LINF, eps, (0.0, 1.0))
        assert set((levels(settled, (0.0, 1.0)) - levels(x, (0.0, 1.0))).flatten().tolist()) == {float(steps)}
        assert float(distance) == eps


def test_rounding_to_the_nearest_byte_is_kept_where_the_ball_allows_it() -> None:
    x = torch.tensor([[10 / 255, 20 / 255]])
    settled, _ = settle_on_grid(
        x + torch.tensor([[2.6 / 255, -0.4 / 255]]), x, Norm.LINF, 3 / 255, (0.0, 1.0)
    )
    assert levels(settled, (0.0, 1.0)).tolist() == [[13.0, 20.0]]


def test_what_lies_between_bytes_is_no_8_bit_image() -> None:
    assert not bool(on_grid(torch.tensor([[10.5 / 255]]), (0.0, 1.0)).any())


# ------------------------------------------------------------------------------------- the moves of a search


def test_the_projection_onto_l1_ball_and_box_is_the_nearest_point_of_both() -> None:
    """Against a slow search by alternating projections (Dykstra), and by its own conditions."""
    x = _images(10, (6, 25))
    point = x + 2 * _images(11, x.shape, -1, 1)
    for eps in (0.05, 0.7, 3.0, 50.0):
        found = within(point, x, Norm.L1, eps, (0.0, 1.0))
        assert bool(((found - x).abs().sum(1) <= eps * (1 + 1e-5)).all())
        assert float(found.min()) >= -1e-6
        assert float(found.max()) <= 1 + 1e-6
        slow = _dykstra(point.double(), x.double(), eps)
        assert torch.allclose(found.double(), slow, atol=2e-4)


def _dykstra(point: Tensor, x: Tensor, eps: float) -> Tensor:
    radius = torch.full((len(x),), eps, dtype=torch.float64)
    here, first, second = point, torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(3000):
        ball = x + project(here + first - x, radius, Norm.L1)
        first = here + first - ball
        box = (ball + second).clamp(0, 1)
        second = ball + second - box
        here = box
    return here


@pytest.mark.parametrize("norm", EVERY)
def test_points_of_a_search_are_inside_up_to_rounding_and_stay_where_they_were_inside(norm: Norm) -> None:
    x = _images(12, (4, 20))
    eps = 3.0 if norm is Norm.L0 else 0.2
    moved = within(x + _images(13, x.shape, -1, 1), x, norm, eps, (0.0, 1.0))
    assert bool((size(moved - x, norm) <= eps * (1 + 1e-5)).all())
    assert torch.allclose(within(moved, x, norm, eps, (0.0, 1.0)), moved, atol=1e-6)


def test_a_coordinate_that_the_box_stops_is_no_direction() -> None:
    point = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5]])
    gradient = torch.tensor([[-1.0, 1.0, -1.0, 1.0, 1.0]])
    assert unblocked(gradient, point, (0.0, 1.0)).tolist() == [[0.0, 1.0, -1.0, 0.0, 1.0]]


def test_a_size_a_hair_below_a_byte_gives_the_byte_before_and_not_the_clean_input() -> None:
    x = torch.full((1, 3), 100 / 255)
    eps = math.nextafter(5 / 255, 0)
    settled, _ = settle_on_grid(x + 0.5, x, Norm.LINF, eps, (0.0, 1.0))
    assert levels(settled, (0.0, 1.0)).tolist() == [[104.0] * 3]


def test_bytes_are_counted_exactly_in_l1() -> None:
    x = torch.full((1, 784), 100 / 255)
    candidate = x.clone()
    candidate[0, 5] += 30 / 255
    settled, distance = settle_on_grid(candidate, x, Norm.L1, 3 / 255, (0.0, 1.0))
    assert float(levels(settled, (0.0, 1.0))[0, 5]) == 103
    assert float(distance) == 3 / 255
