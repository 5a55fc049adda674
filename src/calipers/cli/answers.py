"""What is said of a run: its summary, whether it is finished, and what to do next."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calipers.cli.console import Say

if TYPE_CHECKING:
    from calipers.evidence.contradictions import Contradictions
    from calipers.evidence.records import Attempt, Certificate, Prediction
    from calipers.report.summary import Summary
    from calipers.runs.store import RunStore

__all__ = [
    "CLEAN",
    "answer_run",
    "clean_of",
    "decided_radii",
    "describe_run",
    "how_far",
    "text_of_run",
    "unfinished_line",
]

_NOT_IN_A_LOG = ("wrong already", "cost an input")

CLEAN = "clean correct"
"""The fact of a store that holds how many inputs the base classifier gets right without noise: ``889 of 1000``."""


def answer_run(say: Say, path: Path) -> None:
    """Answer a verb that measured: the summary of the run and the commands to go on with.

    Args:
        say: the console of the verb.
        path: the file of the run.
    """
    from calipers.runs.store import RunStore

    with RunStore.read(path) as store:
        kind, votes, noise = store.spec.kind, store.spec.votes, store.spec.noise
        payload, text = describe_run(store), text_of_run(store)
        contradicted = _contradicted(store)
    shown = shlex.quote(str(path))
    following = [f"calipers show {shown} --inputs"]
    if kind == "certify":
        if noise:
            other = "hoeffding" if votes == "soft" else "one-sided"
            following.append(f"calipers recertify {shown} --bound {other}")
        following.append(f"calipers export {shown} --to tsv")
    lines = ["", f"the run is in {path}; next:", *(f"  {line}" for line in following)]
    say.answer(payload | {"next": following}, text, *lines)
    if contradicted is not None:
        contradicted.check()


def _contradicted(store: RunStore) -> Contradictions | None:
    from calipers.report.jaws import close_jaws

    rows = list(store.records())
    both = {row.kind for row in rows} >= {"certificate", "attempt"}
    return close_jaws(rows).found if both else None


def describe_run(
    store: RunStore, *, radii: Sequence[float] | None = None, inputs: bool = False
) -> dict[str, Any]:
    """Describe a run in plain values.

    Args:
        store: the run.
        radii: the radii at which certified accuracy is told; chosen if None.
        inputs: whether every record is told too.

    Returns:
        A mapping for JSON.
    """
    from dataclasses import asdict

    from calipers.report.summary import summarize

    spec, facts = store.spec, store.facts()
    done, total = store.progress()
    clean = clean_of(store)
    payload: dict[str, Any] = {
        "run": str(store.path),
        "kind": spec.kind,
        "spec": asdict(spec),
        "spec_hash": spec.hash,
        "facts": {name: value for name, value in facts.items() if name != "plan"},
        "plan": facts.get("plan"),
        "done": done,
        "total": total,
        "finished": total is None or done >= total,
        "clean_accuracy": None if clean is None else {"correct": clean[0], "inputs": clean[1]},
    }
    rows = store.certificates()
    tried = store.attempts()
    if spec.kind == "bracket":
        payload["jaws"] = {"certificates": len(rows), "attacks": len(tried)}
    if tried:
        from calipers.report.attempts import summarize_attempts

        payload["attack"] = summarize_attempts(tried).to_dict()
    if rows and tried:
        from calipers.report.jaws import close_jaws

        payload["brackets"] = close_jaws([*rows, *tried]).to_dict()
    if rows:
        payload["summary"] = summarize(rows, radii=radii or decided_radii(rows), spec=spec).to_dict()
    answered = store.predictions()
    if answered:
        payload["predictions"] = _counted(answered)
    if inputs:
        payload["inputs"] = [asdict(row) for row in (*rows, *tried, *answered)]
    return payload


def text_of_run(store: RunStore, *, radii: Sequence[float] | None = None, most: int = 40) -> str:
    """Describe a run in plain text.

    Args:
        store: the run.
        radii: the radii at which certified accuracy is told; chosen if None.
        most: how many brackets are drawn at most.

    Returns:
        Lines without a final newline.
    """
    from calipers.report.summary import summarize

    rows, answered, tried = store.certificates(), store.predictions(), store.attempts()
    lines = []
    if rows and tried:
        lines.append(_bracket_text(store, most))
    elif tried:
        lines.append(_attack_text(store, tried))
    elif rows:
        lines.append(
            _summary_text(store, summarize(rows, radii=radii or decided_radii(rows), spec=store.spec))
        )
        if store.spec.kind == "bracket":
            lines += ["", _not_attacked(store)]
    elif answered:
        lines.append(_prediction_text(store, answered))
    else:
        lines.append("no input is finished yet")
    unfinished = unfinished_line(store)
    if unfinished:
        lines += ["", *unfinished]
    return "\n".join(lines)


def decided_radii(rows: Sequence[Certificate]) -> tuple[float, ...] | None:
    """Find the radii at which a run was decided; beyond the largest nothing was drawn for.

    Args:
        rows: the certificates of a run.

    Returns:
        0 and those radii; None where the run drew a fixed number of samples.
    """
    from calipers.runs.descriptions import build_stopping

    stopping = build_stopping(rows[0].stopping) if rows[0].stopping else None
    radii: tuple[float, ...] | None = getattr(stopping, "radii", None)
    return None if radii is None else (0.0, *radii)


def how_far(store: RunStore) -> str | None:
    """Say how far a run is that is not finished.

    Args:
        store: the run.

    Returns:
        Such as ``5 of 12 inputs``, of a bracket each side by itself; None if it is finished.
    """
    from calipers.report.counts import counted

    done, total = store.progress()
    if total is None or done >= total:
        return None
    if store.spec.kind != "bracket":
        return f"{done} of {counted(total, 'input')}"
    proved, tried = len(store.certificates()), len(store.attempts())
    return f"{proved} of {counted(total // 2, 'certificate')} and {tried} of {counted(total // 2, 'attack')}"


def unfinished_line(store: RunStore) -> tuple[str, ...]:
    """Warn of numbers of a run that is not finished.

    Args:
        store: the run.

    Returns:
        One line, or none if it is finished.
    """
    far = how_far(store)
    if far is None:
        return ()
    if store.spec.kind == "bracket":
        why = "an input that is not attacked yet has no upper radius"
    else:
        why = "with --decide, inputs that are decided early come first"
    return (
        f"unfinished: {far}, and these shares are not those of the whole ({why}); the same command goes on.",
    )


def clean_of(store: RunStore) -> tuple[int, int] | None:
    """Read the accuracy of the base classifier without noise.

    Args:
        store: the run.

    Returns:
        The inputs it gets right, and all inputs; None where it was not measured.
    """
    with contextlib.suppress(ValueError):
        correct, _, total = store.facts().get(CLEAN, "").partition(" of ")
        return int(correct), int(total)
    return None


def _summary_text(store: RunStore, summary: Summary) -> str:
    from calipers.report.tables import columns_of

    parts = [columns_of(summary.asked), summary.table().text()]
    parts.append(columns_of((*summary.findings(), *_clean_row(store))))
    parts.extend(summary.notes)
    return "\n\n".join(parts[:3]) + "".join(
        "\n" + ("\n" if at == 0 else "") + note for at, note in enumerate(parts[3:])
    )


def _prediction_text(store: RunStore, rows: Sequence[Prediction]) -> str:
    from calipers.report.summary import summarize_predictions
    from calipers.report.tables import columns_of

    spec, alpha = store.spec, rows[0].alpha
    measured = spec.kind != "import"
    asked = (
        ("model", spec.model),
        ("data", spec.data),
        *((("precision", spec.precision), ("seed", str(spec.seed))) if measured else ()),
        ("method", rows[0].method),
        ("noise", rows[0].noise or "unknown"),
    )
    failures = "unknown, since alpha is"
    if math.isfinite(alpha):
        failures = f"{len(rows)} x {alpha:g} = {len(rows) * alpha:g} expected"
    found = (*summarize_predictions(rows), ("failures", failures), *_clean_row(store))
    return columns_of(asked) + "\n\n" + columns_of(found)


def _bracket_text(store: RunStore, most: int) -> str:
    from calipers.report.jaws import close_jaws
    from calipers.report.tables import columns_of

    jaws = close_jaws(store.records())
    asked, clean = columns_of(_asked_of_attack(store)), columns_of(_clean_row(store))
    return "\n\n".join(part for part in (asked, jaws.text(most=most), clean) if part)


def _not_attacked(store: RunStore) -> str:
    # The side of a bracket that comes after the certificates.
    from calipers.report.counts import counted
    from calipers.report.tables import columns_of

    spec, (_, total) = store.spec, store.progress()
    attacked = "0 inputs" if total is None else f"0 of {counted(total // 2, 'input')}"
    attacked += " so far, so that no upper radius was found"
    return columns_of((("attack", spec.attack), ("judge", spec.judge), ("attacked", attacked)))


def _attack_text(store: RunStore, rows: Sequence[Attempt]) -> str:
    from calipers.report.attempts import summarize_attempts
    from calipers.report.tables import columns_of

    findings = summarize_attempts(rows).findings()
    if store.spec.kind == "import":
        findings = tuple((word, value) for word, value in findings if word not in _NOT_IN_A_LOG)
    found = (*findings, *_clean_row(store))
    return columns_of(_asked_of_attack(store)) + "\n\n" + columns_of(found)


def _asked_of_attack(store: RunStore) -> tuple[tuple[str, str], ...]:
    spec = store.spec
    attack = spec.attack or spec.method
    asked = (
        ("model", spec.model),
        ("data", spec.data),
        ("precision", "" if spec.kind == "import" else spec.precision),
        ("seed", "" if spec.kind == "import" else str(spec.seed)),
        ("noise", spec.noise),
        ("norm", spec.norm + (f", eps {spec.eps}" if spec.eps else ", the least size")),
        ("certificate", spec.method if spec.attack else ""),
        ("attack", attack),
        ("judge", spec.judge),
    )
    return tuple((word, value) for word, value in asked if value)


def _clean_row(store: RunStore) -> tuple[tuple[str, str], ...]:
    from calipers.report.tables import floored_percent

    clean = clean_of(store)
    if clean is None:
        return ()
    share = floored_percent(clean[0] / clean[1])
    of = "the base model without noise" if store.spec.noise else "without any attack"
    return (("clean accuracy", f"{clean[0]} of {clean[1]} ({share} %), {of}"),)


def _counted(rows: Sequence[Prediction | Certificate]) -> dict[str, Any]:
    labelled = [row for row in rows if row.label >= 0]
    alpha = rows[0].alpha if math.isfinite(rows[0].alpha) else None
    return {
        "inputs": len(rows),
        "labelled": len(labelled),
        "correct": sum(row.correct for row in labelled),
        "wrong": sum(not row.correct and not row.abstained for row in labelled),
        "abstentions": sum(row.abstained for row in rows),
        "alpha": alpha,
        "expected_failures": None if alpha is None else len(rows) * alpha,
    }
