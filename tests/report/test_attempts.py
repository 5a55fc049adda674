"""The summary of an attack: what is undetermined fell or stands, and the words and the interval hold both."""

from dataclasses import replace

import pytest

from calipers.evidence.records import Attempt
from calipers.report.attempts import summarize_attempts
from calipers.statistics.intervals import clopper_pearson_interval
from made_records import made_attempt

ATTEMPT = made_attempt(norm="linf", eps=0.1, success=False, undetermined=False, judge="Judge()")


def attempts(fallen: int, undetermined: int, standing: int) -> list[Attempt]:
    kinds = [(True, False)] * fallen + [(False, True)] * undetermined + [(False, False)] * standing
    return [
        replace(ATTEMPT, index=place, success=success, undetermined=unsure)
        for place, (success, unsure) in enumerate(kinds)
    ]


def test_a_robust_accuracy_with_undetermined_inputs_is_a_range_and_its_interval_holds_both_readings() -> None:
    found = summarize_attempts(attempts(12, 5, 3))
    assert (found.robust_accuracy, found.undetermined) == (0.15, 5)
    assert found.lower == float(clopper_pearson_interval(3, 20, confidence=0.95).lower)
    assert found.upper == float(clopper_pearson_interval(8, 20, confidence=0.95).upper)
    assert "15.00 % to 40.00 % at most at linf 0.1 (95 % interval 3.20 to 63.95)" in found.text()


def test_a_robust_accuracy_without_undetermined_inputs_is_one_number() -> None:
    found = summarize_attempts(attempts(12, 0, 8))
    assert "40.00 % at most at linf 0.1" in found.text() and " to 40" not in found.text()
    assert found.upper == pytest.approx(float(clopper_pearson_interval(8, 20, confidence=0.95).upper), abs=0)
