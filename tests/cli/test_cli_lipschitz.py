"""`calipers lipschitz` and `certify --lipschitz`: bounds from both sides, radii, refusals in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
PLAIN = "bundled:fashion-cnn28-plain"
DATA = "bundled:fashion-mnist"


def test_the_constant_lies_between_its_bounds_and_each_layer_too(calipers: Call) -> None:
    said = calipers("lipschitz", PLAIN, "--samples", "4", "--steps", "2", "--json")
    assert said.code == 0
    found = json.loads(said.out)
    assert 0 < found["lower"] < found["upper"] <= found["product"]
    linear = [layer for layer in found["layers"] if layer["lower"] is not None]
    assert [layer["kind"] for layer in linear] == ["truediv + Conv2d", "Conv2d", "Conv2d", "Linear", "Linear"]
    for layer in linear:
        assert layer["lower"] <= layer["upper"] <= 1.01 * layer["lower"]


def test_the_lower_bound_may_be_left_out(calipers: Call) -> None:
    said = calipers("lipschitz", PLAIN, "--samples", "0", "--norm", "linf")
    assert said.code == 0
    assert "linf constant" in said.out
    assert "at least" not in said.out.splitlines()[-1]


def test_certify_by_a_constant_and_show_what_each_radius_is_made_of(calipers: Call, tmp_path: Path) -> None:
    run = tmp_path / "l.sqlite"
    said = calipers("certify", PLAIN, DATA, "--lipschitz", "--limit", "20", "--run", str(run))
    assert said.code == 0
    assert "in real arithmetic of the weights" in said.out
    assert "recertify" not in said.out
    shown = calipers("show", str(run), "--inputs", "--json")
    rows = json.loads(shown.out)["inputs"]
    assert len(rows) == 20
    for row in rows:
        assert row["alpha"] == 0
        assert row["radius"] <= row["margin"] / row["constant"]
        assert row["radius"] == pytest.approx(row["margin"] / row["constant"], rel=1e-5)
    assert "margin" in calipers("show", str(run), "--inputs").out
    again = calipers("certify", PLAIN, DATA, "--lipschitz", "--limit", "20", "--run", str(run))
    assert "nothing is left to do" in again.err
    refused = calipers("recertify", str(run), "--alpha", "0.01")
    assert refused.code == 2
    assert "proved by a Lipschitz constant" in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("certify", PLAIN, DATA), "neither is given of --sigma"),
        (("certify", PLAIN, DATA, "--lipschitz", "--sigma", "0.25"), "both are given of --sigma"),
        (("certify", PLAIN, DATA, "--lipschitz", "--n", "100"), "--n means nothing with --lipschitz"),
        (
            ("certify", PLAIN, DATA, "--sigma", "0.25", "--rule", "vector"),
            "--rule means nothing with --sigma",
        ),
        (("certify", PLAIN, DATA, "--lipschitz", "--method", "power"), "method is 'power'"),
        (("certify", PLAIN, DATA, "--lipschitz", "--rule", "best-of"), "rule is 'best-of'"),
        (("certify", PLAIN, DATA, "--lipschitz", "--precision", "bf16"), "precision is bf16"),
        (("lipschitz", PLAIN, "--norm", "l0"), "norm is l0"),
        (("lipschitz", PLAIN, "--norm", "l7"), "norm 'l7' is unknown"),
        (("lipschitz", PLAIN, "--samples", "-1"), "samples is -1"),
        (("lipschitz", PLAIN, "--method", "power"), "method is 'power'"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(
    calipers: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = calipers(*words)
    assert found.code == 2
    assert said in found.err
    assert found.err.strip().splitlines()[-1].startswith("calipers: ")
    assert not list(tmp_path.rglob("*.sqlite"))
