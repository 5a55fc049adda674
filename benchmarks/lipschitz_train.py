"""Train the networks that ship for certificates by a Lipschitz constant, prove the constant, and certify.

    python benchmarks/lipschitz_train.py --data FOLDER --out FOLDER --only fashion-lipschitz

FOLDER holds the four IDX files of Fashion-MNIST; for `cifar10-lipschitz`, `--data` is an image folder or tar
archive `train/CLASS/*.jpg`, `test/CLASS/*.jpg`. The networks that ship are trained on all training images and
measured once on the 10 000 test images; every choice of a recipe was made on the 5 000 training images that
`--hold-out 5000` measures on instead, training on the others. The weights are rounded to float16 for the
file; what is measured and proved is the network with the rounded weights. A training that was stopped goes on
from its checkpoint in the folder of `--out`. Progress goes to standard error, one JSON object to standard
output.
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
from bundled_train import read_split
from cifar10_train import load, subset

from calipers.certificates.lipschitz.margin import certify_margins
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.training.lipschitz import LipschitzTraining, train
from calipers.training.loop import TrainedModel, TrainingProgress
from calipers.training.weights import save_weights

Split = tuple[torch.Tensor, torch.Tensor]

RADII = {"0.25": 0.25, "36/255": 36 / 255, "72/255": 72 / 255, "108/255": 108 / 255}

RECIPES = {
    "fashion-lipschitz": LipschitzTraining(arch="lipconv28", epochs=12, precision="bf16"),
    "fashion-lipschitz-mlp": LipschitzTraining(arch="lipmlp28", epochs=12, precision="bf16"),
    "cifar10-lipschitz": LipschitzTraining(arch="lipconv32", epochs=12, margin=0.25, precision="bf16"),
}
DATA = {"fashion": "Fashion-MNIST", "cifar10": "CIFAR-10 (JPEG)"}


def show(progress: TrainingProgress) -> None:
    """Write a line for each epoch."""
    report = progress.report
    if report is not None:
        print(
            f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}  accuracy {report.accuracy:.4f}  "
            f"{report.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )


def read(options: argparse.Namespace, name: str) -> tuple[Split, Split, str]:
    """Return what a network is trained on, what it is measured on, and what to call that."""
    if name.startswith("fashion"):
        training, measured = read_split(options.data, "train"), read_split(options.data, "t10k")
    else:
        splits = load(options.data, workers=1)
        training, measured = splits["train"], splits["test"]
    if options.hold_out:
        measured, training = subset(training, options.hold_out, seed=1)
        return training, measured, f"{options.hold_out} training images held out"
    return training, measured, "10 000 test images"


def round_weights(model: TrainedModel) -> TrainedModel:
    """Round the weights of a training to float16."""
    return replace(model, state_dict={name: value.half() for name, value in model.state_dict.items()})


def measure(model: TrainedModel, split: Split) -> tuple[float, dict[str, float], float]:
    """Return clean accuracy, the shares certified at each radius, and the proved constant."""
    net = model.network().double()
    bound = lipschitz_upper_bound(net, model.input_shape)
    mean = torch.tensor(model.mean, dtype=torch.float64).view(1, -1, 1, 1)
    right, certified, count = 0, dict.fromkeys(RADII, 0), len(split[1])
    for images, labels in zip(split[0].split(500), split[1].split(500), strict=True):
        with torch.inference_mode():
            scores = net(images.double() / 255 - mean)
        margins = certify_margins(scores.numpy(), bound.differences)
        right += int((scores.argmax(1) == labels).sum())
        for name, radius in RADII.items():
            certified[name] += int(
                ((margins.prediction == labels.numpy()) & (margins.radius >= radius)).sum()
            )
    return right / count, {name: value / count for name, value in certified.items()}, bound.upper


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDX files, or CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and cards")
    parser.add_argument("--only", choices=tuple(RECIPES), required=True, help="the network")
    parser.add_argument("--epochs", type=int, default=0, help="other than the recipe's, to try one")
    parser.add_argument(
        "--hold-out", type=int, default=0, help="measure on this many training images instead"
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, prove, measure and write one network."""
    options = arguments()
    torch.set_num_threads(options.threads)
    name = options.only
    recipe = replace(RECIPES[name], epochs=options.epochs) if options.epochs else RECIPES[name]
    training, measured, where = read(options, name)
    started, cpu_started = time.perf_counter(), time.process_time()
    checkpoint = options.out / f"{name}.checkpoint"
    model = train(recipe, *training, num_classes=10, checkpoint=checkpoint, progress=show)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    model = round_weights(model)
    clean, certified, constant = measure(model, measured)
    told = {f"{where}, clean": clean, f"{where}, certified at l2 0.25": certified["0.25"]}
    data = DATA[name.partition("-")[0]]
    save_weights(options.out / f"{name}.safetensors", model, data=data, accuracy=told)
    checkpoint.unlink()
    card = {
        "command": f"python benchmarks/lipschitz_train.py --data FOLDER --out FOLDER --only {name}",
        "recipe": asdict(recipe),
        "images": len(training[1]),
        "accuracy": told,
        "certified": certified,
        "lipschitz_upper_bound": constant,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "threads": options.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(card, indent=2)
    (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
