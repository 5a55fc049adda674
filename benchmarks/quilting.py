"""Quilting and total variation over a batch, against a loop over its images: the same answers, how much sooner.

Run as `python benchmarks/quilting.py --out benchmarks/results/quilting.json`; it takes a minute on one core. The loop
runs the same vectorized code on one image after the other; what a loop over tiles and pixels takes is given beside it.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from environment import environment, report
from torch import Tensor

from calipers.defenses.input_transformations.defense import database
from calipers.defenses.input_transformations.nearest import nearest_points
from calipers.defenses.input_transformations.quilting import quilt, tiles_of
from calipers.defenses.input_transformations.total_variation import minimize
from calipers.defenses.parts import training_images

SIDE, OVERLAP, AMONG = 5, 2, 10
WEIGHT, ROUNDS = 0.03, 40


def seconds(work: Callable[[], Any], *, repeats: int) -> float:
    """Median CPU time of some repeats, in seconds."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return median(found)


def neighbours(x: Tensor, patches: Tensor) -> Tensor:
    """Find the nearest patches of every tile."""
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    tiles = tiles_of(padded, SIDE, OVERLAP).flatten(0, 2).flatten(1)
    return nearest_points(tiles, patches.flatten(1), count=AMONG).view(len(x), -1, AMONG)


def neighbours_by_tiles(x: Tensor, patches: Tensor) -> Tensor:
    """Find the same, one tile at a time, by the differences to every patch."""
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    found = [
        (patches - tile).square().sum((1, 2, 3)).topk(AMONG, largest=False).indices
        for tile in tiles_of(padded, SIDE, OVERLAP).flatten(0, 2)
    ]
    return torch.stack(found).view(len(x), -1, AMONG)


def distances(x: Tensor, known: Tensor, patches: Tensor) -> Tensor:
    """Compute how far neighbours are, which is the same for any order of those equally near."""
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    tiles = tiles_of(padded, SIDE, OVERLAP).flatten(1, 2)
    return (patches[known] - tiles[:, :, None]).square().sum((3, 4, 5)).sqrt()


def join(known: Tensor, patches: Tensor) -> Tensor:
    """Join the patch of each tile that a fixed choice picks."""
    picked = patches[known[:, :, 0]]
    return quilt(picked.view(len(known), 9, 9, 1, SIDE, SIDE), overlap=OVERLAP)[:, 0]


def join_by_loops(known: Tensor, patches: Tensor) -> Tensor:
    """Join the same patches with a loop over tiles, rows and columns, in plain Python and NumPy."""
    made = []
    for image in patches[known[:, :, 0]].view(len(known), 9, 9, SIDE, SIDE).numpy():
        made.append(torch.from_numpy(_one(image)))
    return torch.stack(made)


def _one(tiles: Any) -> Any:
    step = SIDE - OVERLAP
    canvas = torch.zeros((8 * step + SIDE, 8 * step + SIDE)).numpy()
    for row in range(9):
        for column in range(9):
            old = canvas[row * step : row * step + SIDE, column * step : column * step + SIDE]
            new, kept = tiles[row, column], old.copy()
            squared = (old - new) ** 2
            across = _path(squared[:, :OVERLAP]) if column else [0] * SIDE
            down = _path(squared[:OVERLAP].T) if row else [0] * SIDE
            for y in range(SIDE):
                for x in range(SIDE):
                    old[y, x] = kept[y, x] if x < across[y] or y < down[x] else new[y, x]
    return canvas


def _path(error: Any) -> list[int]:
    cost = error.copy()
    for row in range(1, SIDE):
        for column in range(OVERLAP):
            cost[row, column] += cost[row - 1, max(column - 1, 0) : column + 2].min()
    found = [int(cost[-1].argmin())]
    for row in reversed(range(SIDE - 1)):
        low = max(found[-1] - 1, 0)
        found.append(low + int(cost[row, low : found[-1] + 2].argmin()))
    return found[::-1]


def compare(
    name: str,
    batch: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    repeats: int,
    loops: Callable[[Tensor], Tensor],
) -> dict[str, Any]:
    """Compare a batch with a loop: answers and milliseconds an image."""
    together, apart = batch(x), loops(x)
    few = seconds(lambda: batch(x), repeats=repeats)
    many = seconds(lambda: loops(x), repeats=repeats)
    return {
        "what": name,
        "images": len(x),
        "largest_difference": float((together.double() - apart.double()).abs().max()),
        "batch_ms_an_image": round(1000 * few / len(x), 3),
        "loop_ms_an_image": round(1000 * many / len(x), 3),
        "ratio": round(many / few, 1),
    }


def one_by_one(work: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Make a loop over the images of a batch."""
    return lambda x: torch.cat([work(image[None]) for image in x])


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = training_images()[0][: options.images]
    patches = database()
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5

    def rebuild(both: Tensor) -> Tensor:
        return minimize(both[:, :1], both[:, 1:] > 0, weight=WEIGHT, rounds=ROUNDS)

    def find(images: Tensor) -> Tensor:
        return neighbours(images, patches)

    known = find(x)
    result = {
        "what": "input transformations over a batch against a loop over its images, one thread",
        "patches": len(patches),
        "rows": [
            compare(
                "total variation, 40 rounds",
                rebuild,
                torch.cat([x, kept.float()], 1),
                repeats=options.repeats,
                loops=one_by_one(rebuild),
            ),
            compare(
                "quilting: the 10 nearest patches of each tile",
                find,
                x,
                repeats=options.repeats,
                loops=one_by_one(find),
            ),
            compare(
                "quilting: the nearest patches, tile by tile",
                lambda images: distances(images, find(images), patches),
                x[:10],
                repeats=options.repeats,
                loops=lambda images: distances(images, neighbours_by_tiles(images, patches), patches),
            ),
            compare(
                "quilting: seams, image by image",
                lambda some: join(some, patches),
                known,
                repeats=options.repeats,
                loops=one_by_one(lambda some: join(some, patches)),
            ),
            compare(
                "quilting: seams, tile by tile in Python",
                lambda some: join(some, patches),
                known,
                repeats=options.repeats,
                loops=lambda some: join_by_loops(some, patches),
            ),
        ],
        "environment": environment(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
