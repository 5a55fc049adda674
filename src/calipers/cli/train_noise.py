"""`calipers train noise`: a network under Gaussian noise, so that its smoothed version can be certified."""

from __future__ import annotations

from typing import Annotated

import typer

from calipers.cli import options
from calipers.cli.console import speaking
from calipers.cli.train_options import (
    HOW,
    RECIPE,
    Augment,
    BatchSize,
    Checkpoint,
    Epochs,
    Output,
    Precision,
    Test,
    Warmup,
    train_by,
)
from calipers.errors import UsageError

__all__ = ["noise"]

_USUAL = {"adamw": (2e-3, 1e-2), "sgd": (0.1, 1e-4)}


def noise(
    data: options.Data,
    output: Output,
    sigma: Annotated[
        str,
        typer.Option(
            "--sigma",
            metavar="SIZE",
            help="Standard deviation of the noise in units of [0, 1], such as 0.25 or 64/255; 0 trains without.",
            rich_help_panel=RECIPE,
        ),
    ],
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="cnn28 (1x28x28), or resnet20, resnet32, resnet44, resnet56 (3x32x32).",
            rich_help_panel=RECIPE,
        ),
    ] = "cnn28",
    epochs: Epochs = 12,
    batch_size: BatchSize = 128,
    optimizer: Annotated[
        str,
        typer.Option("--optimizer", metavar="adamw|sgd", help="The optimizer.", rich_help_panel=RECIPE),
    ] = "adamw",
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="NUMBER",
            help="Its largest value; 0.002 for adamw and 0.1 for sgd if left out.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    momentum: Annotated[
        float,
        typer.Option("--momentum", metavar="NUMBER", help="Momentum of sgd.", rich_help_panel=RECIPE),
    ] = 0.9,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            metavar="NUMBER",
            help="0.01 for adamw and 0.0001 for sgd if left out.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            metavar="cosine|step",
            help="How the learning rate falls.",
            rich_help_panel=RECIPE,
        ),
    ] = "cosine",
    warmup: Warmup = 0.0,
    augment: Augment = "none",
    consistency: Annotated[
        float,
        typer.Option(
            "--consistency",
            metavar="WEIGHT",
            help="Consistency regularization (Jeong and Shin 2020), such as 20; 0 is Cohen's augmentation alone.",
            rich_help_panel=RECIPE,
        ),
    ] = 0.0,
    entropy: Annotated[
        float,
        typer.Option(
            "--entropy",
            metavar="WEIGHT",
            help="Weight of the entropy beside --consistency.",
            rich_help_panel=RECIPE,
        ),
    ] = 0.5,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            metavar="K",
            help="Noisy copies of an image in a step; 1, or 2 with --consistency, if left out.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    precision: Precision = "fp32",
    seed: options.Seed = 0,
    test: Test = None,
    checkpoint: Checkpoint = None,
    device: options.Device = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network.", rich_help_panel=HOW)
    ] = False,
    trust_code: options.TrustCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a network under Gaussian noise, so that its smoothed version can be certified.

    Each image gets fresh noise at each step (Cohen et al. 2019); with --consistency, noisy copies of an image are asked
    to agree (Jeong and Shin 2020). Ctrl-C loses the epoch that is running; the same command goes on.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.runs.naming import read_size

        scale = read_size(sigma)
        rate, decay = _usual(optimizer)
        fields = {
            "arch": arch,
            "sigma": scale,
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "learning_rate": rate if learning_rate is None else learning_rate,
            "momentum": momentum,
            "weight_decay": decay if weight_decay is None else weight_decay,
            "schedule": schedule,
            "warmup_epochs": warmup,
            "augment": augment,
            "draws": (2 if consistency > 0 else 1) if draws is None else draws,
            "consistency": consistency,
            "entropy": entropy,
            "precision": precision,
            "seed": seed,
        }
        asked = sigma if scale > 0 else "0.25"
        train_by(
            "noise",
            fields,
            say,
            data=data,
            output=output,
            test=test,
            checkpoint=checkpoint,
            device=device,
            compile_mode="default" if compile_ else None,
            trust_code=trust_code,
            judged="accuracy under noise",
            follow=f"calipers certify MODEL DATA --sigma {asked}",
        )


def _usual(optimizer: str) -> tuple[float, float]:
    # Learning rate and weight decay where the user gave none.
    if optimizer not in _USUAL:
        raise UsageError(f"optimizer is {optimizer!r}: use {' or '.join(_USUAL)}")
    return _USUAL[optimizer]
