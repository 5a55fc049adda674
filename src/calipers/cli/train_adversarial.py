"""`calipers train adversarial`: a network on what attacks find within a ball."""

from __future__ import annotations

from typing import Annotated

import typer

from calipers.cli import options
from calipers.cli.console import speaking
from calipers.cli.train_options import (
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

__all__ = ["adversarial"]


def adversarial(
    data: options.Data,
    output: Output,
    eps: Annotated[
        str,
        typer.Option(
            "--eps",
            metavar="SIZE",
            help="Size of the attacks that are trained on, in units of [0, 1], such as 0.1 or 8/255.",
            rich_help_panel=RECIPE,
        ),
    ],
    norm: Annotated[
        str, typer.Option("--norm", metavar="linf|l2", help="Their norm.", rich_help_panel=RECIPE)
    ] = "linf",
    steps: Annotated[
        int,
        typer.Option("--steps", metavar="K", help="Steps of each attack.", rich_help_panel=RECIPE),
    ] = 7,
    step_size: Annotated[
        float | None,
        typer.Option(
            "--step-size",
            metavar="SHARE",
            help="Size of a step as a share of --eps; 2.5 / steps if left out.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
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
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", metavar="NUMBER", help="Largest rate of Adam.", rich_help_panel=RECIPE
        ),
    ] = 2e-3,
    weight_decay: Annotated[
        float,
        typer.Option("--weight-decay", metavar="NUMBER", help="Of every parameter.", rich_help_panel=RECIPE),
    ] = 1e-2,
    warmup: Warmup = 0.5,
    augment: Augment = "none",
    precision: Precision = "fp32",
    seed: options.Seed = 0,
    test: Test = None,
    checkpoint: Checkpoint = None,
    device: options.Device = "auto",
    trust_code: options.TrustCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a network on what attacks find within a ball, so that attacks find less.

    Each batch is moved by steps of projected gradient ascent to where the network errs most, and learned there (Madry
    et al. 2018). What the network withstands is to be measured by attacks that the training has not seen. Ctrl-C loses
    the epoch that is running; the same command goes on.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.runs.naming import read_size

        fields = {
            "arch": arch,
            "eps": read_size(eps),
            "epochs": epochs,
            "norm": norm,
            "steps": steps,
            "step_size": step_size,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "warmup_epochs": warmup,
            "augment": augment,
            "precision": precision,
            "seed": seed,
        }
        train_by(
            "adversarial",
            fields,
            say,
            data=data,
            output=output,
            test=test,
            checkpoint=checkpoint,
            device=device,
            trust_code=trust_code,
            judged="accuracy under attack",
            follow=f"calipers attack MODEL DATA --norm {norm} --eps {eps}",
        )
