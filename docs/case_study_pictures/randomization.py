"""Random patterns of an image, and what brings all of them down: `python docs/case_study_pictures/randomization.py`."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from panels import Panel, answer, draw, save, test_images
from torch import Tensor

from calipers.defenses.randomization import PATTERNS, answers_by_pattern
from calipers.runs.catalog import named_defense
from calipers.threat.threat_model import Norm, ThreatModel

IMAGES = (0, 2)


def _wrong(answers: Tensor, number: int, label: int) -> Panel:
    """Say in how many of all draws an answer is wrong."""
    chances = torch.tensor([chance for _, chance in PATTERNS.patterns()], dtype=torch.float64)
    share = float(chances @ (answers[:, number] != label).double())
    return Panel(torch.zeros(1, 1), f"wrong in {100 * share:.0f} %", wrong=share > 0.5)


def draw_randomization() -> Figure:
    """Draw clean images, two patterns of each, and the images of a naive and of the adaptive attack in a pattern."""
    defense = named_defense("randomization")  # the catalog knows how its references are loaded
    target, bare = defense.target(), defense.target("undefended")
    x, y = test_images(IMAGES)
    rows_of = {row.role: row for row in reversed(defense.rows())}
    made = {}
    for role in ("naive", "adaptive"):
        row = rows_of[role]
        threat = ThreatModel(Norm.parse(row.norm), float(row.eps) if row.eps else None)
        made[role] = row.attack(target, x, y, threat, seed=0).adversarial
    rows = []
    for number, label in enumerate(y.tolist()):
        patterns = [PATTERNS.members()[place].transform(x) for place in (3, 26)]
        panels = [answer(x[number], label, label)]
        panels += [
            Panel(moved[number, 0], below)
            for moved, below in zip(patterns, ("28 of 31", "30 of 31"), strict=True)
        ]
        for role in ("naive", "adaptive"):
            shares = _wrong(answers_by_pattern(bare, made[role]), number, label)
            shown = PATTERNS.members()[20].transform(made[role])[number, 0]
            panels.append(Panel(shown, shares.below, shares.wrong))
        rows.append(panels)
    titles = ("clean", "a pattern", "another", "DeepFool on the\nbare network", "PGD, EOT,\nlinf .1")
    return draw(titles, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_randomization, "randomization", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
