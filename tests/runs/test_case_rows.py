"""Rows of a case study: each run has a file of its own, and so has each revision of its attack."""

from __future__ import annotations

from pathlib import Path

import pytest

from calipers.attacks.standard import Standard
from calipers.errors import UsageError
from calipers.runs.case_rows import Question, case_rows, defense_names


def test_a_revised_attack_does_not_show_what_the_earlier_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question(data="bundled:fashion-mnist", folder=tmp_path, limit=2)
    before = {row.path: row for row in case_rows(["adversarial-training"], question)}
    monkeypatch.setattr(Standard, "revision", Standard.revision + 1)
    after = {row.path: row for row in case_rows(["adversarial-training"], question)}
    shared = before.keys() & after.keys()
    assert len(before) == len(after)
    assert {before[path].spec.method.partition("(")[0] for path in shared} == {"PGD"}
    assert [row.spec for row in after.values()] == [row.spec for row in before.values()]


def test_defenses_come_in_the_order_of_the_case_study_and_by_their_names() -> None:
    assert defense_names(["lid", "thermometer"]) == ("thermometer", "lid")
    assert len(defense_names([])) == 9
    with pytest.raises(UsageError, match="no defense of ICLR 2018 is called 'nothing'"):
        defense_names(["nothing"])
