"""The measurements of a case study: every row of every defense as a run with a file of its own, so it resumes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, final

from calipers.errors import UsageError
from calipers.runs.catalog import (
    DEFENSES,
    GREY_SHAPE,
    around_a_network,
    images_of_parts,
    named_defense,
    no_such_defense,
    with_colour_form,
)
from calipers.runs.spec import RunSpec

if TYPE_CHECKING:
    from calipers.defenses.base import Defense, Row
    from calipers.runs.store import RunStore

__all__ = [
    "COLOUR_FIGURE_SIZES",
    "FIGURE_SIZES",
    "CaseRow",
    "LeftOut",
    "Question",
    "case_rows",
    "defense_names",
    "figure_rows",
    "images_shape",
    "is_complete",
    "rows_left_out",
]

FIGURE_SIZES = ("0.01", "0.02", "0.04", "0.06", "0.08", "0.1", "0.14", "0.2")
"""The sizes at which the lecture's figure is measured, linf, in input units."""

COLOUR_FIGURE_SIZES = ("1/255", "2/255", "3/255", "4/255", "6/255", "8/255", "12/255", "16/255")
"""The same for networks of colour images."""

_CURVES = {
    "neither": ("undefended", ("undefended", "undefended")),
    "thermometer encoding": ("", ("adversarial", "adaptive")),
    "adversarial training": ("undefended-adversarial", ("undefended-adversarial", "undefended")),
    "both": ("adversarial", ("adversarial", "adaptive")),
}


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
        network: the reference of a network to put the defenses around; None for the forms that ship.
    """

    data: str
    folder: Path
    weights: Path | None = None
    limit: int | None = None
    skip: int = 0
    sample: int | None = None
    seed: int = 0
    device: str = "cpu"
    network: str | None = None


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


class LeftOut(NamedTuple):
    """What a defense is measured without.

    Args:
        lacks: one line about the parts that are not there; empty if nothing is left out.
        rows: how many measurements there are.
    """

    lacks: str
    rows: int


def defense_names(
    wanted: Sequence[str], *, network: str | None = None, weights: Path | None = None
) -> tuple[str, ...]:
    """Check the names of defenses.

    Args:
        wanted: names; none for all.
        network: the reference of a network to put them around; then all are those that can be.
        weights: the folder of trained parts; where its networks are for colour images, all are those with such a form.

    Returns:
        Names, in the order of the case study.

    Raises:
        UsageError: if one is unknown.
    """
    unknown = [name for name in wanted if name not in DEFENSES]
    if unknown:
        raise UsageError(no_such_defense(unknown[0]))
    if wanted:
        return tuple(name for name in DEFENSES if name in wanted)
    if network is not None:
        return around_a_network()
    if weights is not None and images_of_parts(weights) != GREY_SHAPE:
        return with_colour_form()
    return tuple(DEFENSES)


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
        defense = named_defense(name, weights=question.weights, network=question.network)
        for number, row in enumerate(defense.rows()):
            found.append(_case_row(name, defense, number, row, question))
    return tuple(found)


def images_shape(question: Question) -> tuple[int, ...]:
    """Say what images the networks take: the one that defenses are put around, or those of the trained parts.

    Loads torch.

    Args:
        question: what is asked.

    Returns:
        Channels, height, width.
    """
    from calipers.sources.models import open_network

    if question.network is not None:
        return open_network(question.network).input_shape
    return images_of_parts(question.weights)


def rows_left_out(names: Sequence[str], question: Question) -> dict[str, LeftOut]:
    """Say of each defense what is left out for want of parts, and how many rows it has without; loads torch.

    Args:
        names: of the defenses.
        question: what is asked of each.

    Returns:
        What is left out, by name, in their order.
    """
    defenses = {
        name: named_defense(name, weights=question.weights, network=question.network) for name in names
    }
    return {name: LeftOut(defense.lacks(), len(defense.rows())) for name, defense in defenses.items()}


def figure_rows(question: Question) -> tuple[CaseRow, ...]:
    """List the measurements of the lecture's figure: accuracy against distortion, with and without two defenses.

    Thermometer encoding and adversarial training are taken alone, together, and neither. Both encoded networks are
    attacked as the one with adversarial training, since what LS-PGA adds counts below the width of a bucket, and the
    others by the same PGD with no substitute.

    Args:
        question: what is asked.

    Returns:
        The measurements; the family is the curve.
    """
    defense = named_defense("thermometer", weights=question.weights)
    known: dict[tuple[str, str], Row] = {(row.variant, row.role): row for row in reversed(defense.rows())}
    sizes = FIGURE_SIZES if images_shape(question) == GREY_SHAPE else COLOUR_FIGURE_SIZES
    found = []
    for curve, (variant, attacked_as) in _CURVES.items():
        for number, eps in enumerate(sizes):
            row = replace(
                known[attacked_as], variant=variant, eps=eps, unit="", family=curve, what=f"linf {eps}"
            )
            found.append(_case_row("thermometer", defense, number, row, question))
    return tuple(
        replace(row, path=row.path.parent.parent / "figure" / row.path.name, size=row.spec.eps)
        for row in found
    )


def is_complete(store: RunStore) -> bool:
    """Say whether a run was measured to the end.

    Args:
        store: the run.

    Returns:
        Whether it was.
    """
    done, total = store.progress()
    return total is not None and done >= total


def _case_row(name: str, defense: Defense, number: int, row: Row, question: Question) -> CaseRow:
    device: Literal["cpu", "cuda"] = "cuda" if question.device.startswith("cuda") else "cpu"
    model = row.variant
    if ":" not in model:
        model = defense.reference(model)
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
    # runs of other sizes, inputs and recipes have files of their own, and so have those of another revision
    stem = re.sub(r"[^a-z0-9]+", "-", f"{row.family} {row.role} {row.what}".lower()).strip("-")[:60]
    path = question.folder / name / f"{number:02d}-{stem}-{spec.hash[:8]}-r{row.attack.revision}.sqlite"
    within = float(_size(row.within)) if row.within else None
    return CaseRow(
        name, paper.authors, paper.source, published, row.role, row.what, row.family, size, within, spec, path
    )


def _size(text: str) -> float:
    from calipers.threat.units import parse_size

    return float(parse_size(text))
