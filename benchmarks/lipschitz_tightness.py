"""Norms of convolutions: how far above the truth the bounds are, and what they cost against a dense SVD.

    OMP_NUM_THREADS=1 python benchmarks/lipschitz_tightness.py --out benchmarks/results/lipschitz-tightness.json

``tightness`` draws zero-padded 3 x 3 kernels from 8 to 16 channels and divides each bound by the largest singular value
of the layer's matrix. ``exact`` raises the input size to 16 000 unknowns, where the truth is a Lanczos iteration run
to the last digits. ``against_svd`` times the bounds and a dense singular value decomposition of the same matrix. Times
are medians on one thread, in wall and in CPU seconds of the process; ratios are of CPU seconds, since the machine may
be shared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from environment import environment, report

from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.spectral import Method, convolution_norm
from calipers.threat.threat_model import Norm

LAYERS = [
    {"channels": (8, 16), "size": 12},
    {"channels": (8, 16), "size": 16},
    {"channels": (16, 32), "size": 16, "stride": 2},
    {"channels": (32, 32), "size": 8},
    {"channels": (64, 64), "size": 8},
]
"""Layers of which a dense decomposition can be waited for; the last is a layer of ResNet-20."""


def layer(seed: int, inputs: int, outputs: int, stride: int = 1) -> Convolution:
    """Draw a zero-padded 3 x 3 convolution."""
    kernel = np.random.default_rng(seed).standard_normal((outputs, inputs, 3, 3))
    return Convolution(kernel, (stride, stride), (1, 1), ((1, 1), (1, 1)))


def bound(convolution: Convolution, size: int | None, method: Method) -> float:
    """Bound the l2 norm."""
    known = None if size is None else (size, size)
    return convolution_norm(convolution, Norm.L2, size=known, method=method).value


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Give the median of wall and of CPU seconds."""
    wall, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return {"seconds": round(statistics.median(wall), 4), "cpu_seconds": round(statistics.median(cpu), 4)}


def tightness(size: int, draws: int) -> dict[str, Any]:
    """Divide each bound by the true norm, over several kernels."""
    ratios: dict[str, list[float]] = {"grid, any size": [], "grid, known size": [], "exact": []}
    for seed in range(draws):
        convolution = layer(seed, 8, 16)
        true = np.linalg.svd(convolution.matrix((size, size)).toarray(), compute_uv=False)[0]
        for name, known, method in (
            ("grid, any size", None, "grid"),
            ("grid, known size", size, "grid"),
            ("exact", size, "exact"),
        ):
            ratios[name].append(bound(convolution, known, method) / true)
    return {
        name: {
            "median": round(statistics.median(found), 5),
            "most": round(max(found), 5),
            "least": min(found),
        }
        for name, found in ratios.items()
    }


def exact(size: int, draws: int) -> dict[str, Any]:
    """Time the proof of the exact norm, and hold it against a converged Lanczos iteration."""
    ratios, found = [], {}
    for seed in range(draws):
        convolution = layer(seed, 8, 16)
        matrix = convolution.matrix((size, size))
        top = scipy.sparse.linalg.eigsh(matrix.T @ matrix, k=1, tol=1e-11, v0=np.ones(matrix.shape[1]))[0][0]
        ratios.append(bound(convolution, size, "exact") / float(np.sqrt(top)))
        found = timed(lambda layer=convolution: bound(layer, size, "exact"), 3)
    return {
        "unknowns": 8 * size * size,
        "median": round(statistics.median(ratios), 6),
        "most": max(ratios),
        **found,
    }


def against_svd(channels: tuple[int, int], size: int, stride: int = 1) -> dict[str, Any]:
    """Time the bounds and a dense decomposition of the same matrix."""
    convolution = layer(0, *channels, stride=stride)
    dense = convolution.matrix((size, size)).toarray()
    methods: tuple[Method, ...] = ("grid", "exact")
    times = {method: timed(lambda m=method: bound(convolution, size, m), 5) for method in methods}
    times["dense SVD"] = timed(lambda: np.linalg.svd(dense, compute_uv=False), 1)
    return {
        "channels": f"{channels[0]} to {channels[1]}",
        "size": size,
        "stride": stride,
        "matrix": "x".join(str(n) for n in dense.shape),
        **times,
        **{
            f"times faster, {method}": round(
                times["dense SVD"]["cpu_seconds"] / times[method]["cpu_seconds"], 1
            )
            for method in methods
        },
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=15)
    parser.add_argument("--sizes", default="16,24,32,44", help="input sizes of the exact norm")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(size) for size in arguments.sizes.split(",")]
    result = {
        "workload": "zero-padded 3x3 convolutions of Gaussian weights, one thread; bound / largest singular value",
        "tightness, 8 to 16 channels": {str(size): tightness(size, arguments.draws) for size in (8, 12, 16)},
        "exact, 8 to 16 channels": {str(size): exact(size, 3) for size in sizes},
        "against a dense SVD": [against_svd(**chosen) for chosen in LAYERS],
        "environment": environment("numpy", "scipy"),
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
