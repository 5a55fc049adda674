"""Attacks side by side: what stands under all of them, and that only like is taken together."""

from dataclasses import replace

import pytest

from calipers.errors import UsageError
from calipers.evidence.records import Attempt
from calipers.report.attacks import compare_attacks, together
from made_records import made_attempt

ATTEMPT = made_attempt(norm="linf", eps=0.1, success=False, undetermined=False, judge="Judge()", queries=10)


def run(kinds: str, *, distance: float = 0.1, **changed: object) -> list[Attempt]:
    """Attempts on inputs 0, 1, ...: f fell, u undetermined, s stands."""
    return [
        replace(
            ATTEMPT, index=place, success=kind == "f", undetermined=kind == "u", distance=distance, **changed
        )  # type: ignore[arg-type]
        for place, kind in enumerate(kinds)
    ]


def test_an_input_falls_where_one_attack_brings_it_down() -> None:
    found = together({"a": run("fsuss", method="A()"), "b": run("sfsus", method="B()")})
    assert found is not None
    assert (found.inputs, found.found, found.undetermined, found.robust_accuracy) == (5, 2, 2, 0.2)
    assert found.queries == 20


def test_the_nearer_example_counts() -> None:
    found = together({"a": run("fff", distance=0.09), "b": run("fsf", distance=0.03)})
    assert found is not None
    assert (found.found, found.median_distance, found.quartiles) == (3, 0.03, (0.03, 0.09))


def test_inputs_are_matched_by_their_number_and_not_by_their_place() -> None:
    found = together({"a": run("fss"), "b": run("fss")[::-1]})
    assert found is not None and found.found == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"target": "another"},
        {"norm": "l2"},
        {"eps": 0.2},
        {"judge": "Judge(draws=2)"},
        {"input_digest": "f" * 32},
        {"goal": "x"},
    ],
)
def test_attacks_with_different_questions_are_not_taken_together(changed: dict[str, object]) -> None:
    runs = {"a": run("fs"), "b": run("sf", **changed)}
    assert together(runs) is None
    assert "all together" not in compare_attacks(runs).text()


def test_one_attack_or_other_inputs_are_not_taken_together() -> None:
    assert together({"a": run("fs")}) is None
    assert together({"a": run("fs"), "b": run("fss")}) is None


def test_a_line_an_attack_and_one_of_all() -> None:
    table = compare_attacks({"a": run("fsus", method="A()"), "b": run("sfss", method="B()")})
    assert [row[0] for row in table.rows] == ["a", "b", "all together"]
    assert table.rows[0] == (
        *("a", "linf 0.1", "4", "0", "1", "50.00 % to 75.00 % at most", "6.75 to 99.37", "-", "10"),
    )
    assert table.rows[2][4:6] == ("2", "25.00 % to 50.00 % at most")
    assert not table.notes


def test_a_size_that_was_looked_for_has_no_robust_accuracy() -> None:
    table = compare_attacks({"a": run("ffs", eps=None), "b": run("ff", eps=None)})
    assert table.rows[0][1:8] == ("linf least", "3", "0", "2", "-", "-", "0.100")
    assert "of different inputs" in table.notes[0]
    other = compare_attacks({"a": run("f"), "b": run("f", target="another")})
    assert "of different classifiers" in other.notes[0]


def test_nothing_is_not_compared() -> None:
    with pytest.raises(UsageError, match="there are no attacks to compare"):
        compare_attacks({})
