"""The detector's curve under attack, with and without the leak: `python docs/case_study_pictures/lid.py`."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from panels import CLASSES, INK, STYLE, WRONG, test_images
from PIL import Image
from torch import Tensor

from calipers.attacks.pgd import PGD
from calipers.defenses.lid import LocalIntrinsicDimension
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

IMAGES: Final = 100
BLUE: Final = "#0072B2"
GREY: Final = "#767676"
RATE: Final = 0.05
CURVES: Final = (
    ("C&W, confidence 0", GREY, "-"),
    ("FGSM", GREY, "--"),
    ("high confidence", BLUE, "-"),
    ("together", WRONG, "-"),
)


def examples(count: int) -> tuple[Tensor, dict[str, Tensor], list[str]]:
    """Make the adversarial examples of the defense's rows.

    Args:
        count: of how many test images; those that are classified rightly are taken.

    Returns:
        The clean images, what each attack made of them, and what became of the first under each.
    """
    defense = LocalIntrinsicDimension()
    target, alone = defense.target(), defense.target("undefended")
    x, y = test_images(range(count))
    right = alone.predict(x) == y
    x, y = x[right], y[right]
    made, told = {}, []
    for name, part in zip(
        (name for name, *_ in CURVES), ("C&W", "FGSM", "high confidence", "together"), strict=True
    ):
        row = next(row for row in defense.rows() if part in row.what)
        threat = ThreatModel(Norm.parse(row.norm), float(row.eps) if row.eps else None)
        # to stop just below the threshold would say nothing of other thresholds
        attack = PGD(steps=50, loss="margin", keep=True) if name == "together" else row.attack
        made[name] = attack(target, x, y, threat, seed=0).adversarial
        found = int(target.predict(made[name][:1]))
        told.append("rejected" if found == ABSTAIN else CLASSES[found])
    return x, made, told


def draw_lid() -> Figure:
    """Draw a clean image with its adversarial ones, and the detector's curves as deployed and with the leak."""
    clean, made, told = examples(IMAGES)
    defense = LocalIntrinsicDimension()
    kinds: tuple[tuple[str, Literal["training", "minibatch", "leaky minibatch"]], ...] = (
        ("as deployed", "training"),
        ("own original in the reference", "leaky minibatch"),
        ("the same without it", "minibatch"),
    )
    with mpl.rc_context({**STYLE, "axes.spines.right": False, "axes.spines.top": False}):
        figure = Figure(figsize=(7.4, 4.6), dpi=110, layout="constrained")
        grid = figure.add_gridspec(2, 15, height_ratios=(1, 2))
        pairs = zip(("clean", *made), (clean, *made.values()), ("", *told), strict=True)
        for number, (name, images, below) in enumerate(pairs):
            axes = figure.add_subplot(grid[0, 3 * number : 3 * number + 3])
            axes.imshow(images[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(name, fontsize=9)
            axes.set_xlabel(below)
        for number, (title, reference) in enumerate(kinds):
            axes = figure.add_subplot(grid[1, 5 * number : 5 * number + 5])
            for name, colour, style in CURVES:
                curve = defense.detection(clean, made[name], reference=reference)
                label = f"{name}: {curve.area:.2f}, {100 * curve.at(RATE):.0f} %"
                axes.plot(curve.false_positives, curve.true_positives, style, color=colour, label=label)
            axes.axvline(RATE, color=INK, linewidth=0.6, linestyle=":")
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("clean images rejected")
            if number == 0:
                axes.set_ylabel("adversarial ones rejected")
            axes.legend(fontsize=6, title="area, share at 5 %", title_fontsize=6, loc="lower right")
        figure.draw_without_rendering()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture, in few colours.

    Args:
        arguments: the command line; that of the process if None.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    beside = Path(__file__).parent.parent / "case-study"
    parser.add_argument("-o", "--output", type=Path, default=beside, help="the folder")
    path = parser.parse_args(arguments).output / "lid.png"
    whole = io.BytesIO()
    draw_lid().savefig(whole)
    Image.open(whole).convert("RGB").quantize(64).save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
