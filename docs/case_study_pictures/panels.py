"""Rows of images with a word above and a word below each: what every picture of the case study is made of."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from calipers.sources.datasets import load_dataset

CLASSES: Final = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)
INK: Final = "#222222"
WRONG: Final = "#D55E00"
STYLE: Final = {"font.family": "DejaVu Sans", "font.size": 9, "figure.facecolor": "white", "text.color": INK}


class Panel(NamedTuple):
    """One image.

    Args:
        image: (height, width), grey values from 0 to 1, or from -1 to 1 where ``signed``.
        below: a word.
        wrong: whether that word is bad news.
        signed: whether 0 is shown as grey between two colours.
    """

    image: Tensor
    below: str = ""
    wrong: bool = False
    signed: bool = False


def test_images(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Read some of the bundled test images.

    Args:
        numbers: which.

    Returns:
        Images (n, 1, 28, 28) in [0, 1], and classes.
    """
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[number] for number in numbers]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return x, torch.tensor([one.label for one in examples])


def answer(image: Tensor, found: int, label: int) -> Panel:
    """Show an image over what a network takes it for.

    Args:
        image: (1, 28, 28).
        found: the answer.
        label: the right one.

    Returns:
        The panel.
    """
    return Panel(image[0], CLASSES[found], wrong=found != label)


def draw(titles: Sequence[str], rows: Sequence[Sequence[Panel]]) -> Figure:
    """Draw rows of images.

    Args:
        titles: one a column.
        rows: the images.

    Returns:
        The figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.25 * len(titles), 1.5 * len(rows) + 0.35), dpi=110, layout="constrained")
        axes = figure.subplots(len(rows), len(titles), squeeze=False)
        for across, row in zip(axes, rows, strict=True):
            for place, panel in zip(across, row, strict=True):
                values = np.asarray(panel.image.detach(), dtype=np.float64)
                low, shades = (-1.0, "RdBu_r") if panel.signed else (0.0, "gray")
                place.imshow(values, cmap=shades, vmin=low, vmax=1.0, interpolation="nearest")
                place.set_xticks([])
                place.set_yticks([])
                place.set_xlabel(panel.below, color=WRONG if panel.wrong else INK)
        for place, title in zip(axes[0], titles, strict=True):
            place.set_title(title, fontsize=9)
        figure.draw_without_rendering()
    return figure


def save(picture: Callable[[], Figure], name: str, about: str, arguments: Sequence[str] | None) -> None:
    """Write a picture where the command line says.

    Args:
        picture: draws it.
        name: of the file.
        about: the help of the command.
        arguments: the command line; that of the process if None.
    """
    parser = argparse.ArgumentParser(description=about)
    beside = Path(__file__).parent.parent / "case-study"
    parser.add_argument("-o", "--output", type=Path, default=beside, help="the folder")
    folder = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    picture().savefig(path, metadata={"Software": None})
    print(path)
