"""`reproduce` and `train iclr2018`: what they refuse; one defense, measured, stored and shown again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


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
            "no defense of ICLR 2018 is called 'jpeg': there are thermometer",
        ),
        (("reproduce", "iclr2018", "--quick", "--limit", "3"), "--quick takes 16 images"),
        (
            ("reproduce", "iclr2018", "thermometer", "--weights", "nowhere"),
            "no file nowhere/.*calipers train iclr2018",
        ),
        (("train", "iclr2018", "thermometer"), "--data is not given"),
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
