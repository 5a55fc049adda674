"""What the recipes of `calipers train` share: their options, and how a training is told of while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli.console import Say
from calipers.cli.measured_run import this_command
from calipers.cli.progress import progress

if TYPE_CHECKING:
    from calipers.runs.training import Trained, TrainingStep

    OnStep = Callable[[TrainingStep], None]
    OnNote = Callable[[str], None]

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
    "run_recipe",
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


def run_recipe(
    say: Say, begin: Callable[[OnStep, OnNote], Trained], *, arch: str, judged: str, follow: str
) -> None:
    """Train with progress, then say what was measured and how to go on.

    Args:
        say: what speaks to the user.
        begin: trains; it is given what to tell of each step, and of what is worth a line.
        arch: the name of the architecture, for the progress.
        judged: what the accuracy after an epoch is the accuracy of.
        follow: the command to go on with, with MODEL for the reference of the weights.
    """
    say.on_interrupt = [
        f"stopped within an epoch, which is lost; to go on after the one before:  {this_command()}"
    ]
    with progress(say, f"train {arch}") as advance:

        def tell(at: TrainingStep) -> None:
            advance(at.step / at.steps, f"epoch {min(at.epoch + 1, at.epochs)}/{at.epochs}")
            if at.loss is not None:
                say.note(f"  epoch {at.epoch}/{at.epochs}: loss {at.loss:.4f}, {judged} {at.accuracy:.4f}")
                say.on_interrupt = [
                    f"stopped: {at.epoch} of {at.epochs} epochs are in the checkpoint; to go on:  {this_command()}"
                ]

        trained = begin(tell, lambda text: say.note(f"  {text}"))
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
