"""`calipers runs`: the runs of a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from calipers.cli import options
from calipers.cli.console import speaking
from calipers.errors import MissingFile, StoreError

__all__ = ["runs"]


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to look; folders below it are not looked at.")
    ] = Path("runs"),
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """List the runs of a folder: what each measures, and how far it is."""
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        if not folder.is_dir():
            raise MissingFile(f"there is no folder {folder}: `calipers certify` makes runs/ at its first run")
        found = []
        for path in sorted(folder.iterdir()):
            if path.is_file() and _is_database(path):
                try:
                    found.append(_row(path))
                except StoreError as problem:
                    say.warn(str(problem))
        payload = {"folder": str(folder), "runs": found}
        if say.as_json:
            say.answer(payload)
        elif not found:
            say.answer(payload, f"no runs in {folder}")
        else:
            say.answer(payload, _table(found))


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def _row(path: Path) -> dict[str, Any]:
    from calipers.runs.store import RunStore

    with RunStore.read(path) as store:
        spec, sittings = store.spec, store.sittings()
        totals = [sitting.body["total"] for sitting in sittings if "total" in sitting.body]
        return {
            "run": str(path),
            "kind": spec.kind,
            "model": spec.model,
            "data": spec.data,
            "noise": spec.noise,
            "method": spec.method,
            "norm": spec.norm,
            "eps": spec.eps,
            "done": len(store.done()),
            "total": totals[-1] if totals else None,
            "modified": path.stat().st_mtime,
        }


def _table(rows: list[dict[str, Any]]) -> str:
    from calipers.report.tables import Table

    return Table(
        "",
        ("run", "verb", "model", "data", "noise, or method", "inputs", "last written"),
        tuple(
            (
                row["run"],
                row["kind"],
                row["model"],
                row["data"],
                _asked(row),
                _inputs(row),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(row["modified"])),
            )
            for row in rows
        ),
    ).text()


def _asked(row: dict[str, Any]) -> str:
    # What tells runs of one model and data apart: the noise, or the method with its norm and size
    if row["noise"]:
        return str(row["noise"])
    words = (row["method"].partition("(")[0], row["norm"], row["eps"])
    return " ".join(word for word in words if word)


def _inputs(row: dict[str, Any]) -> str:
    # A bracket has two records an input, the certificates first: an input is done when it has both
    done, total = row["done"], row["total"]
    if total is None:
        return str(done)
    if row["kind"] == "bracket":
        done, total = max(done - total // 2, 0), total // 2
    return f"{done}/{total}"
