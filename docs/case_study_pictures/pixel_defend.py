"""Purified images, clean and adversarial: `python docs/case_study_pictures/pixel_defend.py`."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from panels import Panel, answer, draw, save, test_images
from torch import nn

from calipers.defenses.pixel_defend import PixelDefend
from calipers.threat.threat_model import Norm, ThreatModel

IMAGES = (9, 28)


def draw_pixel_defend() -> Figure:
    """Draw clean, naive and adaptive images beside what the purifier makes of them, and what it changes."""
    defense = PixelDefend()
    target = defense.target()
    purifier = target.module.get_submodule("net.purifier")
    assert isinstance(purifier, nn.Module)
    bare = defense.target("undefended")
    x, y = test_images(IMAGES)
    threat = ThreatModel(Norm.LINF, 0.1)
    rows = []
    by_role = {row.role: row.attack for row in reversed(defense.rows())}
    naive, adaptive = (
        by_role[role](target, x, y, threat, seed=0, indices=IMAGES).adversarial
        for role in ("naive", "adaptive")
    )
    with torch.no_grad():
        cleaned = [purifier(image) for image in (x, naive, adaptive)]
    for number, label in enumerate(y.tolist()):
        change = 4 * (cleaned[2] - adaptive)[number, 0]
        panels = []
        for image, purified in zip((x, naive, adaptive), cleaned, strict=True):
            panels.append(answer(image[number], int(bare.predict(image)[number]), label))
            panels.append(answer(purified[number], int(bare.predict(purified)[number]), label))
        rows.append([*panels, Panel(change, "times 4", signed=True)])
    titles = ("clean", "purified", "BIM", "purified", "BPDA", "purified", "what that\nchanged")
    return draw(titles, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_pixel_defend, "pixel-defend", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
