"""The table of a case study: what counts as fallen, what counts as clean, and what stands in which column."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from calipers.errors import UsageError
from calipers.evidence.records import Attempt
from calipers.report.case_study import CaseLine, case_line, case_tables, summary_table
from calipers.report.distortion import accuracy_by_size
from calipers.statistics.intervals import clopper_pearson_interval
from made_records import made_attempt

FOUND = made_attempt(seconds=2.0, distance=0.75, eps=None, goal="Untargeted()", judge="Judge()")
WRONG = replace(FOUND, index=1, distance=0.0, reason="already wrong")
STANDS = replace(FOUND, index=2, success=False, prediction=3, reason="not found", wins=0)
FLAT = replace(STANDS, index=3, reason="no gradient")
OPEN = replace(FOUND, index=4, success=False, undetermined=True, reason="not found")
PUBLISHED = {
    "data": "CIFAR-10",
    "threat": "linf 8/255",
    "clean": "90",
    "claimed": "80",
    "adaptive": "0",
    "note": "",
}


def line(
    *rows: Attempt, role: str = "adaptive", family: str = "", within: float | None = None, name: str = "d"
) -> CaseLine:
    return case_line(
        rows,
        defense=name,
        authors="A. and B. 2018",
        source="arXiv:0",
        published=PUBLISHED,
        role=role,
        what="PGD",
        family=family,
        size="linf 0.1",
        within=within,
    )


def test_wrong_fallen_and_undetermined_inputs_do_not_stand() -> None:
    found = line(FOUND, WRONG, STANDS, FLAT, OPEN)
    assert found.inputs == 5
    assert found.clean == pytest.approx(4 / 5)
    assert found.robust == pytest.approx(2 / 5)
    assert found.undetermined == 1
    assert found.no_gradient == 1
    assert found.seconds == 10
    exact = clopper_pearson_interval([2, 3], 5, confidence=0.95)
    assert (found.lower, found.upper) == (float(exact.lower[0]), float(exact.upper[1]))
    assert found.distance == 0.75  # the input that is wrong already is not among the distances


def test_what_is_found_beyond_the_size_does_not_count() -> None:
    assert line(FOUND, STANDS, within=0.5).robust == 1
    assert line(FOUND, STANDS, within=0.75).robust == 0.5
    assert line(FOUND, WRONG, within=0.0).robust == 0.5
    assert math.isinf(line(FOUND, within=0.5).distance)


def test_draws_that_fail_are_told_with_and_without_the_attack() -> None:
    found = line(replace(FOUND, draws=10, wins=9, flips=1), replace(STANDS, draws=10, wins=3, flips=2))
    assert found.rate == pytest.approx(0.6)
    assert found.flips == pytest.approx(0.15)
    assert line(FOUND).rate is None


def test_the_summary_takes_the_strongest_of_a_role_and_a_row_for_each_mechanism() -> None:
    lines = [
        line(STANDS, STANDS, role="naive", family="jpeg"),
        line(FOUND, STANDS, role="naive", family="jpeg"),
        line(FOUND, FOUND, role="adaptive", family="jpeg"),
        line(STANDS, STANDS, role="naive", family="crop"),
    ]
    table = summary_table(lines)
    assert [row[0] for row in table.rows] == ["d, jpeg", "d, crop"]
    named = dict(zip(table.columns, table.rows[0], strict=True))
    assert named["naive"] == "50.0"
    assert named["adaptive"] == "0.0"
    assert named["undefended"] == "-"
    assert named["adaptive, in the literature"] == "0"


def test_a_table_for_each_defense_with_what_its_paper_printed() -> None:
    first, second = case_tables([line(FOUND, FLAT), line(STANDS, name="e")])
    assert first.title.startswith("d  A. and B. 2018, arXiv:0, 2 images")
    assert "claimed 80, adaptive 0" in first.notes[0]
    assert "1 of 2 searches saw a gradient of 0" in first.notes[1]
    assert second.title.startswith("e  ")


def test_no_attempts_are_refused() -> None:
    with pytest.raises(UsageError, match="d: PGD has no attempts"):
        line()


def test_what_falls_at_one_size_falls_at_every_larger_one() -> None:
    missed = replace(FOUND, success=False, reason="not found")
    curve = accuracy_by_size({0.1: [FOUND, WRONG, STANDS], 0.2: [missed, WRONG, STANDS]})
    assert [point[:2] for point in curve] == [(0.0, 2 / 3), (0.1, 1 / 3), (0.2, 1 / 3)]


def test_where_neither_was_shown_both_readings_are_told() -> None:
    table = summary_table([line(FOUND, STANDS, OPEN, OPEN)])
    assert dict(zip(table.columns, table.rows[0], strict=True))["adaptive"] == "25.0 to 75.0"
    (table,) = case_tables([line(FOUND, STANDS, OPEN, OPEN)])
    assert "25.0 to 75.0" in table.rows[0]
    assert not any("draws" in column for column in table.columns)


def test_what_a_detector_rejects_stands_under_attack_and_is_wrong_without() -> None:
    found = case_line(
        [FOUND, STANDS, OPEN, WRONG],
        defense="d",
        authors="A.",
        source="arXiv:0",
        published=PUBLISHED,
        role="naive",
        what="PGD",
        family="",
        size="linf 0.1",
        within=None,
        clean_wrong=[WRONG.index],
    )
    assert (found.robust, found.undetermined, found.clean) == (0.5, 0, 0.75)


def test_both_tables_print_the_clean_accuracy_alike_and_not_below_that_under_attack() -> None:
    lines = [replace(line(STANDS, FOUND), clean=15 / 16, robust=15 / 16)]
    (whole,), (each,) = summary_table(lines).rows, case_tables(lines)
    named = dict(zip(each.columns, each.rows[0], strict=True))
    assert named["clean %"] == named["accuracy %"] == whole[1] == "93.8"


def test_what_a_detector_rejects_when_clean_does_not_stand_under_attack_either() -> None:
    # two of the inputs are rejected with no attack, and one of these two stands beside another that falls
    fewer = case_line(
        [replace(STANDS, index=0), replace(OPEN, index=1), replace(OPEN, index=2), replace(FOUND, index=3)],
        defense="d",
        authors="A.",
        source="arXiv:0",
        published=PUBLISHED,
        role="naive",
        what="PGD",
        family="",
        size="linf 0.1",
        within=None,
        clean_wrong=[1, 3],
    )
    assert (fewer.robust, fewer.clean) == (0.5, 0.5)


def test_a_detector_that_draws_does_not_stand_where_half_of_its_draws_fall() -> None:
    half = replace(OPEN, wins=50, draws=100)
    found = case_line(
        [half, replace(STANDS, draws=100)],
        defense="d",
        authors="A.",
        source="arXiv:0",
        published=PUBLISHED,
        role="naive",
        what="PGD",
        family="",
        size="linf 0.1",
        within=None,
        clean_wrong=[],
    )
    assert (found.robust, found.undetermined) == (0.5, 1)


DRAWN = replace(
    STANDS, draws=100, wins=0, flips=0, judge="Judge(draws=100, alpha=0.001, rule='majority', quantize=False)"
)


def test_an_image_that_half_of_the_draws_answer_wrongly_is_not_called_clean() -> None:
    half = replace(DRAWN, flips=50, wins=60, undetermined=True)
    found = line(DRAWN, DRAWN, half, replace(WRONG, draws=100, flips=100, judge=DRAWN.judge))
    assert (found.clean, found.clean_undetermined) == (0.5, 1)
    (table,) = case_tables([found])
    named = dict(zip(table.columns, table.rows[0], strict=True))
    assert named["clean %"] == named["accuracy %"] == "50.0 to 75.0"
    assert (
        dict(zip(summary_table([found]).columns, summary_table([found]).rows[0], strict=True))["clean"]
        == "50.0 to 75.0"
    )
    by_average = replace(half, judge=half.judge.replace("majority", "average"), undetermined=False)
    assert line(DRAWN, by_average).clean == 1


def test_an_image_that_is_open_with_no_attack_does_not_stand_because_the_attack_went_too_far() -> None:
    far = replace(DRAWN, flips=50, wins=100, success=True, distance=2.0, reason="found")
    assert (line(far, DRAWN, within=1.0).robust, line(far, DRAWN, within=1.0).undetermined) == (0.5, 1)
    assert line(far, DRAWN, within=3.0).undetermined == 0


def test_the_interval_of_a_range_holds_both_readings() -> None:
    found = line(FOUND, STANDS, OPEN, OPEN)
    assert found.lower == float(clopper_pearson_interval(1, 4, confidence=0.95).lower)
    assert found.upper == float(clopper_pearson_interval(3, 4, confidence=0.95).upper)


def test_a_figure_of_another_size_than_the_adaptive_attack_says_its_size() -> None:
    adaptive = line(FOUND, STANDS)
    far = replace(line(FOUND, FOUND, role="naive"), size="linf 0.3")
    near = replace(line(STANDS, STANDS, role="naive"), size="linf 0.1 (25.5/255)")
    for naive, told in (((far,), "0.0 (linf 0.3)"), ((far, near), "100.0")):
        table = summary_table([*naive, adaptive])
        assert dict(zip(table.columns, table.rows[0], strict=True))["naive"] == told


def test_a_published_figure_stands_beside_its_own_norm_alone() -> None:
    alike, other = (replace(line(FOUND), family=norm, size=f"{norm} 0.1") for norm in ("linf", "l2"))
    table = summary_table([alike, other])
    assert [row[table.columns.index("adaptive, in the literature")] for row in table.rows] == ["0", "-"]
