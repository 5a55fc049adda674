"""`calipers recertify`: another question of the same counts, with no forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.answers import decided_radii, unfinished_line
from calipers.cli.console import speaking
from calipers.cli.show import read_grid

if TYPE_CHECKING:
    from calipers.evidence.records import Certificate

__all__ = ["recertify"]


def recertify(
    run: options.Run,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="NUMBER",
            help="Failure probability of each certificate; the run's if left out.",
        ),
    ] = None,
    bound: Annotated[
        str | None,
        typer.Option(
            "--bound",
            metavar="two-sided|one-sided",
            help="Bound of the votes; the run's if left out. For soft votes: empirical-bernstein or hoeffding.",
        ),
    ] = None,
    anytime: Annotated[
        bool,
        typer.Option("--anytime", help="Use bounds that hold however the number of samples was chosen."),
    ] = False,
    radii: Annotated[
        str | None,
        typer.Option(
            "--radii", metavar="RADII", help="Radii of the table, such as 0,0.25,0.5; chosen if left out."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="PATH", help="Write the reading to a run file of its own."),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Ask another alpha or bound of the counts of a run; prints the answer beside the run's own.

    A certificate's alpha is a promise made before its draws were seen: keeping the better of two readings costs
    the sum of their alphas.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.report.summary import compare, default_radii, summarize
        from calipers.runs.recertify import recertify as read_again
        from calipers.runs.store import RunStore

        with RunStore.read(run) as store:
            found = read_again(store, alpha=alpha, bound=bound, validity="anytime" if anytime else None)
            before, spec, (done, total) = store.certificates(), store.spec, store.progress()
            unfinished = unfinished_line(store)
        both = [*before, *found.certificates]
        grid = (decided_radii(before) or default_radii(both)) if radii is None else read_grid(radii)
        old = summarize(before, radii=grid, spec=spec)
        new = summarize(found.certificates, radii=grid, spec=found.spec)
        if save is not None:
            with RunStore.open(save, found.spec) as target:
                found.save(target)
        names = tuple(
            _name(rows[0], mark) for rows, mark in ((before, "the run"), (found.certificates, "read again"))
        )
        table = compare({names[0]: old.curve, names[1]: new.curve})
        saved = [] if save is None else [f"the reading is in {save}"]
        say.answer(
            {
                "run": str(run),
                "done": done,
                "total": total,
                "finished": total is None or done >= total,
                "before": old.to_dict(),
                "after": new.to_dict(),
                "saved": None if save is None else str(save),
            },
            table.text(),
            "",
            *unfinished,
            "the run declared its alpha and bound before it drew; keeping the better of two readings costs the sum of "
            "their alphas",
            *saved,
        )


def _name(row: Certificate, mark: str) -> str:
    return f"{mark}: {row.bound}, alpha {row.alpha:g}"
