"""What moves an adversarially trained network: `python docs/case_study_pictures/adversarial_training.py`."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from panels import Panel, answer, draw, save, test_images

from calipers.defenses.adversarial_training import AdversarialTraining
from calipers.threat.threat_model import Norm, ThreatModel

IMAGES = (0, 2)


def draw_adversarial_training() -> Figure:
    """Draw clean images, what brings down the plain network, and what the same size does to the trained one."""
    defense = AdversarialTraining()
    plain, trained = defense.target("undefended"), defense.target()
    x, y = test_images(IMAGES)
    rows_of = {(row.role, row.family): row for row in defense.rows()}
    found = {}
    for name, target, role, norm in (
        ("plain", plain, "undefended", Norm.LINF),
        ("linf", trained, "adaptive", Norm.LINF),
        ("l2", trained, "adaptive", Norm.L2),
        ("l1", trained, "adaptive", Norm.L1),
    ):
        row = rows_of[role, norm.value]
        found[name] = row.attack(target, x, y, ThreatModel(norm, float(row.eps)), seed=0).adversarial
    rows = []
    for number, label in enumerate(y.tolist()):
        panels: list[Panel] = [answer(x[number], int(trained.predict(x)[number]), label)]
        for name, target in (("plain", plain), ("linf", trained), ("l2", trained), ("l1", trained)):
            panels.append(answer(found[name][number], int(target.predict(found[name])[number]), label))
        rows.append(panels)
    return draw(
        (
            "clean",
            "plain network,\nlinf .1",
            "trained one,\nlinf .1",
            "trained one,\nl2 1.4",
            "trained one,\nl1 10",
        ),
        rows,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_adversarial_training, "adversarial-training", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
