"""`calipers train`: the recipes, one file each."""

from __future__ import annotations

import typer

from calipers.cli.train_adversarial import adversarial
from calipers.cli.train_defenses import iclr2018
from calipers.cli.train_lipschitz import lipschitz
from calipers.cli.train_noise import noise

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Train a network by a recipe.")

for name, recipe in (
    ("noise", noise),
    ("lipschitz", lipschitz),
    ("adversarial", adversarial),
    ("iclr2018", iclr2018),
):
    app.command(name)(recipe)


@app.callback()
def recipes() -> None:
    """Train a network by a recipe."""
