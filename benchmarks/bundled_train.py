"""Train the Fashion-MNIST networks that ship with calipers, and write their files and their cards.

    python benchmarks/bundled_train.py --data FOLDER --out src/calipers/sources/bundled

FOLDER holds the four IDX files of Fashion-MNIST. The networks that ship are trained on all 60 000 training
images and measured once on the 10 000 test images; every choice of a recipe was made with `--hold-out 5000`,
which trains on the others and measures on that many training images instead. Networks trained under noise are
measured under noise, the one trained under attack is attacked: on the first 1 000 of the images, by 40 steps of PGD
that it has not seen. Progress goes to standard error, one JSON object to standard output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from calipers.attacks.pgd import PGD
from calipers.sources.array_files import read_idx
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel
from calipers.training import adversarial, noise
from calipers.training.accuracy import accuracy
from calipers.training.adversarial import AdversarialTraining
from calipers.training.loop import TrainedModel, TrainingProgress
from calipers.training.noise import NoiseTraining
from calipers.training.weights import save_weights

Split = tuple[torch.Tensor, torch.Tensor]


def recipe(sigma: float) -> NoiseTraining:
    """Return the recipe of one network: under noise with consistency (see the cards)."""
    return NoiseTraining(
        arch="cnn28",
        sigma=sigma,
        epochs=10 if sigma else 8,
        batch_size=128,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=1e-2,
        draws=2 if sigma else 1,
        consistency=5.0 if sigma else 0.0,
        precision="bf16",
    )


RECIPES: dict[str, NoiseTraining | AdversarialTraining] = {
    "fashion-cnn28-plain": recipe(0.0),
    "fashion-cnn28-noise-0.25": recipe(0.25),
    "fashion-cnn28-noise-0.50": recipe(0.5),
    "fashion-cnn28-adversarial": AdversarialTraining(arch="cnn28", eps=0.1, epochs=12, precision="bf16"),
}
ATTACKED = 1000
HALVED = ("fashion-cnn28-noise-0.50", "fashion-cnn28-adversarial")
"""Whose weights are rounded to float16, so that all checkpoints together stay small."""


def read_split(folder: Path, prefix: str) -> Split:
    """Return the images of one split as uint8 (n, 1, 28, 28), and their labels."""
    files = {path.name.removesuffix(".gz"): path for path in folder.iterdir()}
    images = read_idx(files[f"{prefix}-images-idx3-ubyte"])
    labels = read_idx(files[f"{prefix}-labels-idx1-ubyte"])
    return torch.tensor(images).unsqueeze(1), torch.tensor(labels).long()


def show(progress: TrainingProgress) -> None:
    """Write a line for each epoch."""
    report = progress.report
    if report is not None:
        print(
            f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}  accuracy under noise "
            f"{report.accuracy:.4f}  {report.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )


def fit(chosen: NoiseTraining | AdversarialTraining, training: Split) -> TrainedModel:
    """Train a network by its recipe."""
    if isinstance(chosen, AdversarialTraining):
        return adversarial.train(chosen, *training, num_classes=10, progress=show)
    return noise.train(chosen, *training, num_classes=10, progress=show)


def measures(model: TrainedModel, measured: Split, where: str) -> dict[str, float]:
    """Measure a network under noise, or under attack."""
    net = model.network().to(memory_format=torch.channels_last)
    found = {}
    attacked = isinstance(model.recipe, AdversarialTraining)
    for sigma in (0.0,) if attacked else (0.0, 0.25, 0.5):
        found[f"{where}, {f'noise sigma {sigma:g}' if sigma else 'clean'}"] = accuracy(
            net, *measured, mean=model.mean, std=model.std, sigma=sigma, draws=5 if sigma else 1
        )
    if isinstance(model.recipe, AdversarialTraining):
        eps, norm = model.recipe.eps, Norm(model.recipe.norm)
        target = Target(net, num_classes=10, input_shape=model.input_shape, mean=model.mean, std=model.std)
        images, labels = measured[0][:ATTACKED].float() / 255, measured[1][:ATTACKED]
        result = PGD(steps=40)(target, images, labels, ThreatModel(norm, eps), seed=0)
        found[f"the first {len(labels)} of them, PGD-40 within {norm} {eps:g}"] = float(
            (~result.success).double().mean()
        )
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDX files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and cards")
    parser.add_argument(
        "--only", choices=tuple(RECIPES), action="append", help="train this one; may be repeated"
    )
    parser.add_argument(
        "--hold-out", type=int, default=0, help="measure on this many training images instead"
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Train, measure and write each network."""
    options = arguments()
    torch.set_num_threads(options.threads)
    training = read_split(options.data, "train")
    if options.hold_out:
        order = torch.randperm(len(training[1]), generator=torch.Generator().manual_seed(1))
        held, rest = order[: options.hold_out], order[options.hold_out :]
        measured = training[0][held], training[1][held]
        training = training[0][rest], training[1][rest]
        where = f"{options.hold_out} training images held out"
    else:
        measured, where = read_split(options.data, "t10k"), "10 000 test images"
    results = {}
    for name in options.only or RECIPES:
        print(name, file=sys.stderr)
        started, cpu_started = time.perf_counter(), time.process_time()
        model = fit(RECIPES[name], training)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        if name in HALVED:
            # rounded to float16 before it is measured, so that the file halves
            model = replace(model, state_dict={key: value.half() for key, value in model.state_dict.items()})
        shares = measures(model, measured, where)
        save_weights(options.out / f"{name}.safetensors", model, data="Fashion-MNIST", accuracy=shares)
        results[name] = {
            "command": f"python benchmarks/bundled_train.py --data FOLDER --out FOLDER --only {name}",
            "recipe": asdict(RECIPES[name]),
            "images": len(training[1]),
            "accuracy": shares,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "threads": options.threads,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        card = options.out / f"{name}.json"
        card.write_text(json.dumps(results[name], indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
