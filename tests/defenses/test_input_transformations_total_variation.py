"""Total variation minimization, against a loop over the pixels of one image and what the minimum must be like."""

import math

import pytest
import torch
from torch import Tensor

from calipers.defenses.input_transformations.total_variation import TotalVariation, energy, minimize
from calipers.defenses.parts import training_images
from calipers.errors import UsageError


def some(count: int) -> tuple[Tensor, Tensor]:
    x = training_images()[0][:count].double()
    kept = torch.rand((count, 1, 28, 28), generator=torch.Generator().manual_seed(count)) < 0.5
    return x, kept


def by_loops(
    x: list[list[float]], kept: list[list[bool]], *, weight: float, rounds: int
) -> list[list[float]]:
    """Minimize one image pixel by pixel: the split Bregman method of Goldstein and Osher, sweeps red first."""
    rows, columns, penalty = len(x), len(x[0]), 10.0
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    known = [x[row][column] for row, column in cells if kept[row][column]]
    mean = sum(known) / len(known)
    z = [[x[r][c] if kept[r][c] else mean for c in range(columns)] for r in range(rows)]
    d = {(cell, axis): 0.0 for cell in cells for axis in (0, 1)}
    b = dict(d)

    def inside(row: int, column: int) -> bool:
        return 0 <= row < rows and 0 <= column < columns

    for _ in range(rounds):
        for colour in (0, 1):
            for row, column in cells:
                if (row + column) % 2 != colour:
                    continue
                numerator = denominator = 0.0
                if kept[row][column]:
                    numerator, denominator = 2 / weight * x[row][column], 2 / weight
                for axis, (down, right) in enumerate(((1, 0), (0, 1))):
                    if inside(row + down, column + right):
                        slope = d[(row, column), axis] - b[(row, column), axis]
                        numerator += penalty * (z[row + down][column + right] - slope)
                        denominator += penalty
                    if inside(row - down, column - right):
                        before = (row - down, column - right)
                        slope = d[before, axis] - b[before, axis]
                        numerator += penalty * (z[row - down][column - right] + slope)
                        denominator += penalty
                z[row][column] = numerator / denominator
        for row, column in cells:
            slopes = [
                (
                    z[row + down][column + right] - z[row][column]
                    if inside(row + down, column + right)
                    else 0.0
                )
                + b[(row, column), axis]
                for axis, (down, right) in enumerate(((1, 0), (0, 1)))
            ]
            length = math.hypot(*slopes)
            shrunk = max(length - 1 / penalty, 0.0) / length if length > 0 else 0.0
            for axis, slope in enumerate(slopes):
                d[(row, column), axis] = shrunk * slope
                b[(row, column), axis] = slope - shrunk * slope
    return [[min(max(value, 0.0), 1.0) for value in line] for line in z]


def test_a_batch_is_minimized_as_each_image_by_loops() -> None:
    x, kept = some(3)
    x, kept = x[..., 6:15, 6:16], kept[..., 6:15, 6:16]
    found = minimize(x, kept, weight=0.03, rounds=15)
    for row in range(3):
        expected = by_loops(x[row, 0].tolist(), kept[row, 0].tolist(), weight=0.03, rounds=15)
        assert torch.allclose(found[row, 0], torch.tensor(expected).double(), atol=1e-6)


def test_without_weight_the_kept_pixels_come_back() -> None:
    x, kept = some(4)
    found = minimize(x, kept, weight=1e-7, rounds=40)
    assert float(((found - x) * kept).abs().max()) < 1e-4
    assert float(((found - x) * ~kept).abs().max()) > 0.05


def test_with_all_weight_an_image_becomes_flat() -> None:
    x, kept = some(2)
    spread = minimize(x, kept, weight=1e3, rounds=600).flatten(1)
    assert float((spread.amax(1) - spread.amin(1)).max()) < 0.1 * float(x.amax())


def test_the_energy_falls_towards_one_minimum() -> None:
    x, kept = some(6)

    def reached(rounds: int, penalty: float = 10.0) -> Tensor:
        found = minimize(x, kept, weight=0.03, rounds=rounds, penalty=penalty)
        return energy(found, x, kept, weight=0.03)

    least = reached(1500)
    assert bool((energy(x, x, kept, weight=0.03) > reached(10)).all())
    assert bool((reached(10) > reached(40)).all())
    assert bool((reached(40) < 1.01 * least).all())
    assert torch.allclose(least, reached(1500, penalty=20.0), rtol=1e-3)


def test_no_small_change_of_the_minimum_lowers_the_energy() -> None:
    x, kept = some(2)
    found = minimize(x, kept, weight=0.03, rounds=1500)
    least = energy(found, x, kept, weight=0.03)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = found + 0.02 * torch.randn(found.shape, generator=generator, dtype=torch.float64)
        assert bool((energy(moved, x, kept, weight=0.03) > least).all())


def test_half_of_the_pixels_count() -> None:
    torch.default_generator.manual_seed(0)
    x = torch.full((1, 1, 28, 28), 0.5)
    x[..., ::2, :] = 0.6
    assert float((TotalVariation(weight=1e-7)(x) - x).abs().max()) > 0.01
    assert float((TotalVariation(weight=1e-7, keep=1.0)(x) - x).abs().max()) < 1e-4


def test_an_image_of_one_value_is_left_alone() -> None:
    x = torch.full((2, 1, 28, 28), 0.25)
    assert torch.allclose(TotalVariation()(x), x, atol=1e-6)


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="keep is 0.0"):
        TotalVariation(keep=0.0)
