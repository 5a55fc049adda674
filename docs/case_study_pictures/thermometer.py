"""Thermometer codes of clean and adversarial images: `python docs/case_study_pictures/thermometer.py`."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from panels import Panel, answer, draw, save, test_images

from calipers.defenses.base import Row
from calipers.defenses.thermometer import Thermometer
from calipers.defenses.thermometer.encoding import LEVELS, bucket
from calipers.threat.threat_model import Norm, ThreatModel

IMAGES = (3, 5)


def row_of(role: str) -> Row:
    """Take the first row of a role."""
    return next(row for row in Thermometer().rows() if row.role == role)


def draw_thermometer() -> Figure:
    """Draw clean images, the naive and the adaptive attack, and how the adaptive one changes the buckets."""
    target = Thermometer().target()
    x, y = test_images(IMAGES)
    threat = ThreatModel(Norm.LINF, 0.1)
    naive, adaptive = (
        row_of(role).attack(target, x, y, threat, seed=0).adversarial for role in ("naive", "adaptive")
    )
    rows = []
    for number, label in enumerate(y.tolist()):
        moved = bucket(adaptive[number, 0]) - bucket(x[number, 0])
        rows.append(
            [
                answer(image[number], int(target.predict(image)[number]), label)
                for image in (x, naive, adaptive)
            ]
            + [
                Panel(bucket(x[number, 0]) / (LEVELS - 1), "16 levels"),
                Panel(moved / moved.abs().max(), f"up to {int(moved.abs().max())} levels", signed=True),
            ]
        )
    return draw(("clean", "LS-PGA", "BPDA", "what is seen\nof clean", "what BPDA\nchanges there"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_thermometer, "thermometer", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
