"""`attack`, `bracket` and `verify`: what they answer, what they keep, what fails a check, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calipers.runs.store import Measured, RunStore

Call = Callable[..., Any]
PLAIN = "bundled:fashion-cnn28-plain"
NOISY = "bundled:fashion-cnn28-noise-0.25"
DATA = "bundled:fashion-mnist"
PGD = ("--norm", "linf", "--eps", "0.1", "--attack", "pgd(steps=5)", "--limit", "30")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_attack_within_a_size_tells_robust_accuracy_and_its_records_add_up(
    calipers: Call, here: Path
) -> None:
    said = calipers("attack", PLAIN, DATA, *PGD, "--json", "--run", "a.sqlite")
    assert said.code == 0
    attack = said.json["attack"]
    rows = calipers("show", "a.sqlite", "--inputs", "--json").json["inputs"]
    assert attack["inputs"] == len(rows) == 30
    assert attack["found"] == sum(row["success"] for row in rows) == 30
    assert attack["robust_accuracy"] == 0
    assert attack["already_wrong"] == sum(row["reason"] == "already wrong" for row in rows) > 0
    for row in rows:
        assert row["prediction"] != row["label"]
        assert row["distance"] <= 0.1
        assert (row["distance"] == 0) == (row["reason"] == "already wrong")
        assert (row["queries"] == 0) == (row["reason"] == "already wrong")
    again = calipers("attack", PLAIN, DATA, *PGD, "--run", "a.sqlite")
    assert "nothing is left to do" in again.err
    assert "robust accuracy" in again.out
    assert "without any attack" in next(line for line in again.out.splitlines() if "clean accuracy" in line)


def test_a_size_beyond_the_box_is_warned_of_once_and_attacked(calipers: Call, here: Path) -> None:
    asked = ("attack", PLAIN, DATA, "--norm", "linf", "--attack", "fgsm", "--limit", "3", "--batch-size", "1")
    said = calipers(*asked, "--eps", "3", "--run", "a.sqlite")
    assert said.code == 0
    assert said.err.count("warning: eps is 3 and linf 1 holds the whole box of inputs, 0 to 1") == 1
    assert "warning: eps" not in calipers(*asked, "--eps", "8/255", "--run", "b.sqlite").err


def test_the_least_size_is_also_looked_for_where_scores_are_flat_around_the_input(
    calipers: Call, here: Path
) -> None:
    """Training against linf leaves flat regions in l2, which a search along the boundary does not come out of."""
    asked = ("attack", "bundled:fashion-cnn28-adversarial", DATA, "--norm", "l2", "--limit", "12", "--json")
    usual, alone = (calipers(*asked, *more).json["attack"] for more in ((), ("--attack", "ddn")))
    assert usual["found"] == alone["found"] == 12
    assert usual["median_distance"] < 0.9 * alone["median_distance"]


def test_saved_inputs_are_verified_as_they_are(calipers: Call, here: Path) -> None:
    assert calipers("attack", PLAIN, DATA, *PGD, "--save", "adv.safetensors").code == 0
    verify = ("verify", "adv.safetensors", PLAIN, DATA, "--norm", "linf")
    good = calipers(*verify, "--eps", "0.1", "--all", "--json")
    assert good.code == 0
    assert good.json["adversarial"] == 30
    assert good.json["same_target"] is True
    tight = calipers(*verify, "--eps", "0.05")
    assert tight.code == 1
    assert "above eps 0.05" in tight.complaint

    arrays = load_file("adv.safetensors")
    for name, change in {
        "nan": lambda images: images.__setitem__((2, 0, 0, 0), np.nan),
        "box": lambda images: images.__setitem__((2, 0, 0, 0), 1.0001),
    }.items():
        images = arrays["adversarial"].copy()
        change(images)
        save_file(arrays | {"adversarial": images}, f"{name}.safetensors")
    assert "NaN" in calipers("verify", "nan.safetensors", PLAIN, DATA, "--norm", "linf").complaint
    assert (
        "outside the bounds" in calipers("verify", "box.safetensors", PLAIN, DATA, "--norm", "linf").complaint
    )


def test_clean_images_are_no_adversarial_examples(calipers: Call, here: Path) -> None:
    from calipers.sources.datasets import load_dataset

    images = np.stack([example.image for example in load_dataset(DATA).take(limit=30)])
    np.savez("clean.npz", adversarial=images)
    said = calipers("verify", "clean.npz", PLAIN, DATA, "--norm", "linf", "--eps", "0.1", "--json")
    assert said.code == 0
    rows = calipers("show", *_attacked(calipers), "--inputs", "--json").json["inputs"]
    wrong = sum(row["reason"] == "already wrong" for row in rows)
    assert said.json["adversarial"] == wrong
    assert calipers("verify", "clean.npz", PLAIN, DATA, "--norm", "linf", "--all").code == 1


def _attacked(calipers: Call) -> tuple[str]:
    calipers("attack", PLAIN, DATA, *PGD, "--run", "b.sqlite")
    return ("b.sqlite",)


def test_both_jaws_of_a_smoothed_classifier_close_on_one_radius(calipers: Call, here: Path) -> None:
    asked = (NOISY, DATA, "--sigma", "0.25", "--n", "1000", "--limit", "6", "--attack", "ddn(steps=8)")
    said = calipers("bracket", *asked, "--no-compile", "--batch-size", "100", "--run", "b.sqlite", "--json")
    assert said.code == 0
    assert said.json["brackets"]["contradictions"]["error"] is False
    rows = said.json["brackets"]
    assert 0 < rows["lower"]["value"] < rows["upper"]["value"]
    found = calipers("show", "b.sqlite", "--inputs", "--json").json["inputs"]
    kinds = {}
    for row in found:
        kinds.setdefault(row["index"], []).append(row)
    assert len(kinds) == 6
    for proved, tried in kinds.values():
        assert proved["target"] == tried["target"]
        if tried["success"]:
            assert tried["distance"] > proved["radius"] or proved["prediction"] != proved["label"]
    assert "robust radius: proved from below, found from above" in calipers("show", "b.sqlite").out
    again = calipers("bracket", *asked, "--no-compile", "--batch-size", "100", "--run", "b.sqlite")
    assert "nothing is left to do" in again.err


def test_an_unfinished_bracket_says_how_far_each_side_is(calipers: Call, here: Path) -> None:
    asked = (PLAIN, DATA, "--limit", "4", "--attack", "ddn(steps=5)", "--no-clean")
    calipers("bracket", *asked, "--run", "whole.sqlite")
    assert "unfinished" not in calipers("show", "whole.sqlite").out
    with RunStore.read(Path("whole.sqlite")) as whole, RunStore.open(Path("cut.sqlite"), whole.spec) as cut:
        proved, tried = whole.certificates(), whole.attempts()
        cut.note("started", {"total": 8})
        cut.append(Measured(f"{row.index:032x}", [row]) for row in proved)
        before = calipers("show", "cut.sqlite")
        figures = calipers("show", "cut.sqlite", "--json").json
        cut.append(Measured(f"{4 + row.index:032x}", [row]) for row in tried[:3])
    assert "certified %" in before.out
    assert "attack    DDN(gradient=Autograd(), steps=5" in before.out
    assert "attacked  0 of 4 inputs so far, so that no upper radius was found" in before.out
    assert "unfinished: 4 of 4 certificates and 0 of 4 attacks" in before.out
    assert (figures["jaws"], figures["finished"]) == ({"certificates": 4, "attacks": 0}, False)
    after = calipers("show", "cut.sqlite")
    assert "unfinished: 4 of 4 certificates and 3 of 4 attacks" in after.out
    assert [line.endswith("?|    inf") for line in after.out.splitlines() if "|" in line] == [
        *[False] * 3,
        True,
    ]
    assert "? not attacked" in after.out
    listed = {line.split()[0]: line for line in calipers("runs", ".").out.splitlines()}
    assert " 3/4 " in listed["cut.sqlite"] and " 4/4 " in listed["whole.sqlite"], (
        "an input is done with both records"
    )
    assert "LipschitzCertifier l2" in listed["whole.sqlite"]
    beside = calipers("show", "cut.sqlite", "whole.sqlite").out
    assert "cut.sqlite is unfinished: 4 of 4 certificates and 3 of 4 attacks" in beside


def test_a_radius_that_is_too_large_is_a_contradiction_and_exit_code_1(
    calipers: Call, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calipers.certificates.smoothing.noise import Gaussian

    honest = Gaussian.radius
    monkeypatch.setattr(Gaussian, "radius", lambda *given, **named: 6 * honest(*given, **named))
    asked = (NOISY, DATA, "--sigma", "0.25", "--n", "1000", "--limit", "6", "--attack", "ddn(steps=8)")
    said = calipers("bracket", *asked, "--no-compile", "--batch-size", "100", "--run", "b.sqlite")
    assert said.code == 1
    assert "contradict" in said.complaint
    assert "proved below l2 radius" in said.out


def test_both_jaws_of_a_network_itself(calipers: Call, here: Path) -> None:
    said = calipers("bracket", PLAIN, DATA, "--limit", "5", "--attack", "ddn(steps=20)", "--json")
    assert said.code == 0
    figures = said.json["brackets"]
    assert 0 < figures["lower"]["value"] < 0.02 < figures["upper"]["value"] < 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--norm", "linf", "--eps", "-0.1"), "-0.1"),
        (("--norm", "linf", "--eps", "much"), "much"),
        (("--norm", "l7", "--eps", "0.1"), "norm 'l7' is unknown"),
        (("--norm", "linf", "--eps", "0.1", "--attack", "magic"), "attack is 'magic'"),
        (("--norm", "linf", "--eps", "0.1", "--attack", "pgd(steps=0)"), "steps is 0"),
        (("--norm", "linf", "--eps", "0.1", "--attack", "pgd(stops=3)"), "stops"),
        (("--norm", "linf", "--attack", "pgd"), "eps is not given"),
        (("--norm", "l1", "--eps", "0.1", "--attack", "hop-skip-jump"), "norm is l1"),
        (("--norm", "linf", "--eps", "0.1", "--attack", "pgd", "--gradient", "eot(0)"), "samples 0"),
        (("--norm", "linf", "--eps", "0.1", "--attack", "pgd", "--gradient", "guess"), "gradient 'guess'"),
        (
            ("--norm", "linf", "--eps", "0.1", "--attack", "pgd", "--gradient", "bpda(nowhere=identity)"),
            "nowhere",
        ),
        (("--norm", "linf", "--eps", "0.1", "--attack", "pgd", "--rule", "luck"), "rule is 'luck'"),
        (("--norm", "linf", "--eps", "0.1", "--attack", "pgd", "--draws", "0"), "draws is 0"),
        (
            ("--norm", "linf", "--eps", "0.1", "--attack", "pgd", "--gradient", "bpda(x=antigravity:fly)"),
            "--trust-code",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line_and_leaves_no_file(
    calipers: Call, here: Path, words: tuple[str, ...], said: str
) -> None:
    found = calipers("attack", PLAIN, DATA, "--limit", "3", *words)
    assert found.code == 2
    assert said in found.complaint
    assert not list(here.rglob("*.sqlite"))


def test_a_file_that_is_there_is_not_written_over(calipers: Call, here: Path) -> None:
    Path("adv.safetensors").write_text("mine")
    found = calipers("attack", PLAIN, DATA, *PGD, "--save", "adv.safetensors")
    assert found.code == 2
    assert "is there already" in found.complaint
    assert Path("adv.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        (b"junk", "cannot be read"),
        ({"images": np.zeros((1, 1, 28, 28))}, "'adversarial'"),
    ],
)
def test_a_file_that_holds_no_adversarial_inputs_is_refused(
    calipers: Call, here: Path, content: Any, said: str
) -> None:
    path = Path("x.npz")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    found = calipers("verify", path, PLAIN, DATA, "--norm", "linf")
    assert found.code == 2
    assert said in found.complaint


def test_an_attack_of_workers_finds_what_one_process_finds(calipers: Call, here: Path) -> None:
    one = calipers("attack", PLAIN, DATA, *PGD, "--run", "one.sqlite", "--batch-size", "4", "--json")
    two = calipers(
        "attack", PLAIN, DATA, *PGD, "--run", "two.sqlite", "--batch-size", "4", "--jobs", "2", "--json"
    )
    assert one.code == two.code == 0
    rows = [
        json.dumps(_timeless(calipers("show", f"{name}.sqlite", "--inputs", "--json")))
        for name in ("one", "two")
    ]
    assert rows[0] == rows[1]


def _timeless(said: Any) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in row.items()
            if name not in ("seconds", "queries", "forwards", "backwards")
        }
        for row in said.json["inputs"]
    ]


def test_several_attacks_are_set_side_by_side_and_taken_together(calipers: Call, here: Path) -> None:
    asked = ("attack", PLAIN, DATA, "--norm", "linf", "--eps", "0.02", "--limit", "6")
    assert calipers(*asked, "--attack", "fgsm", "--run", "a.sqlite").code == 0
    assert calipers(*asked, "--attack", "pgd(steps=3)", "--run", "b.sqlite").code == 0
    said = calipers("show", "a.sqlite", "b.sqlite", "--json")
    assert said.code == 0
    alone = [run["attack"]["found"] for run in said.json["runs"]]
    assert max(alone) <= said.json["together"]["found"] <= sum(alone)
    lines = calipers("show", "a.sqlite", "b.sqlite").out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["a.sqlite", "b.sqlite", "all together"]
    assert lines[5].startswith("a.sqlite: bundled:fashion-cnn28-plain, bundled:fashion-mnist, FGSM(")
    listed = calipers("runs", ".").out.splitlines()
    assert "FGSM linf 0.02" in listed[1] and " 6/6 " in listed[1]
    assert "PGD linf 0.02" in listed[2]


def test_a_search_that_failed_has_no_distance_in_the_table(calipers: Call, here: Path) -> None:
    asked = ("attack", PLAIN, DATA, "--norm", "linf", "--eps", "0.001", "--limit", "2", "--attack", "fgsm")
    assert calipers(*asked, "--run", "a.sqlite").code == 0
    rows = [line.split() for line in calipers("show", "a.sqlite", "--inputs").out.splitlines()[-2:]]
    assert [row[3:5] for row in rows] == [["stands", "-"], ["stands", "-"]]
