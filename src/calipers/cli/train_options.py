"""What the recipes of `calipers train` share: their options, and how one is run and told of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli.console import Say
from calipers.cli.measured_run import pick_device, this_command
from calipers.cli.progress import progress

if TYPE_CHECKING:
    from calipers.runs.training import Kind, TrainingStep

__all__ = [
    "HOW",
    "RECIPE",
    "Augment",
    "BatchSize",
    "Checkpoint",
    "Epochs",
    "Output",
    "Precision",
    "Test",
    "Warmup",
    "train_by",
]

RECIPE = "The recipe"
HOW = "How it is run"
"""The panels of the help in which options stand."""

Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="File of the weights, .safetensors; never overwritten."
    ),
]
Epochs = Annotated[
    int, typer.Option("--epochs", metavar="K", help="Passes over the data.", rich_help_panel=RECIPE)
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="ROWS", help="Images a step.", rich_help_panel=RECIPE)
]
Warmup = Annotated[
    float,
    typer.Option(
        "--warmup", metavar="EPOCHS", help="Epochs in which the rate rises.", rich_help_panel=RECIPE
    ),
]
Augment = Annotated[
    str,
    typer.Option(
        "--augment", metavar="none|flip-crop", help="What is done to each image.", rich_help_panel=RECIPE
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="fp32|bf16",
        help="Number format of the products; the weights stay fp32.",
        rich_help_panel=RECIPE,
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        "--test",
        metavar="DATA",
        help="Measure the accuracy on these at the end, without noise and with that of the recipe.",
        rich_help_panel=HOW,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="State after each epoch, from which the same command goes on; beside the weights if left out.",
        rich_help_panel=HOW,
    ),
]


def train_by(
    kind: Kind,
    fields: Mapping[str, object],
    say: Say,
    *,
    data: str,
    output: Path,
    test: str | None,
    checkpoint: Path | None,
    device: str,
    compile_mode: str | None = None,
    trust_code: bool,
    judged: str,
    follow: str,
) -> None:
    """Train by a recipe with progress, then say what was measured and how to go on.

    Args:
        kind: the recipe.
        fields: its fields, by name.
        say: what speaks to the user.
        data: the reference of the training data.
        output: the file of the weights.
        test: the reference of data on which the accuracy is measured at the end.
        checkpoint: the file of the state.
        device: the device that the user asked for.
        compile_mode: the mode of torch.compile; None runs eagerly.
        trust_code: whether code of the user's may be run.
        judged: what the accuracy after an epoch is the accuracy of.
        follow: the command to go on with, with MODEL for the reference of the weights.
    """
    from calipers.runs.training import train

    say.on_interrupt = [
        f"stopped within an epoch, which is lost; to go on after the one before:  {this_command()}"
    ]
    with progress(say, f"train {fields['arch']}") as advance:

        def tell(at: TrainingStep) -> None:
            advance(at.step / at.steps, f"epoch {min(at.epoch + 1, at.epochs)}/{at.epochs}")
            if at.loss is not None:
                say.note(f"  epoch {at.epoch}/{at.epochs}: loss {at.loss:.4f}, {judged} {at.accuracy:.4f}")
                say.on_interrupt = [
                    f"stopped: {at.epoch} of {at.epochs} epochs are in the checkpoint; to go on:  {this_command()}"
                ]

        trained = train(
            kind,
            fields,
            data=data,
            output=output,
            test=test,
            checkpoint=checkpoint,
            device=pick_device(device),
            compile_mode=compile_mode,
            trust_code=trust_code,
            on_step=tell,
            on_note=lambda text: say.note(f"  {text}"),
        )
    reference = f"file:{trained.path}"
    measured = [f"  accuracy {value:.4f} on {what}" for what, value in trained.accuracy.items()]
    say.answer(
        {
            "weights": str(trained.path),
            "model": reference,
            "arch": trained.arch,
            "recipe": trained.recipe,
            "images": trained.images,
            "accuracy": trained.accuracy,
        },
        f"the weights are in {trained.path}",
        *measured,
        f"next:  {follow.replace('MODEL', reference)}",
    )
