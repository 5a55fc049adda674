"""Attacks that see no gradient, beside those of pyautoattack and foolbox: same network, images, sizes and queries.

Run as `python benchmarks/black_box.py --out benchmarks/results/black-box.json`; it takes some minutes on one core.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import torch
from environment import environment, report
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from calipers.attacks.boundary import Boundary
from calipers.attacks.hop_skip_jump import HopSkipJump
from calipers.attacks.square import Square
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

MODEL, DATA = "bundled:fashion-cnn28-plain", "bundled:fashion-mnist"
SIZES = {Norm.LINF: 0.05, Norm.L2: 1.0}


class Counted(nn.Module):
    """A network that counts the inputs it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.inputs = 0

    def forward(self, x: Tensor) -> Tensor:
        """Count the inputs and pass them on."""
        self.inputs += len(x)
        logits: Tensor = self.net(x)
        return logits


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Run something, and say how many CPU seconds of this process it took."""
    start = time.process_time()
    return work(), round(time.process_time() - start, 1)


def images(count: int) -> tuple[Tensor, Tensor]:
    """Return the first images of the bundled data."""
    data = load_dataset(DATA)
    rows = [data[index] for index in range(count)]
    return torch.stack([torch.from_numpy(row.image) for row in rows]), torch.tensor(
        [row.label for row in rows]
    )


def compare_square(target: Target, x: Tensor, y: Tensor, *, queries: int, seeds: int) -> list[dict[str, Any]]:
    """Robust accuracy after so many queries, ours and theirs, a row a norm and seed."""
    rows = []
    right = target.predict(x) == y
    for norm, eps in SIZES.items():
        for seed in range(seeds):
            ours, seconds = timed(
                lambda norm=norm, eps=eps, seed=seed: Square(queries=queries)(
                    target, x, y, ThreatModel(norm, eps), seed=seed
                )
            )
            peer = SquareAttack(
                target.module,
                norm="Linf" if norm is Norm.LINF else "L2",
                n_queries=queries,
                eps=eps,
                p_init=0.8,
                seed=seed,
                device="cpu",
            )
            with torch.no_grad():
                theirs, their_seconds = timed(lambda peer=peer: peer.perturb(x[right], y[right]))
                standing = int((target.predict(theirs) == y[right]).sum())
            rows.append(
                {
                    "norm": str(norm),
                    "eps": eps,
                    "seed": seed,
                    "queries": queries,
                    "robust_accuracy": 1 - float(ours.success.double().mean()),
                    "robust_accuracy_pyautoattack": standing / len(x),
                    "cpu_seconds": seconds,
                    "cpu_seconds_pyautoattack": their_seconds,
                }
            )
    return rows


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Average the robust accuracies of each norm over the seeds."""
    return {
        norm: {
            name: sum(row[name] for row in rows if row["norm"] == norm)
            / sum(row["norm"] == norm for row in rows)
            for name in ("robust_accuracy", "robust_accuracy_pyautoattack")
        }
        for norm in sorted({row["norm"] for row in rows})
    }


def compare_decisions(target: Target, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Median l2 distance found from classes alone, and the queries it took, ours and foolbox's."""
    right = target.predict(x) == y
    x, y = x[right], y[right]
    pairs = {
        "hop-skip-jump": (HopSkipJump(steps=10), foolbox.attacks.HopSkipJumpAttack(steps=10)),
        "boundary": (Boundary(steps=3000), foolbox.attacks.BoundaryAttack(steps=3000)),
    }
    rows = []
    for name, (attack, peer) in pairs.items():
        ours, seconds = timed(lambda attack=attack: attack(target, x, y, ThreatModel(Norm.L2), seed=0))
        network = Counted(target.module).eval()
        model = foolbox.PyTorchModel(network, bounds=target.bounds, device="cpu")
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(0)
            (_, theirs, fallen), their_seconds = timed(
                lambda peer=peer, model=model: peer(
                    model, x, foolbox.criteria.Misclassification(y), epsilons=None
                )
            )
        distance = (theirs - x).flatten(1).norm(dim=1)
        rows.append(
            {
                "attack": name,
                "images": len(x),
                "fallen": int(ours.success.sum()),
                "fallen_foolbox": int(fallen.sum()),
                "median_l2": float(ours.distance[ours.success].median()),
                "median_l2_foolbox": float(distance[fallen].median()),
                "mean_queries": float(ours.queries.double().mean()),
                "mean_queries_foolbox": network.inputs / len(x),
                "cpu_seconds": seconds,
                "cpu_seconds_foolbox": their_seconds,
            }
        )
    return rows


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--few", type=int, default=12, help="images for the attacks on decisions")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = load_model(MODEL)
    x, y = images(options.images)
    square = compare_square(target, x, y, queries=options.queries, seeds=options.seeds)
    result = {
        "what": "attacks without gradients on the bundled plain network, one thread",
        "model": MODEL,
        "data": f"{DATA}, first {options.images}",
        "clean_accuracy": float((target.predict(x) == y).double().mean()),
        "square": square,
        "square_means": means(square),
        "decisions": compare_decisions(target, x[: options.few], y[: options.few]),
        "environment": environment("pyautoattack", "foolbox"),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
