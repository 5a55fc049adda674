"""Reproducing: what an interruption leaves is taken up where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from calipers.attacks.fgsm import FGSM
from calipers.runs import run
from calipers.runs.case_rows import Question, case_rows
from calipers.runs.reproduce import clean_wrong, measure_case
from calipers.runs.store import RunStore


def test_a_detector_whose_run_was_killed_at_its_last_record_keeps_its_clean_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question(data="bundled:fashion-mnist", folder=tmp_path, limit=2)
    known = next(row for row in case_rows(["lid"], question) if row.role == "naive" and row.spec.eps)
    row = replace(known, spec=replace(known.spec, method=repr(FGSM())), path=tmp_path / "lid.sqlite")
    carry_out = run.carry_out

    def killed(*arguments: object, **named: object) -> None:
        carry_out(*arguments, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "carry_out", killed)
        with pytest.raises(KeyboardInterrupt):
            list(measure_case([row], question))
    assert list(measure_case([row], question)) == [row]
    with RunStore.read(row.path) as store:
        assert len(list(store.attempts())) == 2
        assert clean_wrong(store) == frozenset()
