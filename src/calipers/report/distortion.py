"""The lecture's figure: accuracy against distortion, a curve a classifier, with its confidence band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from calipers.errors import MissingExtra, StoreNotWritable
from calipers.evidence.records import Attempt
from calipers.statistics.intervals import clopper_pearson_interval

__all__ = ["Curve", "accuracy_by_size", "draw"]

Curve = Sequence[tuple[float, float, float, float]]
"""Points of a curve: size, share that stands, and the ends of its interval."""

# The palette of Okabe and Ito, which people with any kind of colour vision tell apart.
_STYLES = (("#767676", ":"), ("#D55E00", "-"), ("#0072B2", "--"), ("#009E73", "-."))


def accuracy_by_size(runs: Mapping[float, Sequence[Attempt]], *, confidence: float = 0.95) -> Curve:
    """Join the attempts of one classifier at several sizes: what falls at one falls at every larger one.

    Args:
        runs: attempts by size, of the same inputs at each.
        confidence: of each interval.

    Returns:
        The curve, from size 0 on.
    """
    sizes = sorted(runs)
    first = runs[sizes[0]]
    fallen = {row.index for row in first if row.reason == "already wrong"}
    points = [_point(0.0, len(first) - len(fallen), len(first), confidence)]
    for size in sizes:
        fallen |= {row.index for row in runs[size] if row.success or row.undetermined}
        points.append(_point(size, len(first) - len(fallen), len(first), confidence))
    return points


def draw(curves: Mapping[str, Curve], path: Path, *, title: str) -> None:
    """Draw curves into a picture.

    Args:
        curves: by name.
        path: the file; its suffix says the format.
        title: what stands above.

    Raises:
        MissingExtra: if matplotlib is not installed.
        StoreNotWritable: if the file cannot be written.
    """
    try:
        figure_class: Any = import_module("matplotlib.figure").Figure
    except ImportError as problem:
        raise MissingExtra("matplotlib", extra="charts") from problem
    figure = figure_class(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, curve), (colour, line) in zip(curves.items(), _STYLES, strict=False):
        sizes = [point[0] for point in curve]
        axes.plot(
            sizes, [100 * point[1] for point in curve], line, color=colour, marker="o", ms=3, label=name
        )
        axes.fill_between(
            sizes,
            [100 * point[2] for point in curve],
            [100 * point[3] for point in curve],
            color=colour,
            alpha=0.12,
            lw=0,
        )
    axes.set(xlabel="distortion, linf, in units of [0, 1]", ylabel="accuracy under attack, %", ylim=(0, 100))
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as problem:
        raise StoreNotWritable(f"{path} cannot be written ({problem}): choose another place") from None


def _point(size: float, standing: int, inputs: int, confidence: float) -> tuple[float, float, float, float]:
    interval = clopper_pearson_interval(standing, inputs, confidence=confidence)
    return size, standing / inputs, float(interval.lower), float(interval.upper)
