"""Brackets: which record is a jaw, which two contradict each other, and what many of them say together."""

from __future__ import annotations

import csv
import gzip
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipers.errors import CheckFailed, UsageError
from calipers.evidence.bracket import Bracket, bracket, is_upper_jaw, summarize_brackets
from calipers.evidence.contradictions import contradictions
from calipers.evidence.records import Attempt, Certificate
from made_records import made_attempt, made_certificate

PROVED = made_certificate()
EXACT = replace(PROVED, method="LipschitzCertifier()", alpha=0.0, radius=0.4)
FOUND = made_attempt()
MISSED = replace(FOUND, success=False, prediction=3, wins=0, reason="not found")


def test_the_jaws_of_an_input_are_its_radius_and_its_nearest_success() -> None:
    (found,) = bracket([PROVED, FOUND, replace(FOUND, distance=0.7), replace(MISSED, distance=0.6)])
    assert (found.lower_radius, found.upper_radius, found.attempts) == (0.5, 0.7, 3)
    assert found.gap == pytest.approx(0.2)
    assert not found.contradiction


@pytest.mark.parametrize(
    ("records", "lower", "upper"),
    [
        ([PROVED], 0.5, math.inf),
        ([FOUND], 0.0, 0.8),
        ([MISSED], 0.0, math.inf),
        ([replace(PROVED, prediction=-1, radius=0.0), FOUND], 0.0, 0.8),
        ([replace(PROVED, prediction=4)], 0.0, 0.0),
        ([replace(PROVED, prediction=4, radius=0.9), FOUND], 0.0, 0.0),
        ([replace(FOUND, distance=0.0, reason="already wrong")], 0.0, 0.0),
        ([replace(PROVED, label=-1)], 0.0, math.inf),
        ([replace(PROVED, label=-1), FOUND], 0.5, 0.8),
    ],
)
def test_each_side_may_be_missing_or_wrong(
    records: list[Certificate | Attempt], lower: float, upper: float
) -> None:
    (found,) = bracket(records)
    assert (found.lower_radius, found.upper_radius) == (lower, upper)


def test_brackets_come_by_index_and_keep_inputs_apart() -> None:
    found = bracket([replace(FOUND, index=9), PROVED, replace(FOUND, index=2, distance=0.1)])
    assert [(row.index, row.lower_radius, row.upper_radius) for row in found] == [
        (0, 0.5, math.inf),
        (2, 0.0, 0.1),
        (9, 0.0, 0.8),
    ]


@pytest.mark.parametrize("change", [{"target": "u"}, {"norm": "linf"}])
def test_records_of_two_questions_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(change.values()))):
        bracket([PROVED, replace(FOUND, **change)])  # type: ignore[arg-type]


def test_another_input_under_the_same_index_is_refused() -> None:
    with pytest.raises(UsageError, match="input_digest a in one record and b"):
        bracket([replace(PROVED, input_digest="a"), replace(FOUND, input_digest="b")])
    bracket([replace(PROVED, input_digest="a"), FOUND])
    with pytest.raises(UsageError, match="label 3 in one record and 4"):
        bracket([PROVED, replace(FOUND, label=4)])


def test_deterministic_certificates_combine_freely_and_with_one_statistical() -> None:
    (found,) = bracket([EXACT, replace(EXACT, radius=0.45, method="Other()")])
    assert found.lower_radius == 0.45
    (found,) = bracket([EXACT, PROVED])
    assert found.lower_radius == 0.5


@pytest.mark.parametrize("change", [{"alpha": 0.01}, {"method": "Other()"}, {"alpha": math.nan}])
def test_the_best_of_several_statistical_certificates_is_refused_unless_one_is_chosen(
    change: dict[str, object],
) -> None:
    other = replace(PROVED, radius=0.9, index=1, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="choose one by method="):
        bracket([PROVED, other])
    if "method" in change:
        assert [row.lower_radius for row in bracket([PROVED, other], method=PROVED.method)] == [0.5]
    with pytest.raises(UsageError, match=r"there are .*VoteCertifier"):
        bracket([PROVED, other], method="Third()")


def test_two_statistical_certificates_of_one_input_are_refused() -> None:
    with pytest.raises(UsageError, match="several statistical certificates"):
        bracket([PROVED, replace(PROVED, seed=1)])


def test_certificates_that_name_two_classes_are_a_fault() -> None:
    with pytest.raises(CheckFailed, match="of class 3"):
        bracket([EXACT, replace(PROVED, prediction=4)])


@pytest.mark.parametrize(
    ("change", "jaw"),
    [
        ({}, True),
        ({"success": False}, False),
        ({"undetermined": True}, False),
        ({"prediction": 3}, False),
        ({"prediction": -1}, True),
        ({"draws": 100, "wins": 90}, True),
        ({"draws": 100, "wins": 55}, False),
        ({"draws": 100, "wins": 90, "judge": "Judge(alpha=0.001, rule='worst')"}, True),
        ({"draws": 100, "wins": 1, "judge": "Judge(alpha=0.001, rule='worst')"}, False),
        ({"judge": "Judge(draws=1, alpha=0.001, rule='worst', quantize=False)"}, False),
    ],
)
def test_an_attempt_is_an_upper_jaw_only_where_its_success_was_shown(
    change: dict[str, object], jaw: bool
) -> None:
    assert is_upper_jaw(replace(FOUND, **change)) is jaw  # type: ignore[arg-type]


def test_a_contradiction_is_a_class_found_inside_the_open_ball() -> None:
    for distance, inside in ((0.5, False), (math.nextafter(0.5, 0), True), (0.0, True)):
        (found,) = bracket([PROVED, replace(FOUND, distance=distance)])
        assert found.contradiction is inside
        assert bool(contradictions([PROVED, replace(FOUND, distance=distance)]).found) is inside


@pytest.mark.parametrize(
    "change",
    [
        {"prediction": -1},
        {"prediction": 3, "success": False},
        {"undetermined": True, "success": False},
        {"draws": 100, "wins": 60},
    ],
)
def test_what_shows_no_other_class_contradicts_nothing(change: dict[str, object]) -> None:
    near = replace(FOUND, distance=0.1, **change)  # type: ignore[arg-type]
    assert not contradictions([EXACT, near]).found


def test_a_certificate_of_a_wrong_class_is_contradicted_by_the_label() -> None:
    wrong = replace(EXACT, prediction=4)
    assert contradictions([wrong, replace(MISSED, distance=0.3)]).found
    assert not contradictions([wrong, replace(FOUND, prediction=4, distance=0.3)]).found


def test_each_contradiction_of_a_deterministic_certificate_is_an_error_that_shows_both() -> None:
    found = contradictions([EXACT, replace(FOUND, distance=0.3999)])
    assert found.error
    with pytest.raises(CheckFailed, match=r"LipschitzCertifier.*0\.3999.*PGD\(\)") as error:
        found.check()
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)


def test_a_deterministic_contradiction_does_not_hide_behind_a_larger_statistical_radius() -> None:
    found = contradictions([EXACT, PROVED, replace(FOUND, distance=0.3)])
    assert (found.inputs, found.statistical_inputs) == (1, 1)
    assert [one.deterministic for one in found.found] == [True, False]
    assert found.error


def many(inputs: int, contradicted: int, **change: object) -> list[Certificate | Attempt]:
    proved = [replace(PROVED, index=index, **change) for index in range(inputs)]  # type: ignore[arg-type]
    found = [
        replace(FOUND, index=index, distance=0.1 if index < contradicted else 0.9) for index in range(inputs)
    ]
    return [*proved, *found]


def test_statistical_contradictions_are_excused_up_to_the_quantile() -> None:
    # scipy.stats.binom.ppf(0.999, 500, 0.002) = 5
    allowed = contradictions(many(500, 5))
    assert (allowed.allowed, allowed.statistical_inputs, allowed.pairs) == (5, 5, 500)
    assert allowed.rate == pytest.approx(0.002)
    assert not allowed.error
    allowed.check()
    assert allowed.text().count("input 4: class 3 proved") == 1
    beyond = contradictions(many(500, 6))
    with pytest.raises(CheckFailed, match="6 of 500 inputs .* chance explains 5"):
        beyond.check()


def test_the_alpha_of_the_judge_counts_once_an_attempt() -> None:
    records = many(500, 0)
    again = [replace(row, method="FMN()") for row in records if isinstance(row, Attempt)]
    assert contradictions([*records, *again]).rate == pytest.approx(0.003)
    assert contradictions(records, judge_alpha=0.0).rate == pytest.approx(0.001)
    assert contradictions(records, judge_alpha=0.0).allowed == 4


def test_a_lenient_judge_does_not_excuse_what_a_classifier_answered_once() -> None:
    lenient = "Judge(draws=100, alpha=0.5, rule='majority', quantize=False)"
    records = [replace(row, judge=lenient) if isinstance(row, Attempt) else row for row in many(500, 6)]
    found = contradictions(records)
    assert found.allowed == 5
    assert found.error
    # where many draws were judged, the judge is wrong as often as it says
    drawn = [replace(row, draws=100, wins=90) if isinstance(row, Attempt) else row for row in records]
    assert contradictions(drawn).rate == pytest.approx(0.501)


def test_an_unknown_alpha_excuses_nothing() -> None:
    found = contradictions(many(500, 1, alpha=math.nan))
    assert found.allowed == 0
    with pytest.raises(CheckFailed, match="alpha is unknown"):
        found.check()
    contradictions(many(500, 0, alpha=math.nan)).check()


def test_several_attempts_on_one_input_are_one_contradicted_input() -> None:
    records = [*many(500, 5), *(replace(FOUND, distance=0.2, method=f"PGD({n})") for n in range(4))]
    found = contradictions(records)
    assert (len(found.found), found.statistical_inputs) == (9, 5)


def test_the_summary_takes_medians_and_counts_what_is_narrow() -> None:
    rows = bracket(
        [
            *(replace(EXACT, index=index, radius=0.125 * index) for index in range(5)),
            *(replace(FOUND, index=index, distance=0.1875 * index) for index in range(4)),
        ]
    )
    found = summarize_brackets(rows, width=0.125)
    assert (found.inputs, found.wrong, found.proved, found.found) == (5, 1, 4, 4)
    assert found.lower.value == 0.25
    assert found.upper.value == 0.375
    assert found.gap.value == 0.125
    assert found.narrow.value == 0.6, "gaps 0, 1, 2, 3 sixteenths and infinity"
    assert found.contradictions == 0


def test_a_contradiction_is_never_narrow() -> None:
    found = summarize_brackets(bracket([EXACT, replace(FOUND, distance=0.1)]))
    assert (found.contradictions, found.narrow.value) == (1, 0.0)


def test_brackets_without_labels_are_left_out_and_none_is_refused() -> None:
    bare = Bracket(0, -1, replace(PROVED, label=-1), None)
    found = summarize_brackets([bare, *bracket([replace(PROVED, index=1)])])
    assert (found.inputs, found.unlabelled) == (1, 1)
    with pytest.raises(UsageError, match="none of 1 brackets"):
        summarize_brackets([bare])
    with pytest.raises(UsageError, match="no certificates and no attempts"):
        bracket([])


def test_the_interval_of_a_median_is_that_of_the_order_statistics() -> None:
    # n = 20 at 95 %: the 6th and the 15th, as tables of the sign test have it
    rows = bracket([replace(EXACT, index=index, radius=float(index + 1)) for index in range(20)])
    found = summarize_brackets(rows).lower
    assert (found.lower, found.value, found.upper) == (6.0, 10.5, 15.0)
    assert summarize_brackets(rows[:5]).lower.lower == -math.inf, "5 values have no 95 % interval"


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 2), st.booleans()), min_size=1, max_size=30))
def test_no_attempt_lies_below_the_upper_jaw_and_no_certificate_above_the_lower(
    made: list[tuple[int, float, bool]],
) -> None:
    records = [
        replace(EXACT, index=i, radius=size) if proved else replace(FOUND, index=i, distance=size)
        for i, size, proved in made
    ]
    for row in bracket(records):
        radii = [size for i, size, proved in made if i == row.index and proved]
        distances = [size for i, size, proved in made if i == row.index and not proved]
        assert row.lower_radius == max(radii, default=0.0)
        assert row.upper_radius == min(distances, default=math.inf)
        assert row.contradiction == (row.lower_radius > row.upper_radius)


def rows_of(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(io.StringIO(file.read()), delimiter="\t"))


def test_real_certificates_and_real_attacks_agree_and_inflated_radii_are_caught(data_folder: Path) -> None:
    """ResNet-110 at sigma .25 against SmoothPGD at l2 .5: certified .428, attacked .536, no contradiction."""
    folder = data_folder / "smoothing-logs"
    proved = rows_of(folder / "cifar10-resnet110-sigma0.25-certify.tsv.gz")
    found = rows_of(folder / "cifar10-resnet110-l2-0.500-smoothpgd-num_128-predict.tsv.gz")
    attacked = {int(row["idx"]) for row in found}

    def records(scale: float) -> list[Certificate | Attempt]:
        return [
            *(
                replace(
                    PROVED,
                    index=int(row["idx"]),
                    label=int(row["label"]),
                    prediction=int(row["predict"]),
                    radius=scale * float(row["radius"]),
                )
                for row in proved
                if int(row["idx"]) in attacked
            ),
            *(
                replace(
                    FOUND,
                    index=int(row["idx"]),
                    label=int(row["label"]),
                    prediction=int(row["predict"]),
                    distance=0.5,
                    success=row["predict"] not in (row["label"], "-1"),
                    undetermined=row["predict"] == "-1",
                )
                for row in found
            ),
        ]

    rows = bracket(records(1.0))
    assert len(rows) == len(found) == 500
    certified = sum(row.lower_radius >= 0.5 for row in rows) / len(rows)
    standing = sum(row["predict"] == row["label"] for row in found) / len(found)
    assert (certified, standing) == (0.428, 0.536)
    assert not contradictions(records(1.0)).found
    answers = {int(row["idx"]): row["predict"] for row in found}
    by_hand = [
        int(row["idx"])
        for row in proved
        if int(row["idx"]) in attacked
        and row["predict"] != "-1"
        and answers[int(row["idx"])] not in (row["predict"], "-1")
        and 1.5 * float(row["radius"]) > 0.5
    ]
    inflated = contradictions(records(1.5))
    assert sorted(one.certificate.index for one in inflated.found) == sorted(by_hand)
    assert sorted(by_hand) == [40, 1660, 4640, 6980, 9620]
    assert sorted(row.index for row in bracket(records(1.5)) if row.contradiction) == sorted(by_hand)
    assert inflated.allowed == 5, "chance at alpha .001 on both sides may do as much: shown, and no error"
    with pytest.raises(CheckFailed, match="chance explains 5"):
        contradictions(records(2.0)).check()
