"""Reproducing a case study: each measurement of each defense is a run of its own file, so it resumes and is kept."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

from calipers.errors import UsageError
from calipers.runs.catalog import DEFENSES, named_defense
from calipers.runs.side_by_side import side_by_side
from calipers.runs.spec import RunSpec
from calipers.runs.store import RunStore

if TYPE_CHECKING:
    from calipers.attacks.base import Attack
    from calipers.defenses.base import Defense, Row

__all__ = [
    "FIGURE_SIZES",
    "CaseRow",
    "Question",
    "case_rows",
    "clean_correct",
    "defense_names",
    "figure_rows",
    "in_order",
    "measure_case",
    "prescribed_row",
]

_SCHEME = "iclr2018"
_CLEAN = "clean correct"
_LONGEST = 90


@final
@dataclass(frozen=True)
class Question:
    """What is asked of every defense alike.

    Args:
        data: the data reference.
        folder: where the runs go, a folder a defense.
        weights: the folder of trained parts; those that ship if None.
        limit: how many inputs; None takes all.
        skip: how many to leave out at the front.
        sample: the size of a stratified subset; None takes them in their order.
        seed: of every run.
        device: the device.
    """

    data: str
    folder: Path
    weights: Path | None = None
    limit: int | None = None
    skip: int = 0
    sample: int | None = None
    seed: int = 0
    device: str = "cpu"


@final
@dataclass(frozen=True)
class CaseRow:
    """One measurement of the case study, in plain values.

    Args:
        defense: the name of the defense.
        authors: who published it, and when.
        source: where.
        published: data, size, clean accuracy, claim and adaptive figure as they are printed.
        role: undefended, naive, matched, adaptive, ablation or prescribed.
        what: the attack in a few words.
        family: the mechanism, where a defense has several.
        size: the size with its unit, for people.
        within: the largest distance that counts, for an attack that looks for the least; None for any.
        spec: the specification of the run.
        path: its file.
    """

    defense: str
    authors: str
    source: str
    published: dict[str, str]
    role: str
    what: str
    family: str
    size: str
    within: float | None
    spec: RunSpec
    path: Path


def defense_names(wanted: Sequence[str]) -> tuple[str, ...]:
    """Check the names of defenses.

    Args:
        wanted: names; none for all.

    Returns:
        Names, in the order of the case study.

    Raises:
        UsageError: if one is unknown.
    """
    unknown = [name for name in wanted if name not in DEFENSES]
    if unknown:
        raise UsageError(f"no defense of ICLR 2018 is called {unknown[0]!r}: there are {', '.join(DEFENSES)}")
    return tuple(name for name in DEFENSES if not wanted or name in wanted)


def case_rows(names: Sequence[str], question: Question) -> tuple[CaseRow, ...]:
    """List the measurements of defenses; loads torch.

    Args:
        names: of the defenses.
        question: what is asked of each.

    Returns:
        The measurements, in the order of the table.
    """
    found = []
    for name in names:
        defense = named_defense(name, weights=question.weights)
        for number, row in enumerate(defense.rows()):
            found.append(_case_row(name, defense, number, row, question))
    return tuple(found)


def measure_case(
    rows: Sequence[CaseRow],
    question: Question,
    *,
    prescribe: bool = False,
    budget: float = 20.0,
    jobs: int = 1,
    deadline: float | None = None,
) -> Iterator[CaseRow]:
    """Measure what is not in the files yet, several measurements at a time.

    Args:
        rows: the measurements.
        question: what is asked.
        prescribe: whether each mechanism is also attacked as a diagnosis of it prescribes.
        budget: seconds for each diagnosis, and as many again for the choice of the attack.
        jobs: processes, of one thread each; 1 measures in this one.
        deadline: the value of ``time.monotonic()`` at which to stop.

    Yields:
        Each measurement whose file is complete, as they are finished.
    """
    parcels = [_Parcel(row, question, None, deadline) for row in rows]
    if prescribe:
        recipes: dict[tuple[str, str], CaseRow] = {}
        for row in rows:
            if row.role == "adaptive":
                recipes.setdefault((row.defense, row.family), row)
        parcels += [_Parcel(row, question, budget, deadline) for row in recipes.values()]
    for done in side_by_side(_measure, parcels, jobs=jobs):
        if done is not None:
            yield done


def in_order(rows: Sequence[CaseRow], measured: Sequence[CaseRow]) -> list[CaseRow]:
    """Put measurements into the order of the table: what was prescribed comes after its mechanism's own rows.

    Args:
        rows: the measurements as they were asked for.
        measured: those that are finished.

    Returns:
        The finished ones.
    """
    mechanisms = list(dict.fromkeys((row.defense, row.family) for row in rows))
    places = {row.path: place for place, row in enumerate(rows)}
    return sorted(
        measured,
        key=lambda row: (
            mechanisms.index((row.defense, row.family)),
            row.role == "prescribed",
            places.get(row.path, 0),
        ),
    )


class _Parcel(NamedTuple):
    """One measurement, or with a budget the one that a diagnosis of its classifier prescribes."""

    row: CaseRow
    question: Question
    budget: float | None
    deadline: float | None


def _measure(parcel: _Parcel) -> CaseRow | None:
    # In whichever process it is; a deadline is told by a clock that all processes of a machine share.
    from calipers.runs.bench import Bench
    from calipers.runs.measure import measure, prepare
    from calipers.runs.run import carry_out

    row: CaseRow | None = parcel.row
    if parcel.deadline is not None and time.monotonic() >= parcel.deadline:
        return None
    if parcel.budget is not None:
        row = prescribed_row(parcel.row, parcel.question, budget=parcel.budget)
    if row is None:
        return None
    device = parcel.question.device
    bench = Bench(row.spec, device=device, trust_code=False)
    target = bench.subject().target  # before there is a file, so that a part that is missing leaves none
    with RunStore.open(row.path, row.spec) as store:
        if _complete(
            store
        ):  # parts may have been trained again since: what was measured must be what is there
            store.settle({"target": target.fingerprint, "data": bench.subject().data.fingerprint})
            return row
        prepared = prepare(row.spec, store, device=device, bench=bench, compile_allowed=False)
        # one that rejects a clean image errs, and no attempt says so; first, since a complete file is not touched again
        if target.detector and clean_correct(store) is None:
            store.settle({_CLEAN: f"{bench.clean_correct()} of {len(prepared.tasks)}"})
        carry_out(prepared.tasks, store, measure, prepared.bench, deadline=parcel.deadline)
        if not _complete(store):
            return None
    return row


def clean_correct(store: RunStore) -> float | None:
    """Read the share of clean inputs that a detector answers rightly and accepts.

    Args:
        store: a complete run.

    Returns:
        The share; None where the classifier rejects nothing.
    """
    right, _, inputs = store.facts().get(_CLEAN, "").partition(" of ")
    return int(right) / int(inputs) if inputs else None


def _complete(store: RunStore) -> bool:
    done, total = store.progress()
    return total is not None and done >= total


def _case_row(name: str, defense: Defense, number: int, row: Row, question: Question) -> CaseRow:
    device: Literal["cpu", "cuda"] = "cuda" if question.device.startswith("cuda") else "cpu"
    model = row.variant
    if ":" not in model:
        model = f"{_SCHEME}:{name}" + (f"/{model}" if model else "")
        model += f"?weights={question.weights}" if question.weights is not None else ""
    spec = RunSpec(
        kind="attack",
        model=model,
        data=question.data,
        method=repr(row.attack),
        norm=row.norm,
        eps=row.eps,
        judge=repr(row.judge),
        device=device,
        seed=question.seed,
        skip=question.skip,
        limit=question.limit,
        sample=question.sample,
    )
    size = f"{row.norm} {row.eps or row.within or 'least'}" + (f" ({row.unit})" if row.unit else "")
    paper = defense.paper
    published = {
        "data": paper.data,
        "threat": paper.threat,
        "clean": paper.clean,
        "claimed": paper.claimed,
        "adaptive": paper.adaptive,
        "note": paper.note,
    }
    # the hash keeps runs of other sizes, inputs and revisions of the recipe in files of their own
    stem = re.sub(r"[^a-z0-9]+", "-", f"{row.family} {row.role} {row.what}".lower()).strip("-")[:60]
    path = question.folder / name / f"{number:02d}-{stem}-{spec.hash[:8]}.sqlite"
    within = float(_size(row.within)) if row.within else None
    return CaseRow(
        name, paper.authors, paper.source, published, row.role, row.what, row.family, size, within, spec, path
    )


def prescribed_row(
    like: CaseRow, question: Question, *, budget: float, tell: Callable[[str], None] | None = None
) -> CaseRow | None:
    """Diagnose a classifier, and make the measurement of the attack that the diagnosis alone prescribes.

    What was prescribed is kept beside the runs, and is not chosen again once it was measured.

    Args:
        like: the measurement of the hand-written recipe, whose classifier, inputs, size and judge it shares.
        question: what is asked.
        budget: seconds for the diagnosis, about, and as many again for the choice; the attack that is chosen may take
            ten times as many on all inputs.
        tell: told in words what is being done.

    Returns:
        The measurement; None where there is no size to diagnose at.
    """
    from calipers.runs.diagnosis import diagnose_reference

    eps = _size_of(like)
    if not eps:
        return None
    stem = f"99-{like.family}-prescribed".replace("99--", "99-")
    note = like.path.with_name(f"{stem}-{like.spec.hash[:8]}.json")
    known = _kept(note, like)
    if known is not None:
        return known
    found = diagnose_reference(
        like.spec.model,
        like.spec.data,
        norm=like.spec.norm,
        eps=eps,
        limit=like.spec.limit,
        skip=like.spec.skip,
        sample=like.spec.sample,
        seed=like.spec.seed,
        budget=budget,
        prescribe=True,
        device=question.device,
        tell=tell,
    )
    assert found.prescription is not None, "it was asked for"
    words = _in_words(found.prescription.attack)
    told = found.to_dict() | {"what": f"{words} (cut for want of time)" if found.prescription.cut else words}
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8")
    return _prescribed(like, told, note)


def _kept(note: Path, like: CaseRow) -> CaseRow | None:
    # What was prescribed earlier, if it was measured to the end: its parts need not be there again then
    if not note.is_file():
        return None
    row = _prescribed(like, json.loads(note.read_text(encoding="utf-8")), note)
    if not row.path.is_file():
        return None
    with RunStore.read(row.path) as store:
        return row if _complete(store) else None


def _prescribed(like: CaseRow, told: dict[str, Any], note: Path) -> CaseRow:
    attack = told["prescription"]["attack"]
    spec = replace(like.spec, method=attack, eps=_size_of(like))
    path = note.with_name(f"{note.name.rpartition('-')[0]}-{spec.hash[:8]}.sqlite")
    return replace(like, role="prescribed", what=told["what"], within=None, spec=spec, path=path)


def _size_of(row: CaseRow) -> str:
    # The size within which the classifier is attacked: of an attack that looks for the least, the one that counts
    return row.spec.eps or ("" if row.within is None else repr(row.within))


def _in_words(attack: Attack) -> str:
    # The members of an attack, each with its view of the gradient
    members = getattr(attack, "attacks", (attack,))
    found = []
    for member in members:
        view = getattr(member, "gradient", None)
        told = "" if view is None or view.describe() == "autograd" else f" {view.describe()}"
        found.append(f"{type(member).__name__}{told}")
    words = "; ".join(dict.fromkeys(found))
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."


def _size(text: str) -> float:
    from calipers.threat.units import parse_size

    return float(parse_size(text))


FIGURE_SIZES = ("0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.14", "0.2")
"""The sizes at which the lecture's figure is measured, linf, in input units."""

_CURVES = {
    "neither": ("undefended", "undefended"),
    "thermometer encoding": ("", "adaptive"),
    "adversarial training": ("undefended-adversarial", "undefended"),
    "both": ("adversarial", "adaptive"),
}


def figure_rows(question: Question) -> tuple[CaseRow, ...]:
    """List the measurements of the lecture's figure: accuracy against distortion, with and without two defenses.

    Thermometer encoding and adversarial training are taken alone, together, and neither. Each is attacked by the
    adaptive attack of thermometer encoding, without its substitute where nothing is encoded.

    Args:
        question: what is asked.

    Returns:
        The measurements; the family is the curve.
    """
    defense = named_defense("thermometer", weights=question.weights)
    known: dict[str, Row] = {row.role: row for row in reversed(defense.rows())}
    found = []
    for curve, (variant, role) in _CURVES.items():
        for number, eps in enumerate(FIGURE_SIZES):
            row = replace(known[role], variant=variant, eps=eps, unit="", family=curve, what=f"linf {eps}")
            found.append(_case_row("thermometer", defense, number, row, question))
    return tuple(
        replace(row, path=row.path.parent.parent / "figure" / row.path.name, size=row.spec.eps)
        for row in found
    )
