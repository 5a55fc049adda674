"""Misfits: each remedy that is told can be followed, and none is told that cannot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calipers.errors import InvalidInput
from calipers.sources.datasets import load_dataset
from calipers.sources.misfits import of_other_classes, of_other_shape, of_other_values


def folder(root: Path, *, size: tuple[int, int], bands: int) -> str:
    (root / "0").mkdir(parents=True)
    shape = (size[1], size[0]) if bands == 1 else (size[1], size[0], bands)
    Image.fromarray(np.full(shape, 90, np.uint8)).save(root / "0" / "0.png")
    return f"folder:{root}"


@pytest.mark.parametrize("size", [(32, 32), (40, 20), (28, 28)])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("options", ["", "?channels=3", "?channels=1", "?size=24&crop=16"])
@pytest.mark.parametrize("wanted", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("told", [True, False])
def test_the_remedy_for_pictures_makes_them_fit(
    tmp_path: Path, size: tuple[int, int], bands: int, options: str, wanted: tuple[int, ...], *, told: bool
) -> None:
    reference = folder(tmp_path / "pictures", size=size, bands=bands) + options
    shape = wanted if told else None
    data = load_dataset(reference, input_shape=shape)
    if data.shape == wanted:
        data.require_fit(input_shape=wanted, num_classes=1000)
        return
    with pytest.raises(InvalidInput, match="has pictures of") as caught:
        data.require_fit(input_shape=wanted, num_classes=1000)
    message = str(caught.value)
    assert "layout" not in message
    assert "shape=" not in message
    mended = message.rpartition(": say ")[2]
    assert load_dataset(mended, input_shape=shape).shape == wanted
    assert load_dataset(mended, input_shape=shape)[0].image.shape == wanted


def test_a_picture_is_told_by_its_sides_and_colour() -> None:
    message = of_other_shape("folder:a?labels=l.csv&size=9&crop=8", (1, 8, 8), (3, 10, 10))
    assert message.endswith(
        "has pictures of 8x8, read in grey, and the model takes 10x10 in colour: "
        "say folder:a?labels=l.csv&size=10&channels=3"
    )
    assert "20x40 (height x width), read in colour" in of_other_shape("hf:a", (3, 20, 40), (3, 8, 8))


def test_what_no_option_does_is_not_told_as_one() -> None:
    assert of_other_shape("folder:a", (3, 8, 8), (3, 8, 9)).endswith(
        ": resize the files themselves to 8 high and 9 wide"
    )
    assert "the model takes inputs of shape 784: pictures have 1 or 3" in of_other_shape(
        "folder:a", (1, 8, 8), (784,)
    )
    assert "take arrays" in of_other_shape("folder:a", (3, 8, 8), (4, 8, 8))
    for name in ("bundled:fashion-mnist", "idx:a", "torchvision:CIFAR10", "mine", "npz:"):
        message = of_other_shape(name, (1, 28, 28), (3, 32, 32))
        assert message.endswith(
            "1x28x28, and the model takes 3x32x32: take a model for these data, or data of its shape"
        )
        assert "?" not in of_other_classes(name, 2, 3) + of_other_values(name, "input 1", "0 to 1")


def test_arrays_are_turned_where_they_hold_as_many_values() -> None:
    assert of_other_shape("npz:a.npz", (28, 28, 1), (1, 28, 28)).endswith("say ?layout= or ?shape=")
    assert of_other_shape("python:a:b", (784,), (1, 28, 28)).endswith("say ?layout= or ?shape=")
    assert of_other_shape("npz:a.npz", (1, 32, 32), (1, 28, 28)).endswith("resize the arrays")


def test_names_and_ranges_are_mapped_where_a_reference_can() -> None:
    assert of_other_classes("folder:a", 1, 3).endswith(
        "has 1 class by name and the model has 3, so their numbers would be a guess: "
        "map names to numbers by ?labels=FILE"
    )
    assert of_other_values("npz:a.npz", "input 3 has values from 0 to 255", "0 to 1") == (
        "npz:a.npz: input 3 has values from 0 to 255, and the model takes 0 to 1: scale them, or say ?range="
    )
