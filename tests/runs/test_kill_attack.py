"""kill -9 in the middle of attacking 62 images by `calipers attack`, then the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calipers.evidence.records import Attempt
from calipers.runs.store import RunStore

INPUTS = 62
WORDS = (
    *(
        "attack",
        "bundled:fashion-cnn28-plain",
        "bundled:fashion-mnist",
        "--norm",
        "l2",
        "--attack",
        "ddn(steps=20)",
    ),
    *("--limit", str(INPUTS), "--batch-size", "4", "--device", "cpu", "--quiet", "--run", "a.sqlite"),
)

Content = tuple[dict[int, Attempt], dict[int, NDArray[np.float32]]]


def content(path: Path) -> Content:
    """Attempts and adversarial inputs, times aside; each input once."""
    with RunStore.read(path) as store:
        attempts = [replace(row, seconds=0.0) for row in store.attempts()]
        tensors = list(store.tensors("adversarial"))
        assert len(store) == len(attempts)
    assert [row.index for row in attempts] == [index for index, _ in tensors]
    return {row.index: row for row in attempts}, dict(tensors)


def same(one: Content, other: Content) -> bool:
    return one[0] == other[0] and all(np.array_equal(one[1][index], other[1][index]) for index in other[1])


def command(jobs: int) -> list[str]:
    return [sys.executable, "-m", "calipers", *WORDS, "--jobs", str(jobs)]


def call(folder: Path, jobs: int) -> None:
    done = subprocess.run(command(jobs), cwd=folder, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Content:
    folder = tmp_path_factory.mktemp("undisturbed")
    call(folder, 1)
    found = content(folder / "a.sqlite")
    assert len(found[0]) == len(found[1]) == INPUTS
    assert all(row.success for row in found[0].values())
    assert len({row.distance for row in found[0].values()}) > INPUTS // 2
    return found


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_attack_goes_on_after_a_kill_and_ends_up_the_same(
    tmp_path: Path, undisturbed: Content, jobs: int
) -> None:
    path = tmp_path / "a.sqlite"
    process = subprocess.Popen(
        command(jobs),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    begun = time.monotonic()
    stored = 0
    while not stored:
        assert time.monotonic() - begun < 200
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
        if path.exists():
            with RunStore.read(path) as store:
                stored = len(store)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    before = content(path)
    assert 0 < len(before[0]) < INPUTS
    assert all(undisturbed[0][index] == row for index, row in before[0].items())
    call(tmp_path, jobs)
    assert same(content(path), undisturbed)
    assert [found.name for found in tmp_path.iterdir()] == ["a.sqlite"]
    with RunStore.read(path) as store:
        assert len(store) == INPUTS
        assert store.progress() == (INPUTS, INPUTS)
