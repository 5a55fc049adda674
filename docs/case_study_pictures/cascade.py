"""One step and many against cascade training: `python docs/case_study_pictures/cascade.py`."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from panels import answer, draw, save, test_images

from calipers.defenses.cascade import Cascade
from calipers.threat.threat_model import Norm, ThreatModel

IMAGES = (1, 4)


def draw_cascade() -> Figure:
    """Draw clean images, one step, the naive attack and the adaptive one."""
    defense = Cascade()
    target = defense.target()
    x, y = test_images(IMAGES)
    attacks = {row.role: row.attack for row in defense.rows()}
    threat = ThreatModel(Norm.LINF, 0.1)
    shown = [x] + [
        attacks[role](target, x, y, threat, seed=0).adversarial for role in ("ablation", "naive", "adaptive")
    ]
    rows = [
        [answer(image[number], int(target.predict(image)[number]), label) for image in shown]
        for number, label in enumerate(y.tolist())
    ]
    return draw(("clean", "one step", "PGD-40", "Standard"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_cascade, "cascade", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
