"""Training from the command line: the weights it writes can be certified, and it goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

Call = Callable[..., Any]


@pytest.fixture
def patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 100 images of 28x28 in two classes: bright above, or bright below."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 60, (100, 1, 28, 28), dtype=np.uint8)
    labels = np.arange(100) % 2
    images[labels == 0, :, :14] += 150
    images[labels == 1, :, 14:] += 150
    np.savez(tmp_path / "train.npz", x=images, y=labels)
    return tmp_path


def recipe(*more: str, epochs: int = 4) -> list[str]:
    return [
        *("train", "noise", "npz:train.npz", "--sigma", "64/256", "--epochs", str(epochs)),
        *("--batch-size", "50", "-o", "net.safetensors", "--device", "cpu", *more),
    ]


def test_what_is_trained_can_be_certified(calipers: Call, patterns: Path) -> None:
    said = calipers(*recipe("--test", "npz:train.npz"), "--json")
    assert said.code == 0, said.err
    assert min(said.json["accuracy"].values()) > 0.9
    assert "sigma=0.25" in said.json["recipe"]
    assert "epoch 4/4" in said.err
    certified = calipers(
        *("certify", said.json["model"], "npz:train.npz", "--sigma", "0.25", "--n", "200", "--limit", "6"),
        *("--batch-size", "100", "--no-compile", "--device", "cpu", "--json"),
    )
    assert certified.json["summary"]["certified_accuracy"][0]["certified"] == 6


def test_consistency_draws_each_image_twice(calipers: Call, patterns: Path) -> None:
    said = calipers(*recipe("--consistency", "20", epochs=1), "--json")
    assert said.code == 0, said.err
    assert "draws=2, consistency=20.0" in said.json["recipe"]


def test_what_is_trained_under_attack_says_how_and_can_be_loaded(calipers: Call, patterns: Path) -> None:
    said = calipers(
        *("train", "adversarial", "npz:train.npz", "--eps", "16/256", "--norm", "l2", "--steps", "2"),
        *("--epochs", "2", "--batch-size", "20", "-o", "net.safetensors", "--device", "cpu"),
        *("--test", "npz:train.npz"),
    )
    assert said.code == 0, said.err
    assert "accuracy 1.0000 on 100 test images, clean" in said.out
    assert "next:  calipers attack file:net.safetensors DATA --norm l2 --eps 16/256" in said.out
    assert "eps=0.0625" in said.err
    assert "accuracy under attack" in said.err
    answered = calipers(
        "train", "adversarial", "npz:train.npz", "--eps", "0.1", "--norm", "l1", "-o", "x.safetensors"
    )
    assert answered.code == 2
    assert "norm is 'l1'" in answered.err


def test_what_is_trained_for_its_lipschitz_constant_can_be_certified_by_it(
    calipers: Call, patterns: Path
) -> None:
    said = calipers(
        *("train", "lipschitz", "npz:train.npz", "--epochs", "4", "--batch-size", "20", "--margin", "64/256"),
        *("-o", "net.safetensors", "--device", "cpu", "--test", "npz:train.npz"),
    )
    assert said.code == 0, said.err
    assert "accuracy 1.0000 on 100 test images, clean" in said.out
    assert "next:  calipers certify file:net.safetensors DATA --lipschitz" in said.out
    assert "margin=0.25" in said.err
    certified = calipers(
        *("certify", "file:net.safetensors", "npz:train.npz", "--lipschitz", "--limit", "6"),
        *("--device", "cpu", "--json"),
    )
    assert certified.code == 0, certified.err
    curve = {
        float(row["radius"]): row["certified"] for row in certified.json["summary"]["certified_accuracy"]
    }
    assert curve[0.25] == 6


def test_an_architecture_whose_layers_cannot_be_kept_from_stretching_is_refused(
    calipers: Call, patterns: Path
) -> None:
    said = calipers("train", "lipschitz", "npz:train.npz", "--arch", "cnn28", "-o", "net.safetensors")
    assert said.code == 2
    assert "conv1 (Conv2d)" in said.complaint
    assert not Path("net.safetensors").exists()


def test_weights_that_are_there_are_never_overwritten(calipers: Call, patterns: Path) -> None:
    Path("net.safetensors").write_text("precious")
    said = calipers(*recipe())
    assert said.code == 2
    assert "net.safetensors is there already" in said.complaint
    assert Path("net.safetensors").read_text() == "precious"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--sigma", "-1"), "negative"),
        (("--sigma", "0.25,0.5"), "is not a number"),
        (("--optimizer", "lion"), "optimizer is 'lion'"),
        (("--arch", "vgg"), "vgg"),
        (("--arch", "resnet20"), "resnet20"),
        (("--epochs", "0"), "epochs is 0"),
        (("--consistency", "5", "--draws", "1"), "draws is 1"),
    ],
)
def test_a_recipe_that_means_nothing(
    calipers: Call, patterns: Path, more: tuple[str, ...], says: str
) -> None:
    said = calipers(*recipe(), *more)
    assert said.code == 2
    assert says in said.complaint
    assert not Path("net.safetensors").exists()


def test_images_without_labels_are_not_trained_on(calipers: Call, patterns: Path) -> None:
    np.savez("train.npz", x=np.zeros((60, 1, 28, 28), dtype=np.uint8))
    said = calipers(*recipe())
    assert said.code == 2
    assert "input 0 has no label" in said.complaint


def test_an_interrupted_training_goes_on_to_the_same_weights(calipers: Call, patterns: Path) -> None:
    arguments = recipe(epochs=10)
    process = subprocess.Popen(
        [sys.executable, "-m", "calipers", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = Path("net.safetensors.checkpoint")
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "to go on:  calipers train noise" in err
    assert not Path("net.safetensors").exists()
    env_threads = _on_one_thread(calipers, arguments)
    assert env_threads.code == 0, env_threads.err
    assert not checkpoint.exists(), "what is finished needs no checkpoint"
    resumed = load_file("net.safetensors")
    Path("net.safetensors").unlink()
    assert _on_one_thread(calipers, arguments).code == 0
    whole = load_file("net.safetensors")
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def _on_one_thread(calipers: Call, arguments: list[str]) -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return calipers(*arguments)
    finally:
        torch.set_num_threads(before)
