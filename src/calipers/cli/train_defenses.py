"""`calipers train iclr2018`: the trained parts of the nine defenses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from calipers.cli import options
from calipers.cli.console import Say, speaking
from calipers.cli.measured_run import this_command
from calipers.cli.progress import spoken_seconds

__all__ = ["iclr2018"]

_SMALL = (
    "seconds for patches to quilt with; on one core about 4 minutes for LID's detector around a ResNet-20, and half an "
    "hour for PixelDefend's density of 50 000 images of 32 x 32"
)


def iclr2018(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Defenses, such as lid or pixel-defend (a wrong name lists all); all that have something to train if "
            "left out.",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Required: Fashion-MNIST's training images, such as 'idx:FOLDER?split=train'; CIFAR-10's, such as "
            "folder:FOLDER, for thermometer, adversarial-training and cascade; with --network, training images of its "
            "task. Never those that are attacked.",
            rich_help_panel="What is measured",
        ),
    ] = "",
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            metavar="MODEL",
            help="Make what defenses need around this pretrained network instead, a model reference: LID's detector "
            "and reference, patches for quilting, PixelDefend's density.",
            rich_help_panel="What is measured",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where the parts go, for --weights of `calipers reproduce`; those that are there are not made again.",
            rich_help_panel="How it is run",
        ),
    ] = Path("iclr2018"),
    share: Annotated[
        float,
        typer.Option(
            "--share",
            metavar="PART",
            help="To try things out: take that part of the images and epochs, above 0 and at most 1.",
            rich_help_panel="How it is run",
        ),
    ] = 1.0,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train the parts of the nine defenses of ICLR 2018: networks, detectors, a PixelCNN, a generator.

    What ships was made by it. Says beforehand how long it takes; the same command goes on where it was stopped.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.runs.catalog import GREY_SHAPE, images_of_parts
        from calipers.runs.defense_training import expected_minutes, train_around, train_defenses

        begun = time.monotonic()
        if network is not None:
            say.note(f"{_SMALL}; longer for larger ones")
            made = train_around(
                names or (), network=network, data=data, folder=output, share=share, tell=say.note
            )
            named = "".join(f"{name} " for name in names or ())
            _answer(say, made, begun, f"{named}--network '{network}' --data DATA --weights {output}")
            return
        expected = expected_minutes(names or (), data=data)
        told = ", ".join(f"{name} {minutes:g} min" for name, minutes in expected.items())
        total = spoken_seconds(60 * share * sum(expected.values()))
        say.note(f"on two cores about {total} ({told})")
        say.on_interrupt = [f"stopped: finished parts are in {output}; to go on:  {this_command()}"]
        written = train_defenses(tuple(expected), data=data, folder=output, share=share, tell=say.note)
        named = "".join(f"{name} " for name in names or ())
        attacked = "" if images_of_parts(output) == GREY_SHAPE else " --data DATA --sample 50"
        _answer(say, written, begun, f"{named}--weights {output}{attacked}")


def _answer(say: Say, written: tuple[Path, ...], begun: float, options_: str) -> None:
    seconds = time.monotonic() - begun
    say.answer(
        {"files": [str(path) for path in written], "seconds": seconds},
        *(str(path) for path in written),
        f"trained in {spoken_seconds(seconds)}; to measure them:  calipers reproduce iclr2018 {options_}",
    )
