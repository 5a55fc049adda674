"""`calipers export`: a run in the field's own formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.console import speaking
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.runs.store import RunStore

__all__ = ["export"]


def export(
    run: options.Run,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="tsv|json|parquet",
            help="The format: tsv is Cohen et al.'s, json holds everything, parquet needs pyarrow.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file, never overwritten; standard output if left out (tsv, json).",
        ),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a run as TSV (Cohen et al.), JSON or Parquet; radii in TSV are rounded down."""
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.report.counts import counted
        from calipers.runs.exports import export as write
        from calipers.runs.store import RunStore

        with RunStore.read(run) as store:
            if output is None:
                print(_text(store, to, as_json=as_json), end="", flush=True)
                return
            records = write(store, output, to=to)  # type: ignore[arg-type]  # checked there
        say.answer(
            {"run": str(run), "format": to, "file": str(output), "records": records},
            f"{counted(records, 'record')} in {output}",
        )


def _text(store: RunStore, to: str, *, as_json: bool) -> str:
    from calipers.runs.exports import FORMATS, json_text, tsv_lines

    if to not in FORMATS:
        raise UsageError(f"format {to!r} is unknown: write one of {', '.join(FORMATS)}")
    if as_json or to == "parquet":
        why = "--json answers on standard output" if as_json else "parquet is no text"
        raise UsageError(f"{why}: name a file with -o")
    records = store.certificates() if to == "tsv" else list(store.records())
    if not records:
        raise UsageError(f"{store.path} has nothing to write as {to}: it holds no certificates yet")
    if to == "tsv":
        return "".join(f"{line}\n" for line in tsv_lines(store.certificates()))
    return json_text(store.spec, store.facts(), records, total=store.progress()[1])
