"""Prescribed: what was chosen once is measured again when its attack finds other things."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calipers.attacks.fgsm import FGSM
from calipers.runs.case_rows import Question, case_rows
from calipers.runs.prescribed import _kept, _prescribed
from calipers.runs.reproduce import measure_case


def test_a_prescription_is_kept_until_its_attack_is_revised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question(data="bundled:fashion-mnist", folder=tmp_path, limit=2)
    like = next(row for row in case_rows(["thermometer"], question) if row.role == "adaptive")
    note = tmp_path / "99-prescribed-0.json"
    told = {
        "prescription": {"attack": repr(FGSM())},
        "what": "FGSM",
        "revision": FGSM.revision,
        "budget": 10.0,
    }
    note.write_text(json.dumps(told), encoding="utf-8")
    assert _kept(note, like, 10.0) is None, "it was not measured yet"
    row = _prescribed(like, told, note)
    assert list(measure_case([row], question)) == [row]
    assert _kept(note, like, 10.0) == _kept(note, like, 1.0) == row
    assert _kept(note, like, 20.0) is None, "more time may choose a better one"
    note.write_text(json.dumps(told)[:50], encoding="utf-8")
    assert _kept(note, like, 10.0) is None, "a damaged note is chosen again"
    note.write_text(json.dumps(told), encoding="utf-8")
    monkeypatch.setattr(FGSM, "revision", FGSM.revision + 1)
    assert _kept(note, like, 10.0) is None
