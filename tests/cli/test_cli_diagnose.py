"""`calipers diagnose`: a table, one JSON object, refusals in one line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
PLAIN = "bundled:fashion-cnn28-plain"
DATA = "bundled:fashion-mnist"
SIZED = ("--norm", "linf", "--eps", "0.1")


def test_it_answers_with_one_object(calipers: Call) -> None:
    said = calipers("diagnose", PLAIN, DATA, *SIZED, "--limit", "4", "--budget", "3", "--json")
    assert said.code == 0
    found = said.json
    assert {each["verdict"] for each in found["findings"]} <= {"green", "red", "open"}
    assert {"shattered", "binarization", "more-steps-help"} <= {each["check"] for each in found["findings"]}
    assert found["attacked"] == found["fell"] >= 2
    assert "prescription" not in found


def test_it_answers_with_a_table_and_a_prescription(
    calipers: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = calipers(
        *("diagnose", PLAIN, DATA, *SIZED, "--limit", "4", "--budget", "3", "--prescribe"),
        *("--attack", "pgd(steps=5)", "--gradient", "eot(2, over=gaussian(0.01))"),
    )
    assert said.code == 0
    assert "zero-gradient" in said.out
    assert "inputs that are answered rightly fall to PGD(gradient=EOT(" in said.out
    assert "prescribed: " in said.out
    command = shlex.split(said.out.splitlines()[-1])
    assert command[:4] == ["calipers", "attack", PLAIN, DATA]
    ran = calipers(*command[1:], "--run", "prescribed.sqlite", "--json")
    assert ran.code == 0
    assert ran.json["attack"]["inputs"] == 4


def test_what_means_nothing_is_refused_in_one_line(calipers: Call) -> None:
    assert "budget is 0" in calipers("diagnose", PLAIN, DATA, *SIZED, "--budget", "0").complaint
    assert (
        "DDN looks for the least size"
        in calipers("diagnose", PLAIN, DATA, *SIZED, "--attack", "ddn").complaint
    )
    assert "eps is 0: " in calipers("diagnose", PLAIN, DATA, "--norm", "linf", "--eps", "0").complaint
    assert "norm 'l7'" in calipers("diagnose", PLAIN, DATA, "--norm", "l7", "--eps", "1").complaint


def test_each_check_that_is_red_is_explained_once_and_names_its_page(calipers: Call) -> None:
    said = calipers(
        *("diagnose", "iclr2018:stochastic-activation-pruning", DATA, "--norm", "linf", "--eps", "0.05"),
        *("--sample", "4", "--budget", "2"),
    ).out
    red = {line.split()[1] for line in said.splitlines() if line.startswith("red ")}
    assert "randomized" in red
    pages = [line for line in said.splitlines() if line.startswith("  -> ")]
    assert sorted(pages) == sorted(f"  -> docs/diagnosis/{check}.md" for check in red)
