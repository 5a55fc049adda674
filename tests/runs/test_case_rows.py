"""The measurements of the case study: those of the lecture's figure are the table's, at other sizes."""

from pathlib import Path

from calipers.runs.case_rows import FIGURE_SIZES, Question, case_rows, figure_rows

QUESTION = Question("bundled:fashion-mnist", Path("runs"), limit=2)


def test_each_curve_of_the_figure_is_the_strongest_attack_that_the_table_has_for_that_classifier() -> None:
    rows = case_rows(["thermometer"], QUESTION)
    table = {row.spec.hash for row in rows if row.role in ("adaptive", "undefended")}
    figure = figure_rows(QUESTION)
    assert len(figure) == 4 * len(FIGURE_SIZES)
    shared = {row.family for row in figure if row.size == "0.1" and row.spec.hash in table}
    assert shared == {"neither", "adversarial training", "both"}
    attacks = {row.family: (row.spec.model, row.spec.method) for row in figure}
    assert attacks["thermometer encoding"] == ("iclr2018:thermometer", attacks["both"][1])
    assert "LogitSpacePGA" in attacks["both"][1]
