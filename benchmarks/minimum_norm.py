"""Minimum-norm attacks: calipers against foolbox's at the same steps, by the distances found and the time taken.

    python benchmarks/minimum_norm.py --model bundled:fashion-cnn28-plain --data bundled:fashion-mnist
    python benchmarks/minimum_norm.py --model resnet20-12fca82f.th --data cifar10-jpeg.tar.xz

The images are the first that the network classifies rightly. Every contender takes the same number of gradients of each
and may go anywhere in the box. A failure counts as an infinite distance, so that medians compare all images; the other
figures are over the images on which both succeeded. Contenders take turns; seconds are those of the process (one
thread), since the machine may be shared, and of the fastest round. calipers' seconds hold its judge (two more forwards
of each image) and what it tries after the last gradient; foolbox's hold its own check of the results.

Foolbox 3.3.4's L2FMNAttack divides the norm by itself in ``project``, so it never projects: the l2 attack to be
measured against is its DDN. A public ResNet-20 for CIFAR-10 (its name ends in .th) is read with the normalization that
it was trained with; CIFAR-10 is read from an image folder or a tar archive of one (``test/CLASS/*.jpg``).
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment, report
from PIL import Image
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.attacks.ddn import DDN
from calipers.attacks.deepfool import DeepFool
from calipers.attacks.fmn import FMN
from calipers.attacks.geometry import distances
from calipers.sources.architectures import build
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Contender = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images and labels to distances (infinite where it failed), and gradients of each image."""


def load_network(name: str) -> Target:
    """Load a model reference, or the public ResNet-20."""
    if not name.endswith(".th"):
        return load_model(name)
    saved = torch.load(name, weights_only=True, map_location="cpu")["state_dict"]
    net = build("resnet20", num_classes=10)
    net.load_state_dict({key.removeprefix("module."): value for key, value in saved.items()})
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Target(
        net.eval(), num_classes=10, input_shape=(3, 32, 32), mean=mean, std=std, name=Path(name).name
    )


def load_images(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Load the first images of a data reference, or equally many of each class of CIFAR-10."""
    if not name.endswith((".tar.xz", ".tar")):
        data = load_dataset(name)
        chosen = [data[index] for index in range(min(count, len(data)))]
        images = torch.stack([torch.from_numpy(example.image) for example in chosen])
        return images, torch.tensor([example.label for example in chosen])
    found: dict[tuple[int, str], Tensor] = {}
    each = -(-count // len(CIFAR_CLASSES))
    with tarfile.open(name) as archive:
        for member in archive:
            path = Path(member.name)
            if path.suffix == ".jpg" and path.parts[-3] == "test" and int(path.stem) < each:
                opened = archive.extractfile(member)
                assert opened is not None
                pixels = torch.from_numpy(np.array(Image.open(opened).convert("RGB")))
                found[CIFAR_CLASSES.index(path.parts[-2]), path.name] = pixels.permute(2, 0, 1).float() / 255
    order = sorted(found, key=lambda key: (key[1], key[0]))[:count]
    return torch.stack([found[key] for key in order]), torch.tensor([key[0] for key in order])


def ours(target: Target, attack: Attack, norm: Norm) -> Contender:
    """Make a contender of an attack of calipers."""

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found = attack(target, x, y, ThreatModel(norm), seed=0)
        return torch.where(found.success, found.distance, torch.inf), found.backwards.double()

    return run


def peers(target: Target, attack: Any, norm: Norm, steps: int) -> Contender:
    """Make a contender of an attack of foolbox; its distances are measured as ours are."""
    import foolbox

    low, high = target.bounds
    wrapped = foolbox.PyTorchModel(target.module, bounds=(low, high), device=target.device)

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        _, adversarial, success = attack(wrapped, x, y, epsilons=None)
        found = distances(adversarial, x, norm)
        return torch.where(success, found, torch.inf), torch.full((len(x),), float(steps))

    return run


def contenders(target: Target, steps: int) -> dict[Norm, dict[str, Contender]]:
    """Make the contenders of each norm: foolbox's first."""
    from foolbox import attacks

    found = {
        Norm.L2: {
            "foolbox DDN": attacks.DDNAttack(steps=steps),
            "foolbox FMN": attacks.L2FMNAttack(steps=steps),
        },
        Norm.LINF: {"foolbox FMN": attacks.LInfFMNAttack(steps=steps)},
        Norm.L1: {"foolbox FMN": attacks.L1FMNAttack(steps=steps)},
        Norm.L0: {"foolbox FMN": attacks.L0FMNAttack(steps=steps)},
    }
    mine: dict[Norm, dict[str, Attack]] = {
        Norm.L2: {"DDN": DDN(steps=steps), "FMN": FMN(steps=steps), "DeepFool": DeepFool()},
        Norm.LINF: {"FMN": FMN(steps=steps), "DeepFool": DeepFool()},
        Norm.L1: {"FMN": FMN(steps=steps)},
        Norm.L0: {"FMN": FMN(steps=steps)},
    }
    return {
        norm: {name: peers(target, attack, norm, steps) for name, attack in theirs.items()}
        | {name: ours(target, attack, norm) for name, attack in mine[norm].items()}
        for norm, theirs in found.items()
    }


def compare(chosen: dict[str, Contender], x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """Run the contenders of one norm in turns, and set ours beside the best of foolbox's."""
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    distance: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, run in chosen.items():
            start = time.process_time()
            distance[name], gradients[name] = run(x, y)
            seconds[name].append(time.process_time() - start)
    found: dict[str, Any] = {}
    for name in chosen:
        reached = distance[name].isfinite()
        found[name] = {
            "success": round(float(reached.double().mean()), 4),
            "median": float(distance[name].quantile(0.5, interpolation="higher")),
            "mean_of_successes": float(distance[name][reached].mean()),
            "gradients_an_image": float(gradients[name].mean()),
            "cpu_seconds": [round(value, 3) for value in seconds[name]],
        }
    best = min((name for name in chosen if "foolbox" in name), key=lambda name: found[name]["median"])
    for name in chosen:
        if "foolbox" in name:
            continue
        both = distance[name].isfinite() & distance[best].isfinite()
        ratios = distance[name][both] / distance[best][both]
        found[name]["against"] = best
        found[name]["median_distance_ratio"] = round(found[name]["median"] / found[best]["median"], 4)
        found[name]["median_of_ratios"] = round(float(ratios.median()), 4)
        found[name]["share_no_further"] = round(float((ratios <= 1.0).double().mean()), 4)
        found[name]["speed_ratio"] = round(
            statistics.median(a / b for a, b in zip(seconds[best], seconds[name], strict=True)), 3
        )
    return found


def main() -> None:
    """Compare in each norm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=120, help="images classified rightly")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--norms", nargs="+", default=["l2", "linf", "l1", "l0"])
    parser.add_argument(
        "--carlini-wagner", action="store_true", help="with Carlini-Wagner, which takes six times as long"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    target = load_network(args.model)
    x, y = load_images(args.data, 2 * args.images)
    right = (target.predict(x) == y).nonzero()[: args.images, 0]
    x, y = x[right], y[right]
    result: dict[str, Any] = {
        "benchmark": "minimum_norm",
        "model": Path(args.model).name,
        "data": Path(args.data).name,
        "images": len(x),
        "steps": args.steps,
        "rounds": args.rounds,
        "norms": {},
    }
    table = contenders(target, args.steps)
    if args.carlini_wagner:
        table[Norm.L2]["CarliniWagner"] = ours(target, CarliniWagner(), Norm.L2)
    for norm in map(Norm.parse, args.norms):
        result["norms"][norm.value] = compare(table[norm], x, y, args.rounds)
    report({**result, "environment": environment("foolbox", "eagerpy")}, args.out)


if __name__ == "__main__":
    main()
