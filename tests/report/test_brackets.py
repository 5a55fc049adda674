"""Bars and tables of brackets: characters of any terminal, and never more proved than was."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipers.errors import UsageError
from calipers.evidence.bracket import Bracket, bracket, summarize_brackets
from calipers.evidence.contradictions import contradictions
from calipers.report.brackets import bracket_bars, bracket_table, bracket_text, bracket_values
from made_records import made_attempt, made_certificate

PROVED = made_certificate(
    method="LipschitzCertifier()",
    radius=0.25,
    alpha=0.0,
    bound="",
    p_lower=math.nan,
    p_upper=math.nan,
    samples=0,
    budget=0,
    stopping="",
    noise="",
)
FOUND = made_attempt(distance=0.75, eps=None, goal="Untargeted()", judge="Judge()")


def made(lower: float, upper: float, index: int = 0) -> Bracket:
    proved = replace(PROVED, radius=lower, index=index)
    found = None if math.isinf(upper) else replace(FOUND, distance=upper, index=index)
    return Bracket(index, 3, proved, found, attempts=1)


def bar(row: Bracket, *, cells: int = 20, scale: float | None = 1.0) -> str:
    return bracket_bars([row], cells=cells, scale=scale).rows[0][3]


@pytest.mark.parametrize(
    ("lower", "upper", "drawn"),
    [
        (0.25, 0.75, "|#####----------     |"),
        (0.0, 0.5, "|----------          |"),
        (0.5, 0.5, "|##########          |"),
        (0.29, 0.71, "|#####----------     |"),
        (0.25, math.inf, "|#####-------------->|"),
        (0.25, 3.0, "|#####---------------|"),
        (0.0, 0.0, "|                    |"),
        (0.5, 0.25, "|#####!!!!!          |"),
        (0.5, 0.499, "|#########!          |"),
        (2.0, 3.0, "|####################|"),
        (2.0, 1.5, "|###################!|"),
    ],
)
def test_a_bar_is_proved_then_open_then_blank(lower: float, upper: float, drawn: str) -> None:
    assert bar(made(lower, upper)) == drawn


def test_an_input_that_nobody_attacked_is_not_drawn_as_one_where_nothing_was_found() -> None:
    rows = [made(0.25, 0.75), made(0.25, math.inf, 1), replace(made(0.25, math.inf, 2), attempts=0)]
    table = bracket_bars(rows, cells=10, scale=1.0)
    assert [row[3][-2] for row in table.rows] == [" ", ">", "?"]
    assert table.notes[1:] == ("? not attacked",)
    assert not bracket_bars(rows[:2], cells=10, scale=1.0).notes[1:]


@given(st.floats(0, 2), st.floats(0, 2), st.integers(10, 80))
def test_every_bar_has_its_width_and_no_cell_more_than_was_proved(
    lower: float, upper: float, cells: int
) -> None:
    drawn = bar(made(lower, upper), cells=cells)
    assert len(drawn) == cells + 2
    assert drawn.isascii()
    assert drawn.count("#") <= lower * cells
    assert ("!" in drawn) == (lower > upper)
    if lower <= upper:
        assert len(drawn[1:-1].rstrip()) >= min(math.floor(upper * cells), cells)


def test_the_lines_share_the_scale_of_the_largest_jaw() -> None:
    table = bracket_bars([made(0.25, math.inf, 0), made(0.5, 2.0, 1)], cells=16)
    assert [row[3] for row in table.rows] == ["|##------------->|", "|####------------|"]
    assert table.columns[3].split() == ["0", "2.00"]
    lines = table.text().splitlines()
    assert len({line.index("|") for line in lines[2:4]}) == 1
    assert lines[1].index("0") == lines[2].index("|")


def test_numbers_beside_a_bar_are_rounded_outward() -> None:
    row = bracket_bars([made(0.29999, 0.70001)], scale=1.0).rows[0]
    assert (row[2], row[4]) == ("0.299", "0.701")
    assert bracket_bars([made(0.1, math.inf)]).rows[0][4] == "inf"


def test_more_brackets_than_lines_are_thinned_at_equal_steps() -> None:
    rows = [made(0.01 * index, 2.0, index) for index in range(101)]
    table = bracket_bars(rows, most=11)
    assert [int(row[0]) for row in table.rows] == list(range(0, 101, 10))
    assert "11 of 101 inputs" in table.notes[-1]


def test_lines_come_by_index_or_by_radius() -> None:
    rows = [made(0.5, 1.0, 0), made(0.1, 1.0, 1), made(0.5, 0.7, 2)]
    assert [row[0] for row in bracket_bars(rows).rows] == ["0", "1", "2"]
    assert [row[0] for row in bracket_bars(rows, order="radius").rows] == ["1", "2", "0"]


@pytest.mark.parametrize("wrong", [{"cells": 3}, {"most": 0}, {"scale": 0.0}, {"order": "size"}])
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong)))):
        bracket_bars([made(0.1, 0.2)], **wrong)  # type: ignore[arg-type]


def test_the_table_rounds_each_side_its_own_way() -> None:
    rows = [made(0.33333, 0.66666, index) for index in range(20)]
    table = bracket_table(summarize_brackets(rows))
    assert table.rows[0] == ("median lower", "0.333", "0.333 to 0.334")
    assert table.rows[1] == ("median upper", "0.667", "0.666 to 0.667")
    assert table.rows[2][1] == "0.334"
    assert table.rows[3][:2] == ("gap at most 0.25, % of inputs", "0.00")


def test_nothing_found_is_an_infinite_median_and_no_error() -> None:
    table = bracket_table(summarize_brackets([made(0.1, math.inf)]))
    assert table.rows[1] == ("median upper", "inf", "0 to inf")


def test_the_text_shows_every_contradiction_and_json_holds_no_infinity() -> None:
    records = [PROVED, replace(FOUND, distance=0.1), replace(PROVED, index=1)]
    rows, against = bracket(records), contradictions(records)
    text = bracket_text(rows, summarize_brackets(rows), against)
    assert "!" in text
    assert "input 0: class 3 proved below l2 radius 0.25" in text
    assert "input 0: class 7 found at l2 distance 0.1" in text
    values = json.loads(json.dumps(bracket_values(summarize_brackets(rows), against), allow_nan=False))
    assert values["contradictions"]["deterministic"] == 1
    assert values["contradictions"]["error"] is True
    assert values["upper"]["value"] is None
    assert values["lower"]["value"] == 0.25


def test_drawing_brackets_loads_no_torch() -> None:
    code = "import sys, calipers.report.brackets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
