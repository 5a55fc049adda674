"""`calipers train lipschitz`: a network whose layers stretch nothing."""

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

__all__ = ["lipschitz"]


def lipschitz(
    data: options.Data,
    output: Output,
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="lipconv28 or lipmlp28 (1x28x28), lipconv32 (3x32x32).",
            rich_help_panel=RECIPE,
        ),
    ] = "lipconv28",
    margin: Annotated[
        str,
        typer.Option(
            "--margin",
            metavar="SIZE",
            help="The l2 radius that the loss asks for, in units of [0, 1], such as 0.5 or 108/255.",
            rich_help_panel=RECIPE,
        ),
    ] = "0.5",
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            metavar="NUMBER",
            help="Factor of the logits in the loss; a smaller one asks for more than --margin.",
            rich_help_panel=RECIPE,
        ),
    ] = 8.0,
    epochs: Epochs = 12,
    batch_size: BatchSize = 256,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", metavar="NUMBER", help="Largest rate of Adam.", rich_help_panel=RECIPE
        ),
    ] = 5e-3,
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
    """Train a network whose layers stretch nothing, so that its Lipschitz constant certifies it.

    Layers with weights stay orthogonal while they train, and the loss asks for a margin (Prach and Lampert 2022). The
    file has plain weights; their constant is proved when they are certified, not trusted from here. Ctrl-C loses the
    epoch that is running; the same command goes on.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.runs.naming import read_size

        fields = {
            "arch": arch,
            "epochs": epochs,
            "margin": read_size(margin),
            "temperature": temperature,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "warmup_epochs": warmup,
            "augment": augment,
            "precision": precision,
            "seed": seed,
        }
        train_by(
            "lipschitz",
            fields,
            say,
            data=data,
            output=output,
            test=test,
            checkpoint=checkpoint,
            device=device,
            trust_code=trust_code,
            judged="accuracy",
            follow="calipers certify MODEL DATA --lipschitz",
        )
