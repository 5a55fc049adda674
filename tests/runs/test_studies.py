"""Saved adversarial inputs judged again: a randomized classifier by its majority, and no input without a label."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from calipers.errors import InvalidInput
from calipers.runs.studies import verify

NETWORKS = str(Path(__file__).parents[1] / "cli")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [NETWORKS, *sys.path])
    return tmp_path


def _saved(rates: list[float], labels: list[int]) -> None:
    images = np.zeros((len(rates), 1, 4, 4), dtype=np.float32)
    np.savez("data.npz", x=images, y=np.array(labels))
    images[:, 0, 0, 0] = rates
    np.savez("adv.npz", adversarial=images)


def test_one_lucky_draw_of_a_randomized_classifier_is_no_adversarial_example(here: Path) -> None:
    _saved([0.3] * 20 + [0.9] * 20, [0] * 40)
    told = [
        verify(
            Path("adv.npz"),
            model="python:cli_networks:coin",
            data="npz:data.npz",
            norm="linf",
            eps=None,
            trust_code=True,
        )
        for _ in range(2)
    ]
    assert [row.holds for row in told[0].rows] == [False] * 20 + [True] * 20
    assert all(row.fault.startswith("answered by its label in ") for row in told[0].rows[:20])
    assert told[0].rows == told[1].rows


def test_an_input_without_a_label_is_fooled_by_nothing(here: Path) -> None:
    _saved([0.9], [-1])
    with pytest.raises(InvalidInput, match="has no label"):
        verify(
            Path("adv.npz"),
            model="python:cli_networks:coin",
            data="npz:data.npz",
            norm="linf",
            eps=None,
            trust_code=True,
        )
