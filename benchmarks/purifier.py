"""PixelDefend's purifier: activations kept from pixel to pixel, against one full pass of the network for every pixel.

    python benchmarks/purifier.py --images 20

``kept``: :func:`calipers.defenses.pixel_defend.purifier.purify`. ``full passes``: the algorithm as it is written, in
the same number format. Both purify the same images one after the other in one process; the outcome says whether they
agree to the last level. ``kept, 50 images`` is the time of one purification of fifty, of which an attack needs one a
step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment, report
from torch import Tensor

from calipers.defenses.parts import load_part
from calipers.defenses.pixel_defend.pixel_cnn import PixelCNN
from calipers.defenses.pixel_defend.purifier import purify, purify_by_full_passes
from calipers.defenses.pixel_defend.training import DENSITY
from calipers.sources.datasets import load_dataset
from calipers.target.allocator import keep_freed_memory

EPS_DEFEND = 32


def process_seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Time one call."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="bundled:fashion-mnist")
    parser.add_argument(
        "--weights", type=Path, help="the folder of the density; the one that ships if not given"
    )
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    density = load_part(PixelCNN(), DENSITY, args.weights).requires_grad_(False)
    assert isinstance(density, PixelCNN)
    data = load_dataset(args.data)
    x = torch.stack([torch.from_numpy(data[place].image) for place in range(50)])
    levels = (255 * x).round().long()
    some, exact = levels[: args.images], copy.deepcopy(density).double()
    slow, expected = process_seconds(lambda: purify_by_full_passes(exact, some, eps_defend=EPS_DEFEND))
    fast, many = [], []
    for _ in range(args.rounds):
        seconds, found = process_seconds(lambda: purify(density, some, eps_defend=EPS_DEFEND))
        fast.append(seconds)
        many.append(process_seconds(lambda: purify(density, levels, eps_defend=EPS_DEFEND))[0])
    result = {
        "what": f"purification of {args.images} images of 28 x 28, eps_defend {EPS_DEFEND}, float64",
        "process_seconds": {
            "full passes": round(slow, 2),
            "kept": round(statistics.median(fast), 3),
            "kept, 50 images": round(statistics.median(many), 3),
        },
        "times_faster": round(slow / statistics.median(fast), 1),
        "same_images": bool(torch.equal(found, expected)),
        "threads": args.threads,
        "environment": environment(),
    }
    report(result, args.out)


if __name__ == "__main__":
    main()
