"""`calipers lipschitz`: the Lipschitz constant of a network, layer by layer, from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.console import speaking
from calipers.cli.measured_run import pick_device
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.runs.lipschitz import LayerRow, ModelConstant

__all__ = ["lipschitz"]


def lipschitz(
    model: options.Model,
    norm: Annotated[
        str, typer.Option("--norm", metavar="l2|l1|linf", help="Norm of inputs and scores.")
    ] = "l2",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="auto|grid|exact|eclipse|lipsdp",
            help="How the constant is bounded from above.",
        ),
    ] = "auto",
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            metavar="N",
            help="Points at which slopes are measured; 0 leaves the lower bound out.",
        ),
    ] = 64,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Steps of the ascent on slopes.")] = 20,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    trust_code: options.TrustCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Bound the Lipschitz constant of a network: from above by its weights, from below by slopes that were found.

    A network with a layer for which no bound is proved is refused, with the layer's place and the reason.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        _check(samples, steps)
        from calipers.runs.lipschitz import measure_constant

        found = measure_constant(
            model,
            norm=norm,
            method=method,
            samples=samples,
            steps=steps,
            seed=seed,
            device=pick_device(device),
            trust_code=trust_code,
        )
        for word, value in found.described:
            say.note(f"  {word:<10} {value}")
        say.answer(found.to_dict(), _table(found), "", _whole(found))


def _check(samples: int, steps: int) -> None:
    if samples < 0 or steps < 0:
        raise UsageError(f"samples is {samples} and steps {steps}: give at least 0 of each")


def _table(found: ModelConstant) -> str:
    from calipers.report.tables import Table, ceiled, floored

    rows = tuple(
        (
            layer.name,
            layer.kind,
            ceiled(layer.upper, digits=4),
            "" if layer.lower is None else floored(layer.lower, digits=4),
            "" if not layer.lower else ceiled(layer.upper / layer.lower, digits=4),
            ceiled(layer.total, digits=4),
            layer.method,
        )
        for layer in _together(found.layers)
    )
    columns = ("layer", "kind", "at most", "at least", "ratio", "up to here", "method")
    return Table("", columns, rows).text()


def _together(layers: Sequence[LayerRow]) -> list[LayerRow]:
    # One row for the steps of one module that stretch nothing, such as the two halves of a sorting layer.
    found: list[LayerRow] = []
    for layer in layers:
        place = layer.name.rpartition(".")[0]
        last = found[-1] if found else None
        plain = layer.lower is None and layer.upper == 1.0
        if last is not None and plain and last.lower is None and last.upper == 1.0 and place:
            before = last.name if last.name == place else last.name.rpartition(".")[0]
            if before == place and layer.total == last.total:
                found[-1] = replace(last, name=place, kind=f"{last.kind}, {layer.kind}")
                continue
        found.append(layer)
    return found


def _whole(found: ModelConstant) -> str:
    from calipers.report.tables import ceiled, columns_of, floored

    told = [
        (
            f"{found.norm} constant",
            f"at most {ceiled(found.upper, digits=5)}, by {found.method} "
            f"(product of the layers {ceiled(found.product, digits=5)}), in {found.upper_seconds:.1f} s",
        )
    ]
    if found.lower is not None and found.ratio is not None:
        told.append(
            (
                "",
                f"at least {floored(found.lower, digits=5)}, a slope that was found: the bound is within a factor "
                f"{ceiled(found.ratio, digits=4)}",
            )
        )
    return columns_of(told)
