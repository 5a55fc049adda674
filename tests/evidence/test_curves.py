"""Curves: the counts of the field, exact intervals, and the statement that subtracts failures."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipers.errors import UsageError
from calipers.evidence.curves import certified_curve
from calipers.evidence.records import Certificate
from made_records import made_certificate

BASE = made_certificate(method="M()")


def rows(*changes: dict[str, object]) -> list[Certificate]:
    return [replace(BASE, index=index, **change) for index, change in enumerate(changes)]  # type: ignore[arg-type]


def test_an_input_counts_if_its_class_is_right_and_its_radius_reaches() -> None:
    found = certified_curve(
        rows(
            {"radius": 0.5},
            {"radius": 0.49},
            {"prediction": 4, "radius": 2.0},
            {"prediction": -1, "radius": 0.0},
        ),
        [0.0, 0.5, 1.0],
    )
    assert [point.certified for point in found.points] == [2, 1, 0]
    assert [point.accuracy for point in found.points] == [0.5, 0.25, 0.0]
    assert [point.proved for point in found.points] == [3, 2, 1]
    assert found.abstentions == 1
    assert found.average_radius == pytest.approx((0.5 + 0.49) / 4)


def test_an_abstention_on_an_input_without_label_is_not_correct() -> None:
    found = certified_curve(rows({"prediction": -1, "label": -1, "radius": 0.0}, {}), [0.0])
    assert (found.inputs, found.labelled) == (2, 1)
    assert found.points[0].accuracy == 1.0


def test_without_labels_there_is_no_accuracy_but_what_is_proved() -> None:
    found = certified_curve(rows({"label": -1}, {"label": -1, "radius": 0.2}), [0.0, 0.4])
    assert [(point.proved, point.accuracy, point.guaranteed) for point in found.points] == [
        (2, None, None),
        (1, None, None),
    ]
    assert found.average_radius is None


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    found = certified_curve(rows(*[{}] * 8, *[{"prediction": 0}] * 2), [0.0])
    # The digits are those of R, for 8 successes of 10.
    assert found.points[0].lower == pytest.approx(0.4439045, abs=1e-7)
    assert found.points[0].upper == pytest.approx(0.9747893, abs=1e-7)


def test_the_statement_subtracts_the_quantile_of_the_failures() -> None:
    found = certified_curve(rows(*[{}] * 400, *[{"prediction": 0}] * 100), [0.25])
    assert found.expected_failures == 0.5
    assert found.failures_allowed == 4, ".8 points of 500 at alpha = rho = .001"
    assert found.points[0].guaranteed == 396 / 500


def test_a_deterministic_certificate_loses_nothing() -> None:
    found = certified_curve(rows({"alpha": 0.0}, {"alpha": 0.0}), [0.5])
    assert (found.failures_allowed, found.points[0].guaranteed) == (0, 1.0)


def test_an_unknown_alpha_gives_no_statement() -> None:
    found = certified_curve(rows({"alpha": math.nan}, {"alpha": math.nan}), [0.5])
    assert (found.alpha, found.expected_failures, found.failures_allowed) == (None, None, None)
    assert found.points[0].guaranteed is None
    assert found.points[0].accuracy == 1.0


def test_quantiles_of_p_lower_leave_out_what_is_unknown() -> None:
    found = certified_curve(
        rows({"p_lower": 0.2}, {"p_lower": 0.4}, {"p_lower": 0.6}, {"p_lower": math.nan}), [0.0]
    )
    assert found.p_lower[2] == 0.4
    assert certified_curve(rows({"p_lower": math.nan}), [0.0]).p_lower == ()


@pytest.mark.parametrize(
    "change", [{"target": "u"}, {"norm": "l1"}, {"alpha": 0.01}, {"bound": "one-sided"}, {"votes": "soft"}]
)
def test_certificates_of_two_questions_are_not_mixed(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        certified_curve(rows({}, change), [0.0])


def test_an_input_with_two_certificates_is_refused() -> None:
    with pytest.raises(UsageError, match="2 certificates are of 1 inputs"):
        certified_curve([BASE, BASE], [0.0])


@pytest.mark.parametrize("radius", [-0.1, math.nan, math.inf])
def test_a_radius_that_is_none_is_refused(radius: float) -> None:
    with pytest.raises(UsageError, match=str(radius)):
        certified_curve([BASE], [0.5, radius])


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(-1, 2), st.integers(0, 2)), min_size=1, max_size=40),
    st.lists(st.floats(0, 3), min_size=2, max_size=6),
)
def test_accuracy_falls_with_the_radius_and_lies_in_its_interval(
    found: list[tuple[float, int, int]], radii: list[float]
) -> None:
    made = rows(*[{"radius": r if p >= 0 else 0.0, "prediction": p, "label": y} for r, p, y in found])
    points = certified_curve(made, sorted(radii)).points
    for point in points:
        assert point.accuracy is not None
        assert point.lower is not None
        assert point.upper is not None
        assert point.guaranteed is not None
        assert point.lower <= point.accuracy <= point.upper
        assert point.guaranteed <= point.accuracy
        assert point.certified <= point.proved
    assert all(a.certified >= b.certified for a, b in pairwise(points))


def test_failures_are_bounded_among_all_certificates_and_not_the_labelled_ones_alone() -> None:
    """10,000 certificates at alpha = .001 fail 10 times on average and at most 21 times, labelled or not."""
    many = [replace(BASE, index=index, label=3 if index < 10 else -1) for index in range(10_000)]
    found = certified_curve(many, [0.5])
    assert (found.inputs, found.labelled, found.failures_allowed) == (10_000, 10, 21)
    assert found.points[0].guaranteed == 0.9, "of the ten that are labelled, one may fail"
