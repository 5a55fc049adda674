"""Attacks on what is odd or cannot be attacked: sizes of nothing and of everything, wrong labels, no gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

Call = Callable[..., Any]
NETWORK = "python:cli_networks:three_classes"
SCORES = "python:cli_networks:scores_alone"
DECISIONS = "python:cli_networks:decisions"
DATA = "npz:images.npz"
QUIET = ("--trust-code", "--device", "cpu", "--quiet", "--no-clean")
SIZED = (
    "fgsm",
    "pgd(steps=5)",
    "apgd(steps=5)",
    "square(queries=20)",
    "random-search(queries=20)",
    "standard",
)


def refused(calipers: Call, *arguments: object, says: str) -> str:
    said = calipers(*arguments)
    assert said.code == 2, said.err
    assert says in said.complaint, said.err
    assert said.out == ""
    assert not Path("runs").exists(), "a run that cannot start leaves no file"
    return str(said.complaint)


def attack(model: str, *words: str, data: str = DATA) -> list[str]:
    return ["attack", model, data, *QUIET, *words]


def rows_of(calipers: Call, run: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = calipers("show", run, "--inputs", "--json").json["inputs"]
    return rows


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SIZED)
def test_a_size_of_0_changes_nothing_and_fools_what_is_wrong_already(
    calipers: Call, workplace: Path, name: str, norm: str
) -> None:
    words = ("--norm", norm, "--eps", "0", "--attack", name, "--run", "a.sqlite", "--save", "a.safetensors")
    said = calipers(*attack(NETWORK, *words))
    assert said.code == 0, said.err
    saved, clean = load_file("a.safetensors"), np.load("images.npz")
    assert np.array_equal(saved["adversarial"], clean["x"].astype(np.float32) / np.float32(255))
    rows = rows_of(calipers, "a.sqlite")
    assert 0 < sum(row["success"] for row in rows) < len(rows) == 30
    for row in rows:
        assert row["success"] == (row["reason"] == "already wrong") == (row["prediction"] != row["label"])
        assert row["distance"] == 0


@pytest.mark.parametrize(("norm", "longest"), [("linf", 1.0), ("l2", 4.0), ("l1", 16.0)])
@pytest.mark.parametrize("name", ["pgd(steps=5)", "apgd(steps=5)", "random-search(queries=20)"])
def test_a_size_beyond_the_box_stays_inside_it(
    calipers: Call, workplace: Path, name: str, norm: str, longest: float
) -> None:
    words = (
        "--norm",
        norm,
        "--eps",
        "1000",
        "--attack",
        name,
        "--run",
        "a.sqlite",
        "--save",
        "a.safetensors",
    )
    said = calipers(*attack(NETWORK, *words))
    assert said.code == 0, said.err
    images = load_file("a.safetensors")["adversarial"]
    assert images.min() >= 0
    assert images.max() <= 1
    rows = rows_of(calipers, "a.sqlite")
    assert any(row["success"] and row["reason"] != "already wrong" for row in rows)
    assert max(row["distance"] for row in rows) <= longest * (1 + 1e-6)


def test_a_label_out_of_range_and_no_label_are_refused(calipers: Call, workplace: Path) -> None:
    images = np.full((6, 1, 4, 4), 100, dtype=np.uint8)
    np.savez("high.npz", x=images, y=np.array([0, 1, 2, 0, 7, 1]))
    np.savez("below.npz", x=images, y=np.array([0, 1, 2, 0, -3, 1]))
    np.savez("bare.npz", x=images)
    words = ("--norm", "l2", "--eps", "0.5", "--attack", "pgd")
    refused(calipers, *attack(NETWORK, *words, data="npz:high.npz"), says="label 7")
    refused(calipers, *attack(NETWORK, *words, data="npz:below.npz"), says="-3")
    refused(
        calipers, *attack(NETWORK, *words, data="npz:bare.npz"), says="input 0 of npz:bare.npz has no label"
    )


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "NaN"), (np.inf, "infinite"), (1.5, "1.5"), (-0.25, "-0.25")]
)
def test_pixels_that_mean_nothing_are_refused(
    calipers: Call, workplace: Path, value: float, says: str
) -> None:
    images = np.full((6, 1, 4, 4), 0.5, dtype=np.float32)
    images[4, 0, 1, 2] = value
    np.savez("bad.npz", x=images, y=np.zeros(6, dtype=np.int64))
    words = ("--norm", "l2", "--eps", "0.5", "--attack", "pgd")
    refused(calipers, *attack(NETWORK, *words, data="npz:bad.npz"), says=says)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("python:cli_networks:in_training_mode", "training mode"),
        ("python:cli_networks:one_class", "class"),
        ("python:cli_networks:nan_scores", "NaN"),
    ],
)
def test_a_model_that_cannot_be_attacked(calipers: Call, workplace: Path, model: str, says: str) -> None:
    refused(calipers, *attack(model, "--norm", "l2", "--eps", "0.5", "--attack", "pgd"), says=says)


WHITE_BOX = [
    *(("--eps", "0.5", "--attack", name) for name in ("fgsm", "pgd", "apgd", "standard")),
    *(("--attack", name) for name in ("ddn", "deepfool", "fmn", "carlini-wagner")),
]


@pytest.mark.parametrize("words", WHITE_BOX, ids=lambda words: words[-1])
def test_a_white_box_attack_on_scores_names_the_views_that_would_work(
    calipers: Call, workplace: Path, words: tuple[str, ...]
) -> None:
    said = refused(calipers, *attack(SCORES, "--norm", "l2", *words), says="gives scores and not gradients")
    for remedy in ("nes", "spsa", "square", "hop-skip-jump"):
        assert remedy in said


@pytest.mark.parametrize(
    "words",
    [
        ("--eps", "0.5", "--attack", "pgd(steps=3)", "--gradient", "nes(20)"),
        ("--eps", "0.5", "--attack", "pgd(steps=3)", "--gradient", "spsa(20)"),
        ("--eps", "0.5", "--attack", "square(queries=20)"),
        ("--attack", "hop-skip-jump(steps=2)"),
    ],
    ids=lambda words: words[-1],
)
def test_what_the_message_names_does_work(calipers: Call, workplace: Path, words: tuple[str, ...]) -> None:
    said = calipers(*attack(SCORES, "--norm", "l2", *words, "--run", "a.sqlite"))
    assert said.code == 0, said.err
    rows = rows_of(calipers, "a.sqlite")
    assert any(row["success"] and row["queries"] > 0 for row in rows)


@pytest.mark.parametrize(
    "words",
    [
        *WHITE_BOX,
        ("--eps", "0.5", "--attack", "square"),
        ("--eps", "0.5", "--attack", "pgd", "--gradient", "nes(20)"),
        ("--attack", "ddn", "--gradient", "spsa(20)"),
    ],
    ids=lambda words: words[-1],
)
def test_an_attack_that_needs_more_than_decisions_names_those_that_do_not(
    calipers: Call, workplace: Path, words: tuple[str, ...]
) -> None:
    said = refused(calipers, *attack(DECISIONS, "--norm", "l2", *words), says="gives decisions and not")
    assert "boundary or hop-skip-jump" in said
    assert "nes or" not in said, "it needs scores"


@pytest.mark.parametrize("name", ["boundary(steps=5)", "hop-skip-jump(steps=2)"])
def test_attacks_on_decisions_do_work(calipers: Call, workplace: Path, name: str) -> None:
    said = calipers(*attack(DECISIONS, "--norm", "l2", "--attack", name, "--run", "a.sqlite"))
    assert said.code == 0, said.err
    assert any(row["success"] and row["queries"] > 0 for row in rows_of(calipers, "a.sqlite"))


def test_a_graph_of_onnx_under_a_white_box_attack_names_the_views_that_would_work(
    calipers: Call, workplace: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx, which writes graphs, is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime, which runs graphs, is not installed")
    import torch
    from cli_networks import three_classes

    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            torch.onnx.export(three_classes(), (torch.zeros(1, 1, 4, 4),), "net.onnx", dynamo=False)
    except ImportError as problem:
        pytest.skip(f"torch cannot write graphs here: {problem}")
    assert onnx.load("net.onnx").graph.node
    refused(
        calipers,
        *attack("onnx:net.onnx", "--norm", "l2", "--eps", "0.5", "--attack", "pgd"),
        says="nes or spsa",
    )
