"""Peak memory of a run against the number of samples and of inputs: it should depend on neither.

    python benchmarks/memory.py
    python benchmarks/memory.py --art --model bundled:cifar10-resnet20-noise-0.25

Each run is a process of its own; what is reported is its largest resident set. With ``--art``, one input is certified
by ART's ``PyTorchRandomizedSmoothing`` beside calipers, at N = 1 000, 10 000 and 100 000.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from environment import environment, report

CHILD = """
import resource, sys
import torch
from calipers.certificates.smoothing.certifier import VoteCertifier
from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.certificates.smoothing.smoothed import smooth
from calipers.sources.models import load_model
from calipers.threat.threat_model import Norm, ThreatModel
model, images, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
target = load_model(model)
draw = torch.Generator().manual_seed(0)
inputs = ((index, torch.rand(target.input_shape, generator=draw)) for index in range(images))
stream = VoteCertifier(n0=100, n=n).stream(
    smooth(target, Gaussian(0.25)), inputs, ThreatModel(Norm.L2), seed=0, plan=ExecutionPlan(500)
)
print(sum(1 for _ in stream), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

ART_CHILD = """
import logging, resource, sys
logging.disable(logging.WARNING)
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from calipers.sources.models import load_model
model, images, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
target = load_model(model)
x = torch.rand((images, *target.input_shape), generator=torch.Generator().manual_seed(0)).numpy()
smoothed = PyTorchRandomizedSmoothing(
    model=target.module, loss=torch.nn.CrossEntropyLoss(), input_shape=target.input_shape,
    nb_classes=target.num_classes, sample_size=100, scale=0.25, alpha=0.001,
)
smoothed.certify(x, n=n, batch_size=500)
print(images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mebibytes(model: str, images: int, n: int, child: str = CHILD) -> float:
    """Largest resident set of one run, in MiB."""
    command = [sys.executable, "-c", child, model, str(images), str(n)]
    found = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return int(found.stdout.split()[1]) / 1024


def compare_with_art(model: str, out: Path | None) -> None:
    """Measure one input at growing N, by both."""
    budgets = (1_000, 10_000, 100_000)
    report(
        {
            "what": "peak memory in MiB of certifying one input, by N",
            "model": model,
            "peak_mebibytes": {
                name: {str(n): round(peak_mebibytes(model, 1, n, child), 1) for n in budgets}
                for name, child in (("calipers", CHILD), ("ART", ART_CHILD))
            },
            "environment": environment("adversarial-robustness-toolbox"),
        },
        out,
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled:fashion-cnn28-noise-0.25")
    parser.add_argument("--art", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.art:
        compare_with_art(args.model, args.out)
        return
    sizes = [(10, 1_000), (10, 10_000), (10, 30_000), (100, 1_000), (1_000, 100), (3_000, 100)]
    report(
        {
            "what": "peak memory in MiB, by images x samples",
            "model": args.model,
            "peak_mebibytes": {
                f"{images} x {n}": round(peak_mebibytes(args.model, images, n), 1) for images, n in sizes
            },
            "environment": environment(),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
