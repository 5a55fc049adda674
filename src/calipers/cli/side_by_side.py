"""The answer of `calipers show` for several runs of one kind, side by side: those that prove, or those that attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calipers.cli.answers import clean_of, decided_radii, describe_run, how_far
from calipers.cli.console import Say
from calipers.errors import UsageError

__all__ = ["answer_attacks", "answer_certificates"]


def answer_certificates(say: Say, paths: Sequence[Path], grid: tuple[float, ...] | None) -> None:
    """Set runs that prove side by side: certified accuracy at shared radii.

    Args:
        say: the console of the verb.
        paths: the files of the runs.
        grid: the radii; chosen if None.

    Raises:
        UsageError: if one has no certificates, or their norms differ.
    """
    from calipers.report.summary import compare, default_radii, summarize
    from calipers.report.tables import floored_percent
    from calipers.runs.store import RunStore

    found, payloads, clean, unfinished = {}, [], {}, []
    for path in paths:
        with RunStore.read(path) as store:
            rows = store.certificates()
            if not rows:
                raise UsageError(f"{path} has no certificates: runs side by side need some in each")
            found[str(path)] = (rows, store.spec)
            payloads.append(describe_run(store, radii=grid))
            right, far = clean_of(store), how_far(store)
            if right is not None:
                clean[str(path)] = floored_percent(right[0] / right[1])
            if far is not None:
                unfinished.append(f"{path} is unfinished: {far}")
    norms = {rows[0].norm for rows, _ in found.values()}
    if len(norms) > 1:
        raise UsageError(f"these runs have radii in {', '.join(sorted(norms))}: one table is of one norm")
    shared = grid or max(
        (decided_radii(rows) or default_radii(rows) for rows, _ in found.values()),
        key=lambda radii: radii[-1],
    )
    curves = {name: summarize(rows, radii=shared, spec=spec).curve for name, (rows, spec) in found.items()}
    table = compare(curves, beside={"clean": clean} if clean else None)
    asked = [
        f"{name}: {spec.model}, {spec.data}, {rows[0].noise}, {rows[0].method}"
        for name, (rows, spec) in found.items()
    ]
    say.answer({"runs": payloads}, table.text(), "", *asked, *unfinished)


def answer_attacks(say: Say, paths: Sequence[Path]) -> None:
    """Set runs that attack side by side, and all of them together where they ask the same of the same inputs.

    Args:
        say: the console of the verb.
        paths: the files of the runs.
    """
    from calipers.report.attacks import compare_attacks, together
    from calipers.runs.store import RunStore

    found, payloads, asked, unfinished = {}, [], [], []
    for path in dict.fromkeys(paths):
        with RunStore.read(path) as store:
            found[str(path)] = store.attempts()
            payloads.append(describe_run(store))
            spec, far = store.spec, how_far(store)
            asked.append(f"{path}: {spec.model}, {spec.data}, {spec.method or spec.attack}")
            if far is not None:
                unfinished.append(f"{path} is unfinished: {far}")
    joined = together(found)
    payload = {"runs": payloads, "together": None if joined is None else joined.to_dict()}
    say.answer(payload, compare_attacks(found).text(), "", *asked, *unfinished)
