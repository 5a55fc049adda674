"""`calipers show`: what runs say, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.answers import describe_run, text_of_run
from calipers.cli.console import speaking
from calipers.cli.joined import answer_joined, attacks_alone
from calipers.cli.side_by_side import answer_attacks, answer_certificates
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.evidence.records import Certificate, Prediction
    from calipers.runs.store import RunStore

__all__ = ["read_grid", "show"]


def show(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Files of runs; several of certificates or of attacks are set side by side, and attacks are joined "
            "with certificates.",
        ),
    ],
    inputs: Annotated[bool, typer.Option("--inputs", help="One row an input, radii rounded down.")] = False,
    radii: Annotated[
        str | None,
        typer.Option(
            "--radii", metavar="RADII", help="Radii of the table, such as 0,0.25,0.5; chosen if left out."
        ),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what runs say: accuracy certified or under attack, with intervals, and what was asked; also unfinished."""
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.runs.store import RunStore

        grid = None if radii is None else read_grid(radii)
        if len(runs) > 1 and inputs:
            raise UsageError(f"--inputs shows one run and {len(runs)} are named: name one")
        if len(runs) > 1:
            attacks = [path for path in runs if attacks_alone(path)]
            if attacks and grid is not None:
                raise UsageError(f"--radii is of certificates, and {attacks[0]} has none: leave it out")
            if len(attacks) == len(runs):
                answer_attacks(say, runs)
            elif attacks:
                answer_joined(say, runs)
            else:
                answer_certificates(say, runs, grid)
            return
        with RunStore.read(runs[0]) as store:
            payload = describe_run(store, radii=grid, inputs=inputs)
            parts = [text_of_run(store, radii=grid)]
            if inputs:
                parts += ["", _rows(store)]
            elif not say.as_json:
                parts += ["", _circumstances(store)]
        say.answer(payload, *parts)


def read_grid(text: str) -> tuple[float, ...]:
    """Read the radii of a table.

    Args:
        text: sizes with commas between.

    Returns:
        The radii.

    Raises:
        UsageError: if there are none.
    """
    from calipers.runs.naming import read_radii

    found = read_radii(text)
    if not found:
        raise UsageError(f"radii is {text!r}: give sizes with commas between, such as 0,0.25,0.5")
    return found


def _rows(store: RunStore) -> str:
    from calipers.report.tables import Table

    certificates, attempts = store.certificates(), store.attempts()
    if attempts:
        from calipers.report.attempts import attempt_rows
        from calipers.report.jaws import close_jaws

        if not certificates:
            return attempt_rows(attempts).text()
        return close_jaws((*certificates, *attempts)).text(most=len(attempts))
    if certificates and certificates[0].constant is not None:
        columns = (
            "input",
            "label",
            "class",
            "",
            f"{certificates[0].norm} radius",
            "rival",
            "margin",
            "constant",
        )
        return Table("", (*columns, "theorem"), tuple(_lipschitz_row(row) for row in certificates)).text()
    if certificates:
        columns = (
            "input",
            "label",
            "class",
            "",
            f"{certificates[0].norm} radius",
            "p_A at least",
            "p_B at most",
            "samples",
        )
        return Table("", columns, tuple(_certificate_row(row) for row in certificates)).text()
    rows = tuple(
        (
            str(row.index),
            _class(row.label),
            _class(row.prediction),
            _verdict(row),
            f"{max(row.counts):,}" if row.counts else "unknown",
            f"{row.samples:,}" if row.samples else "unknown",
        )
        for row in store.predictions()
    )
    return Table("", ("input", "label", "class", "", "most votes", "samples"), rows).text()


def _certificate_row(row: Certificate) -> tuple[str, ...]:
    from calipers.report.tables import ceiled, floored

    return (
        str(row.index),
        _class(row.label),
        _class(row.prediction),
        _verdict(row),
        floored(row.radius),
        floored(row.p_lower, digits=4),
        ceiled(row.p_upper, digits=4),
        f"{row.samples:,}" if row.samples else "unknown",
    )


def _lipschitz_row(row: Certificate) -> tuple[str, ...]:
    from calipers.report.tables import ceiled, floored

    return (
        str(row.index),
        _class(row.label),
        _class(row.prediction),
        _verdict(row),
        floored(row.radius),
        _class(row.rival if row.rival is not None else -1),
        floored(row.margin or 0.0, digits=4),
        ceiled(row.constant or 0.0, digits=4),
        row.theorem,
    )


def _class(number: int) -> str:
    return "-" if number < 0 else str(number)


def _verdict(row: Certificate | Prediction) -> str:
    if row.abstained:
        return "abstains"
    return "" if row.label < 0 else ("right" if row.correct else "wrong")


def _circumstances(store: RunStore) -> str:
    # The execution plan and the sittings: how the numbers came about.
    import json
    import time

    from calipers.report.tables import columns_of

    found = []
    plan = store.facts().get("plan")
    if plan is not None:
        told = json.loads(plan)
        layout = "channels-last" if told["channels_last"] else "contiguous"
        mode = "compiled" if told["compiled"] else "eager"
        found.append(
            ("plan", f"{told['device']} {told['precision']} batch={told['batch_size']} {layout} {mode}")
        )
        found.append(("measured", told["note"]))
    for moment, event, body in store.sittings():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
        known = {
            name: body[name]
            for name in ("executor", "todo", "why", "fresh", "seconds", "calipers")
            if name in body
        }
        told_of = ", ".join(
            f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in known.items()
        )
        found.append((event, f"{when}  {told_of}"))
    return columns_of(found)
