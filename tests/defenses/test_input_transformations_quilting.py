"""Image quilting, against loops over tiles and pixels, brute force over seams, and all distances."""

import copy
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from calipers.defenses.input_transformations.nearest import Remembered, nearest_points
from calipers.defenses.input_transformations.quilting import Quilting, patches_of, quilt, seams, tiles_of
from calipers.defenses.parts import training_images
from calipers.errors import UsageError
from calipers.target.fingerprint import fingerprint_module


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_seam_is_the_best_of_all_paths() -> None:
    error = uniform(60, 5, 3).double()
    paths = [
        path
        for path in itertools.product(range(3), repeat=5)
        if all(abs(one - other) <= 1 for one, other in itertools.pairwise(path))
    ]
    for strip, found in zip(error.tolist(), seams(error).tolist(), strict=True):
        cost = {path: sum(strip[row][column] for row, column in enumerate(path)) for path in paths}
        assert tuple(found) == min(cost, key=lambda path: cost[path])


def test_a_seam_goes_one_column_at_a_time() -> None:
    error = torch.ones((1, 4, 4))
    error[0, 0, 0] = error[0, 1, 3] = error[0, 2, 3] = error[0, 3, 3] = 0
    assert seams(error).tolist() == [[2, 3, 3, 3]]


def quilt_by_loops(tiles: NDArray[np.float64], overlap: int) -> NDArray[np.float64]:
    """Lay the tiles of one image one after the other, each pixel by itself."""
    rows, columns, side, _ = tiles.shape
    step = side - overlap
    image = np.zeros(((rows - 1) * step + side, (columns - 1) * step + side))

    def path(error: NDArray[np.float64]) -> list[int]:
        cost = error.copy()
        for row in range(1, side):
            for column in range(overlap):
                cost[row, column] += min(cost[row - 1, max(column - 1, 0) : column + 2])
        found = [int(cost[-1].argmin())]
        for row in reversed(range(side - 1)):
            low = max(found[-1] - 1, 0)
            found.append(low + int(cost[row, low : found[-1] + 2].argmin()))
        return found[::-1]

    for r in range(rows):
        for c in range(columns):
            top, left = r * step, c * step
            old, new = image[top : top + side, left : left + side].copy(), tiles[r, c]
            squared = (old - new) ** 2
            across = path(squared[:, :overlap]) if c else [0] * side
            down = path(squared[:overlap].T) if r else [0] * side
            for row in range(side):
                for column in range(side):
                    if column >= across[row] and row >= down[column]:
                        image[top + row, left + column] = new[row, column]
    return image


@pytest.mark.parametrize(("side", "overlap"), [(5, 2), (4, 1), (6, 3)])
def test_a_batch_is_quilted_as_each_image_by_loops(side: int, overlap: int) -> None:
    tiles = uniform(3, 4, 5, 1, side, side).double()
    found = quilt(tiles, overlap=overlap)
    for row in range(3):
        assert np.array_equal(found[row, 0].numpy(), quilt_by_loops(tiles[row, :, :, 0].numpy(), overlap))


def test_colours_are_cut_along_one_seam() -> None:
    grey = uniform(2, 3, 4, 1, 5, 5).double()
    scales = torch.tensor([0.5, 1.0, 0.25]).double().view(3, 1, 1)
    assert torch.allclose(quilt(grey * scales, overlap=2), quilt(grey, overlap=2) * scales)
    tiles = uniform(1, 1, 2, 2, 5, 5).double()
    tiles[:, :, :, 1] *= 100  # this channel decides
    kept = quilt(tiles, overlap=2)[0] == quilt(tiles[:, :, :, 1:], overlap=2)[0, 0]
    assert bool(kept[1].all())
    first = quilt(tiles, overlap=2)[0]
    from_left = [(first[channel, :, 3:5] == tiles[0, 0, 0, channel, :, 3:]) for channel in range(2)]
    assert torch.equal(*from_left), "both channels have the seam at the same place"


def test_tiles_of_an_image_are_quilted_to_that_image() -> None:
    x = uniform(2, 1, 29, 29)
    assert torch.equal(quilt(tiles_of(x, 5, 2), overlap=2), x)
    assert tiles_of(x, 5, 2).shape == (2, 9, 9, 1, 5, 5)
    colours = uniform(2, 3, 32, 32)
    assert torch.equal(quilt(tiles_of(colours, 5, 2), overlap=2), colours)
    assert tiles_of(colours, 5, 2).shape == (2, 10, 10, 3, 5, 5)


@pytest.mark.parametrize("points", [11, 32, 33, 1000])
def test_neighbours_are_the_nearest_of_all(points: int) -> None:
    database, queries = uniform(points, 25, seed=1), uniform(70, 25, seed=2)
    found = nearest_points(queries, database, count=10)
    distance = torch.cdist(queries.double(), database.double())
    expected = distance.sort(1).values[:, :10]
    assert torch.allclose(distance.gather(1, found), expected, atol=1e-6)
    assert all(len(set(row)) == 10 for row in found.tolist())


def test_remembered_neighbours_are_the_same_and_belong_to_no_copy() -> None:
    points, queries = uniform(500, 25, seed=1), uniform(4, 9, 25, seed=2)
    known = Remembered(5)
    first = known.nearest(queries, points)
    assert len(known) == 4
    assert torch.equal(known.nearest(queries.flip(0), points).flip(0), first)
    assert torch.equal(known.nearest(queries[:1], points), first[:1])
    assert torch.equal(first.flatten(0, 1), nearest_points(queries.flatten(0, 1), points, count=5))
    assert len(copy.deepcopy(known)) == 0


def test_what_is_remembered_is_no_part_of_the_fingerprint() -> None:
    module = Quilting(patches_of(training_images()[0][:20], count=500))
    print_ = fingerprint_module(module)
    module(training_images()[0][:2])
    assert fingerprint_module(module) == print_


def test_every_tile_comes_from_its_nearest_patches_and_all_of_them_come() -> None:
    images = training_images()[0][:40]
    patches = patches_of(images, count=3000)
    module = Quilting(patches, overlap=2, among=10)
    x = training_images()[0][50:51].repeat(60, 1, 1, 1)
    torch.default_generator.manual_seed(0)
    found = module(x)
    tile = x[0, 0, :5, :5]  # nothing is above it or on its left
    patches = patches[:, 0]
    order = (patches - tile).square().sum((1, 2)).argsort()[:10]
    drawn = {
        int((patches[order] - image[0, :5, :5])[:, :3, :3].abs().sum((1, 2)).argmin()) for image in found
    }
    inner = (found[:, 0, :3, :3][:, None] - patches[order][None, :, :3, :3]).abs().amax((2, 3)).amin(1)
    assert float(inner.max()) == 0
    assert len(drawn) >= 1
    middle = {tuple(image[0, 12:15, 12:15].flatten().tolist()) for image in found}
    assert len(middle) > 5


def test_an_image_of_the_database_comes_back_where_the_nearest_is_taken() -> None:
    x = training_images()[0][:3]
    module = Quilting(patches_of(x, count=10**6), among=1)
    assert torch.equal(module(x), x)


def test_the_database_has_no_patch_twice_and_none_of_the_padding_alone() -> None:
    patches = patches_of(training_images()[0][:20], count=500)
    assert patches.shape == (500, 1, 5, 5)
    assert len(torch.unique(patches.flatten(1), dim=0)) == 500
    assert torch.equal(patches, patches_of(training_images()[0][:20], count=500))


def test_rows_are_drawn_each_for_itself() -> None:
    module = Quilting(patches_of(training_images()[0][:20], count=2000))
    torch.default_generator.manual_seed(0)
    found = module(training_images()[0][30:31].repeat(3, 1, 1, 1))
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="overlap is 3"):
        Quilting(uniform(20, 1, 5, 5), overlap=3)
    with pytest.raises(UsageError, match="one of 10"):
        Quilting(uniform(5, 1, 5, 5))
