"""`reproduce` and `train iclr2018`: what they refuse; one defense, measured, stored and shown again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calipers.runs.store import RunStore

Call = Callable[..., Any]

CIFAR = "bundled:cifar10-resnet20-noise-0.25"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reproduce", "iclr2019"), "study is 'iclr2019': use one of iclr2018"),
        (
            ("reproduce", "iclr2018", "jpeg"),
            "'jpeg' .iclr2018:input-transformations/jpeg is a variant of one.: there are thermometer",
        ),
        (("reproduce", "iclr2018", "pixel_defend"), "'pixel_defend' .did you mean pixel-defend"),
        (("reproduce", "iclr2018", "--quick", "--limit", "3"), "--quick takes 16 images"),
        (
            ("reproduce", "iclr2018", "lid", "--prescribe", "--quick"),
            "--quick leaves out what --prescribe asks for: say --limit 16 in place of --quick",
        ),
        (("reproduce", "iclr2018", "lid", "--budget", "5"), "--budget 5 is the time of --prescribe: add it"),
        (
            ("reproduce", "iclr2018", "lid", "--prescribe", "--budget", "0"),
            "budget is 0: give a number of seconds",
        ),
        (
            ("reproduce", "iclr2018", "thermometer", "--weights", "nowhere"),
            "no file nowhere/.*calipers train iclr2018",
        ),
        (("train", "iclr2018", "thermometer"), "--data is not given"),
        (
            ("reproduce", "iclr2018", "thermometer", "--network", CIFAR, "--data", "folder:images"),
            "thermometer cannot be put around a given network: its network is trained on encoded images",
        ),
        (
            ("reproduce", "iclr2018", "lid", "--network", CIFAR, "--data", "folder:images"),
            "lid has no detector for bundled:cifar10.*calipers train iclr2018 lid --network",
        ),
        (("reproduce", "iclr2018", "--network", CIFAR), "bundled:fashion-mnist has no images of 3x32x32"),
        (
            ("reproduce", "iclr2018", "--network", CIFAR, "--data", "folder:images", "--figure", "a.png"),
            "--figure is of thermometer encoding",
        ),
        (("reproduce", "iclr2018", "--network", "python:net:make"), "python:net:make cannot be put inside"),
        (("train", "iclr2018", "--network", CIFAR), "--data is not given: name training images"),
        (
            (
                "attack",
                f"iclr2018:lid?network={CIFAR}&weights=parts",
                "bundled:fashion-mnist",
                "--norm",
                "linf",
            ),
            "network= takes all that follows it: write weights= before it",
        ),
        (
            ("attack", "iclr2018:nothing", "bundled:fashion-mnist", "--norm", "linf"),
            "no defense of ICLR 2018",
        ),
        (
            ("attack", "iclr2018:thermometer/x", "bundled:fashion-mnist", "--norm", "linf"),
            "thermometer has no variant 'x': there are",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    calipers: Call, here: Path, arguments: tuple[str, ...], words: str
) -> None:
    said = calipers(*arguments)
    assert said.code == 2
    import re

    assert re.search(words, said.complaint), said.complaint
    assert not (here / "runs").exists()


def test_a_defense_is_measured_stored_and_shown_again(calipers: Call, here: Path) -> None:
    command = ("reproduce", "iclr2018", "thermometer", "--limit", "6", "--json")
    said = calipers(*command)
    assert said.code == 0, said.err
    rows = said.json["rows"]
    by_role = {row["role"]: row for row in reversed(rows)}
    assert by_role["matched"]["no_gradient"] > 0
    assert by_role["adaptive"]["robust"] < by_role["matched"]["robust"]
    files = sorted((here / "runs/iclr2018/thermometer").glob("*.sqlite"))
    assert len(files) == len(rows)
    shown = calipers("show", files[0], "--json").json
    assert shown["done"] == 6
    again = calipers(*command).json["rows"]
    assert again == rows


def test_parts_that_were_trained_again_do_not_show_the_old_numbers(calipers: Call, here: Path) -> None:
    from safetensors.torch import load_file, save_file

    from calipers.defenses.parts import BUNDLED

    parts = here / "parts"
    parts.mkdir()
    for part in BUNDLED.glob("*.safetensors"):
        (parts / part.name).write_bytes(part.read_bytes())
    command = (
        "reproduce",
        "iclr2018",
        "cascade",
        "--limit",
        "3",
        "--jobs",
        "1",
        "--weights",
        "parts",
        "--json",
    )
    assert calipers(*command).code == 0
    assert calipers(*command).code == 0
    weights = load_file(parts / "cascade.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, parts / "cascade.safetensors")
    said = calipers(*command)
    assert said.code == 2
    assert "target" in said.complaint


@pytest.mark.slow
def test_a_defense_around_a_given_network_is_measured_stored_and_gone_on_with(
    calipers: Call, here: Path
) -> None:
    network = "bundled:fashion-cnn28-adversarial"
    command = ("reproduce", "iclr2018", "stochastic-activation-pruning", "--network", network, "--limit", "1")
    said = calipers(*command, "--jobs", "1", "--json")
    assert said.code == 0, said.err
    rows = said.json["rows"]
    assert {row["size"] for row in rows} == {"linf 0.1", "linf 0.05"}
    files = sorted((here / "runs/iclr2018/stochastic-activation-pruning").glob("*.sqlite"))
    assert len(files) == len(rows) == 9
    with RunStore.read(files[0]) as store:
        assert store.spec.model.endswith(f"?network={network}")
    assert calipers(*command, "--jobs", "1", "--json").json["rows"] == rows


def test_all_means_those_that_can_be_put_around_a_network(calipers: Call, here: Path) -> None:
    said = calipers(
        "reproduce", "iclr2018", "--network", CIFAR, "--data", "folder:nowhere", "--jobs", "1", "--time", "1s"
    )
    assert "left out: lid has no detector" in said.err
    assert "left out: input-transformations has no patches" in said.err
    assert "of 3 defenses on folder:nowhere" in said.err


def test_prescriptions_that_the_time_did_not_suffice_for_are_counted(calipers: Call, here: Path) -> None:
    done = calipers(
        "reproduce", "iclr2018", "cascade", "--limit", "2", "--jobs", "1", "--time", "0.01s", "--prescribe"
    )
    assert "4 measurements of 1 defense on bundled:fashion-mnist" in done.err
    assert "out of time: 0 of 5 measurements done; to go on:  " in done.err


def test_what_is_measured_already_is_shown_when_the_time_is_over(calipers: Call, here: Path) -> None:
    command = ("reproduce", "iclr2018", "cascade", "--quick", "--jobs", "1")
    whole = calipers(*command, "--json").json["rows"]
    late = calipers(*command, "--time", "0.01s", "--json")
    assert late.json["rows"] == whole and len(whole) == 3
    assert "out of time" not in late.err
