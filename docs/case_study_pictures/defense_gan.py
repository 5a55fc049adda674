"""Projections, and images on the manifold: `python docs/case_study_pictures/defense_gan.py`."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from panels import answer, draw, save, test_images
from torch import Tensor, nn

from calipers.defenses.defense_gan import DefenseGAN, decode, encode
from calipers.threat.threat_model import Norm, ThreatModel

IMAGES = (1, 19)


def projected(projection: nn.Module, x: Tensor) -> Tensor:
    """Project images, by draws of a fixed seed."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.default_generator.manual_seed(0)
        found: Tensor = projection(x)
    return found


def draw_defense_gan() -> Figure:
    """Draw clean and BPDA images beside their projections, and the search over z beside the nearest latent image."""
    defense = DefenseGAN()
    target, bare = defense.target(), defense.target("undefended")
    projection = target.module.get_submodule("net.projection")
    x, y = test_images(IMAGES)
    adaptive = next(row for row in defense.rows() if row.role == "adaptive")
    theory = next(row for row in defense.rows() if row.what.startswith("theory"))
    near = adaptive.attack(
        target, x, y, ThreatModel(Norm.L2, 1.98), seed=0, indices=IMAGES, judge=adaptive.judge
    ).adversarial
    on = theory.attack(bare, x, y, ThreatModel(Norm.L2), seed=0).adversarial
    with torch.no_grad():
        latent = decode(encode(x))
    shown = (
        x,
        projected(projection, x),
        near,
        projected(projection, near),
        latent,
        on,
        projected(projection, on),
    )
    rows = [
        [answer(image[number], int(bare.predict(image)[number]), label) for image in shown]
        for number, label in enumerate(y.tolist())
    ]
    titles = ("clean", "projected", "BPDA", "projected", "G(z) nearest\nto clean", "C&W over z", "projected")
    return draw(titles, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_defense_gan, "defense-gan", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
