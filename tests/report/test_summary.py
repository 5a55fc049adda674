"""The summary of a run: what is printed, what is JSON, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from calipers.errors import UsageError
from calipers.evidence.curves import certified_curve
from calipers.evidence.records import Certificate, Prediction
from calipers.report.summary import (
    compare,
    default_radii,
    summarize,
    summarize_predictions,
)
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore
from made_records import made_certificate

SPEC = RunSpec(
    kind="certify", model="bundled:m", data="bundled:d", method="M()", norm="l2", noise="Gaussian(sigma=0.25)"
)


def row(index: int, radius: float = 0.6, **changes: object) -> Certificate:
    fields: dict[str, object] = {
        "index": index,
        "label": 1,
        "prediction": 1,
        "method": "VoteCertifier(n=1000)",
        "seconds": 0.5,
        "radius": radius,
        "theorem": "Cohen et al. 2019, Theorem 1",
        "selected": 1,
        "counts": (0, 1000, 0),
        "selection": (0, 100, 0),
        "p_lower": 0.99999,
        "p_upper": 0.0,
    }
    return made_certificate(**(fields | changes))


ROWS = [row(0), row(1, 0.3), row(2, 0.9, prediction=0), row(3, 0.0, prediction=-1)]


def test_the_text_says_what_was_asked_and_what_was_found() -> None:
    text = summarize(ROWS, spec=SPEC).text()
    lines = text.splitlines()
    assert lines[0] == "model      bundled:m"
    assert "noise      Gaussian(sigma=0.25)" in lines
    table = [line.split() for line in lines if line[:1] == "0"]
    assert [(cells[0], cells[1], cells[-1]) for cells in table] == [
        ("0", "50.00", "2"),
        ("0.25", "50.00", "2"),
        ("0.5", "25.00", "1"),
        ("0.75", "0.00", "0"),
    ]
    assert "abstentions     1 of 4 (25.00 %)" in lines
    assert "failures        4 x 0.001 = 0.004 expected, at most 1 with probability 0.999" in lines
    assert "p_A quantiles   0.05: 0.9999  0.25: 0.9999  0.5: 0.9999  0.75: 0.9999  0.95: 0.9999" in lines
    assert "average radius  0.224 (certified correct radius, 0 else)" in lines, ".225 rounded down in float64"
    assert "samples         4,000 (mean 1,000, median 1,000 an input)" in lines


def test_the_json_is_strict_and_has_the_same_numbers() -> None:
    found = summarize([*ROWS, row(4, alpha=0.001, p_lower=math.nan)], spec=SPEC, radii=[0.5]).to_dict()
    text = json.dumps(found, allow_nan=False)
    (point,) = json.loads(text)["certified_accuracy"]
    assert (point["radius"], point["accuracy"], point["certified"]) == (0.5, 0.4, 2)
    low, high = point["interval"]
    assert low < 0.4 < high
    assert found["expected_failures"] == 0.005
    assert found["costs"]["samples"] == 5000
    assert found["p_lower_quantiles"]["0.5"] == 0.99999


def test_what_is_unknown_is_said_to_be_and_is_null() -> None:
    imported = [
        row(i, alpha=math.nan, p_lower=math.nan, counts=(), samples=0, noise="", seconds=math.nan)
        for i in range(3)
    ]
    found = summarize(imported, radii=[0.5])
    as_json = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (as_json["alpha"], as_json["expected_failures"], as_json["costs"]["samples"]) == (None, None, None)
    assert as_json["p_lower_quantiles"] == {}
    assert as_json["certified_accuracy"][0]["guaranteed"] is None
    text = found.text()
    assert "alpha    unknown" in text
    assert "imported" in text


def test_without_labels_the_table_counts_what_is_proved() -> None:
    found = summarize([row(0, label=-1), row(1, 0.3, label=-1)], radii=[0.5])
    assert found.table().columns == ("l2 radius", "inputs certified")
    assert found.table().rows == (("0.5", "1"),)
    assert json.loads(json.dumps(found.to_dict()))["certified_accuracy"][0]["interval"] is None


@pytest.mark.parametrize(
    ("largest", "radii"),
    [
        (0.953, (0.0, 0.25, 0.5, 0.75)),
        (0.3, (0.0, 0.25, 0.5, 0.75)),
        (0.0, (0.0, 0.25, 0.5, 0.75)),
        (1.9, (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)),
        (0.018, (0.0, 0.005, 0.01, 0.015)),
        (30.0, (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)),
    ],
)
def test_radii_suit_what_was_proved(largest: float, radii: tuple[float, ...]) -> None:
    assert default_radii([row(0, largest)]) == radii


def test_curves_are_compared_row_by_row() -> None:
    curves = {
        "one-sided": certified_curve([row(0, 0.4), row(1, 0.0, prediction=-1)], [0.0, 0.5]),
        "two-sided": certified_curve([row(0, 0.6), row(1, 0.1)], [0.0, 0.5]),
    }
    table = compare(curves, beside={"clean": {"one-sided": "93.0"}})
    assert table.columns == ("", "clean", "0", "0.5", "abstained", "average radius")
    assert table.rows == (
        ("one-sided", "93.0", "50.00", "0.00", "50.00", "0.200"),
        ("two-sided", "-", "100.00", "50.00", "0.00", "0.350"),
    )


def test_curves_at_different_radii_are_not_compared() -> None:
    curves = {"a": certified_curve([row(0)], [0.0]), "b": certified_curve([row(0)], [0.5])}
    with pytest.raises(UsageError, match="different radii"):
        compare(curves)
    with pytest.raises(UsageError, match="no curves"):
        compare({})


def test_predictions_are_counted() -> None:
    rows = [
        Prediction(i, 1, prediction, "m", "t", "", 0, 0.0, 0.001, (1, 2, 0), 3, "Gaussian(sigma=0.25)")
        for i, prediction in enumerate([1, 1, 0, -1])
    ]
    assert summarize_predictions(rows) == (
        ("inputs", "4"),
        ("abstentions", "1 of 4 (25.00 %)"),
        ("correct", "2 of 4 (50.00 %)"),
        ("wrong", "1 of 4 (25.00 %)"),
    )
    with pytest.raises(UsageError):
        summarize_predictions([])


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    with RunStore.open(tmp_path / "a.run", SPEC) as store:
        store.append(Measured(f"{found.index:032x}", [found]) for found in ROWS)
    code = (
        "import sys\nfrom calipers.report.summary import summarize\nfrom calipers.runs.store import RunStore\n"
        f"assert 'certified' in summarize(RunStore.read({str(tmp_path / 'a.run')!r}).certificates()).text()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_radius_is_printed_above_the_one_that_was_tested() -> None:
    rows = [row(0, 0.66666666)]
    found = summarize(rows, radii=[2 / 3, 0.66666666])
    assert [(cells[0], cells[-1]) for cells in found.table().rows] == [("0.666666", "1"), ("0.666666", "0")]
    assert "0.666666" in compare({"a": found.curve}).columns
    bare = summarize([row(0, 0.66666666, label=-1)], radii=[2 / 3])
    assert bare.table().rows == (("0.666666", "0"),)


def test_shares_of_abstentions_and_errors_are_rounded_up() -> None:
    rows = [row(0), row(1), row(2, 0.0, prediction=-1)]
    text = summarize(rows, radii=[0.5])
    assert ("abstentions", "1 of 3 (33.34 %)") in text.findings()
    assert compare({"a": text.curve}).rows[0][2] == "33.34"
    answers = [
        Prediction(i, 1, prediction, "m", "t", "", 0, 0.0, 0.001, (1, 2, 0), 3, "Gaussian(sigma=0.25)")
        for i, prediction in enumerate([1, 0, -1])
    ]
    assert summarize_predictions(answers)[1:] == (
        ("abstentions", "1 of 3 (33.34 %)"),
        ("correct", "1 of 3 (33.33 %)"),
        ("wrong", "1 of 3 (33.34 %)"),
    )
