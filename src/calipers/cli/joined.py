"""The answer of `calipers show` where one run proves and another attacks: both, joined on their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calipers.cli.answers import how_far
from calipers.cli.console import Say

if TYPE_CHECKING:
    from calipers.evidence.records import AnyRecord
    from calipers.runs.spec import RunSpec

__all__ = ["answer_joined", "attacks_alone"]


def attacks_alone(path: Path) -> bool:
    """Say whether a run has attempts and no certificates, so that it is one side of a bracket.

    Args:
        path: the file of the run.

    Returns:
        Whether it is.
    """
    from calipers.runs.store import RunStore

    with RunStore.read(path) as store:
        return bool(store.attempts()) and not store.certificates()


def answer_joined(say: Say, paths: Sequence[Path]) -> None:
    """Join the records of runs and answer with their brackets; contradictions beyond chance are an error.

    Args:
        say: the console of the verb.
        paths: the files of the runs.
    """
    from dataclasses import asdict

    from calipers.report.joined import join_runs
    from calipers.runs.store import RunStore

    rows: list[AnyRecord] = []
    runs: list[dict[str, Any]] = []
    told: list[str] = []
    unfinished: list[str] = []
    named: set[str] = set()
    for path in paths:
        with RunStore.read(path) as store:
            rows += store.records()
            spec, (done, total), far = store.spec, store.progress(), how_far(store)
        runs.append({"run": str(path), "spec": asdict(spec), "done": done, "total": total})
        told.append(f"{path}: {_described(spec)}")
        if far is not None:
            unfinished.append(f"{path} is unfinished: {far}")
        named |= {spec.target} - {""}
    joined = join_runs(rows)
    word = [
        f"that these are of one classifier, {name!r}, is the word of who imported the logs"
        for name in sorted(named)
    ]
    say.answer({"runs": runs, "joined": joined.to_dict()}, joined.text(), "", *told, *word, *unfinished)
    joined.jaws.found.check()


def _described(spec: RunSpec) -> str:
    words = (spec.model, spec.data, spec.noise, spec.method, spec.eps and f"{spec.norm} eps {spec.eps}")
    return ", ".join(word for word in words if word)
