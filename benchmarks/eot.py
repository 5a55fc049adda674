"""Expectation over Transformation: one gradient of 30 samples an input against 30 bare forwards and backwards of it.

    python benchmarks/eot.py --model bundled:fashion-cnn28-plain --data bundled:fashion-mnist

``bare``: forward, cross-entropy and backward to the input of ready-made noisy copies, in batches of the same number of
rows, nothing else. ``eot``: ``EOT(30, over=gaussian(0.25))``, which draws the noise, repeats the inputs, averages.
``one by one``: 30 estimates of one sample each, as a loop over an estimator does it. They take turns; the figure is the
median over rounds of the ratio within a round, in seconds of the process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment, report
from torch import Tensor
from torch.nn import functional

from calipers.gradients.eot import EOT
from calipers.gradients.transformations import AdditiveNoise
from calipers.randomness import Draws, Role
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target.allocator import keep_freed_memory
from calipers.threat.objectives import cross_entropy
from calipers.threat.threat_model import Untargeted

SAMPLES = 30
SIGMA = 0.25


def process_seconds(work: Callable[[], None]) -> float:
    """Time one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled:fashion-cnn28-plain")
    parser.add_argument("--data", default="bundled:fashion-mnist")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    target, data = load_model(args.model), load_dataset(args.data)
    items = [data[place] for place in range(args.images)]
    x = torch.stack([torch.from_numpy(item.image) for item in items])
    y = torch.tensor([item.label for item in items])
    draws = Draws(0, Role.SEARCH, tuple(range(args.images)))
    noise = AdditiveNoise("gaussian", SIGMA)
    many, one = EOT(SAMPLES, over=noise), EOT(1, over=noise)
    rows = max(1, many.max_batch // SAMPLES) * SAMPLES
    copies = x.repeat_interleave(SAMPLES, 0)
    copies = (copies + SIGMA * torch.randn(copies.shape, generator=torch.Generator().manual_seed(0))).split(
        rows
    )
    labels = y.repeat_interleave(SAMPLES).split(rows)

    def bare() -> None:
        for part, wanted in zip(copies, labels, strict=True):
            leaf = part.detach().requires_grad_(True)
            loss: Tensor = functional.cross_entropy(target.module(leaf), wanted, reduction="sum")
            torch.autograd.grad(loss, leaf)

    def eot() -> None:
        many.estimate(target, cross_entropy, x, y, Untargeted(), draws=draws)

    def one_by_one() -> None:
        for step in range(SAMPLES):
            one.estimate(target, cross_entropy, x, y, Untargeted(), draws=draws.fold(step))

    works = {"bare": bare, "eot": eot, "one by one": one_by_one}
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(args.rounds + 1):
        for name, work in works.items():
            seconds = process_seconds(work)
            if round_:
                times[name].append(seconds)
    shares = [raw / full for raw, full in zip(times["bare"], times["eot"], strict=True)]
    loops = [slow / full for slow, full in zip(times["one by one"], times["eot"], strict=True)]
    result = {
        "what": f"{args.images} inputs, {SAMPLES} samples each, Gaussian noise of {SIGMA}",
        "model": args.model,
        "rows_of_a_batch": rows,
        "process_seconds": {name: round(statistics.median(found), 3) for name, found in times.items()},
        "share_of_the_bare_throughput": round(statistics.median(shares), 3),
        "times_faster_than_one_by_one": round(statistics.median(loops), 3),
        "threads": args.threads,
        "environment": environment("numpy"),
    }
    report(result, args.out)


if __name__ == "__main__":
    main()
