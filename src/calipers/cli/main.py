"""The command ``calipers``: its verbs, and what holds for all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from calipers import __version__
from calipers.cli import (
    attack,
    bracket,
    certify,
    datasets,
    demo,
    diagnose,
    export,
    import_log,
    lipschitz,
    models,
    predict,
    recertify,
    reproduce,
    runs,
    show,
    train,
    verify,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="calipers",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 a check you asked for does not hold; 2 wrong use or bad input; 130 Ctrl-C.",
)

for name, verb in (
    ("demo", demo.demo),
    ("certify", certify.certify),
    ("predict", predict.predict),
    ("lipschitz", lipschitz.lipschitz),
    ("attack", attack.attack),
    ("diagnose", diagnose.diagnose),
    ("bracket", bracket.bracket),
    ("verify", verify.verify),
    ("reproduce", reproduce.reproduce),
    ("recertify", recertify.recertify),
    ("show", show.show),
    ("runs", runs.runs),
    ("export", export.export),
    ("import", import_log.import_log),
    ("models", models.models),
    ("datasets", datasets.datasets),
):
    app.command(name)(verb)
app.add_typer(train.app, name="train")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"calipers {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Measure how robust a classifier really is: certificates from below, attacks from above."""


def main() -> None:
    """Run the command line with the arguments of this process."""
    app()
