"""`calipers import`: the field's logs of certificates and attacks, with what they leave out named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calipers.cli import options
from calipers.cli.answers import describe_run, text_of_run
from calipers.cli.console import speaking

if TYPE_CHECKING:
    from calipers.runs.cohen_log import ImportedLog

__all__ = ["import_log"]


def import_log(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A log of Cohen et al.'s format, plain or compressed by gzip."),
    ],
    sigma: Annotated[
        str | None,
        typer.Option(
            "--sigma",
            metavar="SIZE",
            help="Standard deviation of the noise, if you know it; the log does not say.",
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", help="Number of samples, if you know it.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="NUMBER", help="Failure probability, if you know it."),
    ] = None,
    norm: Annotated[
        str | None, typer.Option("--norm", metavar="l2|l1|linf", help="Norm of the radii; l2 if left out.")
    ] = None,
    attacked: Annotated[
        str | None,
        typer.Option(
            "--attacked",
            metavar="NORM:SIZE",
            help="The predictions were made under an attack of this size, such as l2:0.5.",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Your name for the classifier: logs of one name are taken to be of one classifier.",
        ),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", metavar="TEXT", help="What was certified, for the reader.")
    ] = "",
    data: Annotated[str, typer.Option("--data", metavar="TEXT", help="On which data, for the reader.")] = "",
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="PATH", help="File of the run; a new one under runs/ if left out."),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Read a log of certificates, predictions or attacks into a run; says what it gives away, and what it cannot."""
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.runs.cohen_log import read_log
        from calipers.runs.naming import read_size
        from calipers.runs.store import RunStore

        log = read_log(
            file,
            sigma=None if sigma is None else read_size(sigma),
            n=n,
            alpha=alpha,
            norm=norm,  # type: ignore[arg-type]  # the specification checks it
            attacked=attacked,
            target=target,
            model=model,
            data=data,
        )
        path = run or _default_path(file, log)
        with RunStore.open(path, log.spec) as store:
            added = log.save(store)
        with RunStore.read(path) as store:
            payload, text = describe_run(store), text_of_run(store)
        say.answer(
            payload | {"recovered": _recovered(log), "notes": list(log.notes), "added": added},
            text,
            "",
            *(f"- {note}" for note in log.notes),
            "",
            f"the run is in {path}",
        )


def _default_path(file: Path, log: ImportedLog) -> Path:
    name = (
        re.sub(r"[^A-Za-z0-9.]+", "-", re.sub(r"(\.tsv|\.csv|\.txt|\.log|\.gz)+$", "", file.name)).strip(
            "-."
        )[-48:]
        or "log"
    )
    return Path("runs") / f"import-{name}-{log.spec.hash[:8]}.sqlite"


def _recovered(log: ImportedLog) -> dict[str, Any] | None:
    found = log.recovered
    if found is None:
        return None
    return {"sigma": found.sigma, "n": found.n, "alpha": found.alpha, "note": found.note}
