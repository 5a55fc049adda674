"""Train a residual network on CIFAR-10 (JPEG) under Gaussian noise within a given time, and say how it does.

    python benchmarks/cifar10_train.py --data cifar10-jpeg.tar.xz --out out --minutes 7

The data are an image folder `train/CLASS/*.jpg`, `test/CLASS/*.jpg`, or a tar archive of one, which is read
without being unpacked. The test images are looked at once, at the end; choices are made with `--hold-out
5000`, which measures on that many training images instead and leaves the test images alone. Progress goes to
standard error, one JSON object to standard output. Beside calipers this needs torch, numpy, safetensors and
Pillow only.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import platform
import shlex
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from calipers.training.accuracy import accuracy
from calipers.training.loop import TrainedModel, TrainingProgress
from calipers.training.noise import NoiseTraining, train
from calipers.training.weights import save_weights

Split = tuple[torch.Tensor, torch.Tensor]
RESERVE_SECONDS = 25.0  # for the second compilation and the final measurements


def say(text: str) -> None:
    """Write one line of progress."""
    print(text, file=sys.stderr, flush=True)


def read_files(data: Path) -> list[tuple[str, bytes]]:
    """Return (path within the data set, content) of every JPEG, sorted by path."""
    if data.is_dir():
        files = [(path.relative_to(data).as_posix(), path.read_bytes()) for path in data.rglob("*.jpg")]
    else:
        files = []
        with tarfile.open(data) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None and member.name.endswith(".jpg"):
                    files.append((member.name.removeprefix("./"), content.read()))
    return sorted(files)


def decode(content: bytes) -> np.ndarray:
    """Return one image as (height, width, 3) bytes."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def load(data: Path, *, workers: int) -> dict[str, Split]:
    """Return the splits: uint8 images (n, 3, 32, 32), labels in the alphabetical order of the class names."""
    files = read_files(data)
    contents = [content for _, content in files]
    if workers > 1:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            images = pool.map(decode, contents, chunksize=500)
    else:
        images = [decode(content) for content in contents]
    splits: dict[str, Split] = {}
    classes = sorted({PurePosixPath(name).parts[1] for name, _ in files})
    for split in ("train", "test"):
        rows = [row for row, (name, _) in enumerate(files) if PurePosixPath(name).parts[0] == split]
        pixels = np.stack([images[row] for row in rows]).transpose(0, 3, 1, 2)
        labels = [classes.index(PurePosixPath(files[row][0]).parts[1]) for row in rows]
        splits[split] = (torch.from_numpy(np.ascontiguousarray(pixels)), torch.tensor(labels))
    return splits


def subset(split: Split, count: int, *, seed: int) -> tuple[Split, Split]:
    """Return a seeded random part of `count` images, and the rest."""
    order = torch.randperm(len(split[1]), generator=torch.Generator().manual_seed(seed))
    part, rest = order[:count], order[count:]
    return (split[0][part], split[1][part]), (split[0][rest], split[1][rest])


def show(progress: TrainingProgress) -> None:
    """Write a line for each epoch."""
    report = progress.report
    if report is not None:
        say(
            f"epoch {report.epoch:3d}/{report.epochs}  loss {report.loss:.4f}  accuracy under noise "
            f"{report.accuracy:.4f}  rate {report.learning_rate:.4f}  {report.seconds:.2f} s"
        )


def fit_to_time(
    recipe: NoiseTraining, images: Split, options: argparse.Namespace, *, deadline: float
) -> tuple[NoiseTraining, str | None]:
    """See what an epoch costs; return the recipe with the epochs that fit, and the compile mode that ran."""
    mode: str | None = None if options.compile == "none" else options.compile
    trial = replace(recipe, epochs=3, warmup_epochs=0.0)
    while True:
        try:
            history = train(
                trial, *images, num_classes=10, device=options.device, compile_mode=mode, progress=show
            ).history
            break
        except Exception as error:
            if mode is None:
                raise
            say(
                f"compilation failed ({type(error).__name__}: {str(error).splitlines()[0]}): going on eagerly"
            )
            mode = None
    cost = min(report.seconds for report in history)
    epochs = int((deadline - RESERVE_SECONDS - time.perf_counter()) / cost)
    epochs = max(1, min(recipe.epochs, epochs))
    warmup = min(recipe.warmup_epochs, epochs / 4)
    say(f"an epoch takes {cost:.2f} s: {epochs} epochs, compile mode {mode}")
    return replace(recipe, epochs=epochs, warmup_epochs=warmup), mode


def measure(
    model: TrainedModel, split: Split, name: str, device: str, *, sigma: float, draws: int
) -> dict[str, float]:
    """Return clean and noisy accuracy on a split, in float32."""
    net = model.network().to(device).to(memory_format=torch.channels_last)
    common = {"mean": model.mean, "std": model.std, "device": device}
    return {
        f"{name}, clean": accuracy(net, *split, sigma=0.0, **common),
        f"{name}, one draw of noise sigma {sigma:g}": accuracy(
            net, *split, sigma=sigma, draws=draws, **common
        ),
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="image folder, or a tar archive of one")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the weights, the JSON and the checkpoint"
    )
    parser.add_argument(
        "--name", default="", help="name of the files (default: made of arch, sigma, consistency)"
    )
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=150, help="at most this many")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="as many epochs as fit this time, all included"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--schedule", choices=("cosine", "step"), default="cosine")
    parser.add_argument("--warmup-epochs", type=float, default=2.0)
    parser.add_argument("--augment", choices=("flip-crop", "none"), default="flip-crop")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--consistency", type=float, default=0.0)
    parser.add_argument("--entropy", type=float, default=0.5)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", choices=("default", "reduce-overhead", "none"), default="default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=8, help="processes that decode the images")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch on the CPU")
    parser.add_argument(
        "--hold-out", type=int, default=0, help="measure on this many training images instead"
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="train on a random part of this size, to try the script"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Read, train, measure, write."""
    started = time.perf_counter()
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    splits = load(options.data, workers=options.workers)
    training, measured, where = splits["train"], splits["test"], "CIFAR-10 (JPEG) test"
    if options.hold_out:
        measured, training = subset(training, options.hold_out, seed=1)
        where = f"CIFAR-10 (JPEG), {options.hold_out} training images held out"
    if options.limit:
        training, _ = subset(training, options.limit, seed=2)
        measured, _ = subset(measured, options.limit, seed=2)
    say(f"{len(training[1])} + {len(measured[1])} images read in {time.perf_counter() - started:.1f} s")
    recipe = NoiseTraining(
        arch=options.arch,
        sigma=options.sigma,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        warmup_epochs=options.warmup_epochs,
        augment=options.augment,
        draws=options.draws,
        consistency=options.consistency,
        entropy=options.entropy,
        precision=options.precision,
        seed=options.seed,
    )
    name = options.name or f"cifar10-{recipe.arch}-noise-{recipe.sigma:.2f}" + (
        f"-consistency-{recipe.consistency:g}" if recipe.consistency else ""
    )
    mode = None if options.compile == "none" else options.compile
    deadline = started + 60 * options.minutes if options.minutes else float("inf")
    if options.minutes:
        recipe, mode = fit_to_time(recipe, training, options, deadline=deadline)
    training_started = time.perf_counter()
    model = train(
        recipe,
        *training,
        num_classes=10,
        device=options.device,
        compile_mode=mode,
        checkpoint=None if options.minutes else options.out / f"{name}.checkpoint",
        progress=show,
        stop=lambda: time.perf_counter() > deadline - RESERVE_SECONDS / 3,
    )
    training_seconds = time.perf_counter() - training_started
    measures = measure(model, measured, where, options.device, sigma=recipe.sigma, draws=10)
    weights = options.out / f"{name}.safetensors"
    save_weights(weights, model, data="CIFAR-10 (JPEG) train", accuracy=measures)
    gpu = torch.device(options.device).type == "cuda"
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "weights": weights.name,
        "recipe": asdict(recipe),
        "epochs_run": len(model.history),
        "images": len(training[1]),
        "accuracy": measures,
        "final_epoch": asdict(model.history[-1]),
        "training_seconds": round(training_seconds, 1),
        "seconds_in_all": round(time.perf_counter() - started, 1),
        "compile_mode": mode,
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    text = json.dumps(result, indent=2)
    (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
