"""`calipers train`: networks of a user's own, by recipes that certificates need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.console import Say, speaking
from calipers.cli.measured_run import pick_device, this_command
from calipers.cli.progress import progress
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.runs.training import Trained, TrainingStep

    _OnStep = Callable[[TrainingStep], None]
    _OnNote = Callable[[str], None]

__all__ = ["app", "lipschitz", "noise"]

app = typer.Typer(no_args_is_help=True, help="Train a network by a recipe.")

_RECIPE = "The recipe"
_HOW = "How it is run"
_USUAL = {"adamw": (2e-3, 1e-2), "sgd": (0.1, 1e-4)}


_Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="File of the weights, .safetensors; never overwritten."
    ),
]
_Epochs = Annotated[
    int, typer.Option("--epochs", metavar="K", help="Passes over the data.", rich_help_panel=_RECIPE)
]
_BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="ROWS", help="Images a step.", rich_help_panel=_RECIPE)
]
_Warmup = Annotated[
    float,
    typer.Option(
        "--warmup", metavar="EPOCHS", help="Epochs in which the rate rises.", rich_help_panel=_RECIPE
    ),
]
_Augment = Annotated[
    str,
    typer.Option(
        "--augment", metavar="none|flip-crop", help="What is done to each image.", rich_help_panel=_RECIPE
    ),
]
_Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="fp32|bf16",
        help="Number format of the products; the weights stay fp32.",
        rich_help_panel=_RECIPE,
    ),
]
_Test = Annotated[
    str | None,
    typer.Option(
        "--test",
        metavar="DATA",
        help="Measure the accuracy on these at the end, without noise and with that of the recipe.",
        rich_help_panel=_HOW,
    ),
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="State after each epoch, from which the same command goes on; beside the weights if left out.",
        rich_help_panel=_HOW,
    ),
]


@app.callback()
def recipes() -> None:
    """Train a network by a recipe."""


@app.command("noise")
def noise(
    data: options.Data,
    output: _Output,
    sigma: Annotated[
        str,
        typer.Option(
            "--sigma",
            metavar="SIZE",
            help="Standard deviation of the noise in units of [0, 1], such as 0.25 or 64/255; 0 trains without.",
            rich_help_panel=_RECIPE,
        ),
    ],
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="cnn28 (1x28x28), or resnet20, resnet32, resnet44, resnet56 (3x32x32).",
            rich_help_panel=_RECIPE,
        ),
    ] = "cnn28",
    epochs: _Epochs = 12,
    batch_size: _BatchSize = 128,
    optimizer: Annotated[
        str,
        typer.Option("--optimizer", metavar="adamw|sgd", help="The optimizer.", rich_help_panel=_RECIPE),
    ] = "adamw",
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="NUMBER",
            help="Its largest value; 0.002 for adamw and 0.1 for sgd if left out.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    momentum: Annotated[
        float,
        typer.Option("--momentum", metavar="NUMBER", help="Momentum of sgd.", rich_help_panel=_RECIPE),
    ] = 0.9,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            metavar="NUMBER",
            help="0.01 for adamw and 0.0001 for sgd if left out.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            metavar="cosine|step",
            help="How the learning rate falls.",
            rich_help_panel=_RECIPE,
        ),
    ] = "cosine",
    warmup: _Warmup = 0.0,
    augment: _Augment = "none",
    consistency: Annotated[
        float,
        typer.Option(
            "--consistency",
            metavar="WEIGHT",
            help="Consistency regularization (Jeong and Shin 2020), such as 20; 0 is Cohen's augmentation alone.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.0,
    entropy: Annotated[
        float,
        typer.Option(
            "--entropy",
            metavar="WEIGHT",
            help="Weight of the entropy beside --consistency.",
            rich_help_panel=_RECIPE,
        ),
    ] = 0.5,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            metavar="K",
            help="Noisy copies of an image in a step; 1, or 2 with --consistency, if left out.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    precision: _Precision = "fp32",
    seed: options.Seed = 0,
    test: _Test = None,
    checkpoint: _Checkpoint = None,
    device: options.Device = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network.", rich_help_panel=_HOW)
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
        from calipers.runs.training import train_noise

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

        def begin(on_step: _OnStep, on_note: _OnNote) -> Trained:
            return train_noise(
                fields,
                data=data,
                output=output,
                test=test,
                checkpoint=checkpoint,
                device=pick_device(device),
                compile_mode="default" if compile_ else None,
                trust_code=trust_code,
                on_step=on_step,
                on_note=on_note,
            )

        asked = sigma if scale > 0 else "0.25"
        _run(
            say,
            begin,
            arch=arch,
            judged="accuracy under noise",
            follow=f"calipers certify MODEL DATA --sigma {asked}",
        )


@app.command("lipschitz")
def lipschitz(
    data: options.Data,
    output: _Output,
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="lipconv28 or lipmlp28 (1x28x28), lipconv32 (3x32x32).",
            rich_help_panel=_RECIPE,
        ),
    ] = "lipconv28",
    margin: Annotated[
        str,
        typer.Option(
            "--margin",
            metavar="SIZE",
            help="The l2 radius that the loss asks for, in units of [0, 1], such as 0.5 or 108/255.",
            rich_help_panel=_RECIPE,
        ),
    ] = "0.5",
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            metavar="NUMBER",
            help="Factor of the logits in the loss; a smaller one asks for more than --margin.",
            rich_help_panel=_RECIPE,
        ),
    ] = 8.0,
    epochs: _Epochs = 12,
    batch_size: _BatchSize = 256,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", metavar="NUMBER", help="Largest rate of Adam.", rich_help_panel=_RECIPE
        ),
    ] = 5e-3,
    warmup: _Warmup = 0.5,
    augment: _Augment = "none",
    precision: _Precision = "fp32",
    seed: options.Seed = 0,
    test: _Test = None,
    checkpoint: _Checkpoint = None,
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
        from calipers.runs.training import train_lipschitz

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

        def begin(on_step: _OnStep, on_note: _OnNote) -> Trained:
            return train_lipschitz(
                fields,
                data=data,
                output=output,
                test=test,
                checkpoint=checkpoint,
                device=pick_device(device),
                trust_code=trust_code,
                on_step=on_step,
                on_note=on_note,
            )

        _run(say, begin, arch=arch, judged="accuracy", follow="calipers certify MODEL DATA --lipschitz")


@app.command("adversarial")
def adversarial(
    data: options.Data,
    output: _Output,
    eps: Annotated[
        str,
        typer.Option(
            "--eps",
            metavar="SIZE",
            help="Size of the attacks that are trained on, in units of [0, 1], such as 0.1 or 8/255.",
            rich_help_panel=_RECIPE,
        ),
    ],
    norm: Annotated[
        str, typer.Option("--norm", metavar="linf|l2", help="Their norm.", rich_help_panel=_RECIPE)
    ] = "linf",
    steps: Annotated[
        int,
        typer.Option("--steps", metavar="K", help="Steps of each attack.", rich_help_panel=_RECIPE),
    ] = 7,
    step_size: Annotated[
        float | None,
        typer.Option(
            "--step-size",
            metavar="SHARE",
            help="Size of a step as a share of --eps; 2.5 / steps if left out.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="cnn28 (1x28x28), or resnet20, resnet32, resnet44, resnet56 (3x32x32).",
            rich_help_panel=_RECIPE,
        ),
    ] = "cnn28",
    epochs: _Epochs = 12,
    batch_size: _BatchSize = 128,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", metavar="NUMBER", help="Largest rate of Adam.", rich_help_panel=_RECIPE
        ),
    ] = 2e-3,
    weight_decay: Annotated[
        float,
        typer.Option("--weight-decay", metavar="NUMBER", help="Of every parameter.", rich_help_panel=_RECIPE),
    ] = 1e-2,
    warmup: _Warmup = 0.5,
    augment: _Augment = "none",
    precision: _Precision = "fp32",
    seed: options.Seed = 0,
    test: _Test = None,
    checkpoint: _Checkpoint = None,
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
        from calipers.runs.training import train_adversarial

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

        def begin(on_step: _OnStep, on_note: _OnNote) -> Trained:
            return train_adversarial(
                fields,
                data=data,
                output=output,
                test=test,
                checkpoint=checkpoint,
                device=pick_device(device),
                trust_code=trust_code,
                on_step=on_step,
                on_note=on_note,
            )

        follow = f"calipers attack MODEL DATA --norm {norm} --eps {eps}"
        _run(say, begin, arch=arch, judged="accuracy under attack", follow=follow)


def _run(
    say: Say, begin: Callable[[_OnStep, _OnNote], Trained], *, arch: str, judged: str, follow: str
) -> None:
    # Train with progress, then say what was measured and how to go on.
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


def _usual(optimizer: str) -> tuple[float, float]:
    # Learning rate and weight decay where the user gave none.
    if optimizer not in _USUAL:
        raise UsageError(f"optimizer is {optimizer!r}: use {' or '.join(_USUAL)}")
    return _USUAL[optimizer]
