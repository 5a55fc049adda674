"""Prescribed: the measurement of a defense under the attack that a diagnosis of it chose, kept beside the choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calipers.errors import CalipersError
from calipers.runs.case_rows import CaseRow, Question, is_complete
from calipers.runs.descriptions import build_attack
from calipers.runs.store import RunStore

if TYPE_CHECKING:
    from calipers.attacks.base import Attack

__all__ = ["prescribed_row"]

_LONGEST = 90


def prescribed_row(
    like: CaseRow, question: Question, *, budget: float, tell: Callable[[str], None] | None = None
) -> CaseRow | None:
    """Diagnose a classifier, and make the measurement of the attack that the diagnosis alone prescribes.

    What was prescribed is kept beside the runs, and is not chosen again once it was measured, unless there is more time
    for the choice now.

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
    known = _kept(note, like, budget)
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
    told = found.to_dict() | {
        "what": f"{words} (cut for want of time)" if found.prescription.cut else words,
        "revision": found.prescription.attack.revision,
        "budget": budget,
    }
    note.parent.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1, default=str) + "\n", encoding="utf-8")
    part.replace(note)  # at once, so that a run which is stopped here leaves no half of it
    return _prescribed(like, told, note)


def _kept(note: Path, like: CaseRow, budget: float) -> CaseRow | None:
    # What was prescribed earlier, if it was measured to the end: its parts need not be there again then
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        row = _prescribed(like, told, note)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
    ):  # there is none, or it is damaged: it is chosen again
        return None
    if told.get("budget", 0.0) < budget or not row.path.is_file() or _is_revised(told):
        return None
    with RunStore.read(row.path) as store:
        return row if is_complete(store) else None


def _is_revised(told: dict[str, Any]) -> bool:
    # Whether the attack finds other things now; of one that holds a surrogate learned for it nothing can be said
    try:
        return build_attack(told["prescription"]["attack"]).revision != told.get("revision")
    except CalipersError:
        return False


def _prescribed(like: CaseRow, told: dict[str, Any], note: Path) -> CaseRow:
    attack = told["prescription"]["attack"]
    spec = replace(like.spec, method=attack, eps=_size_of(like))
    path = note.with_name(f"{note.name.rpartition('-')[0]}-{spec.hash[:8]}-r{told.get('revision', 0)}.sqlite")
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
