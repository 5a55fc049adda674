"""An image behind each transformation: `python docs/case_study_pictures/input_transformations.py`."""

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure
from panels import Panel, answer, draw, save, test_images
from torch import Tensor

from calipers.defenses.input_transformations import InputTransformations
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

IMAGE: Final = 1
COLUMNS: Final = {
    "undefended": "none",
    "crop": "a crop",
    "bit-depth": "3 bits",
    "jpeg": "JPEG",
    "total-variation": "total\nvariation",
    "quilting": "quilting",
}


def _changed(target: Target, x: Tensor) -> Tensor:
    """What the transformation makes of an image in one draw: the first of its channels."""
    layer = dict(target.module.named_modules()).get("net.transform")
    if layer is None:
        return x[0]
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, found: seen.append(found))
    target.logits(x, draws=Draws(0, Role.JUDGE, (0,)))
    handle.remove()
    return seen[0][0, :1]


def draw_input_transformations() -> Figure:
    """Draw an image behind each transformation, the adaptive attack's image, and that behind the transformation."""
    defense = InputTransformations()
    x, y = test_images((IMAGE,))
    label = int(y)
    clean, found, behind = [], [], []
    for variant in COLUMNS:
        target = defense.target(variant)
        role = "undefended" if variant == "undefended" else "adaptive"
        row = next(row for row in defense.rows() if row.role == role and row.variant == variant)
        threat = ThreatModel(Norm.L2, float(row.eps))
        verdict = row.attack(target, x, y, threat, seed=0, judge=row.judge).verdict
        clean.append(
            answer(_changed(target, x), int(target.predict(x, draws=Draws(0, Role.JUDGE, (0,)))), label)
        )
        found.append(Panel(verdict.adversarial[0, 0], f"l2 {float(verdict.distance):.2f}"))
        behind.append(answer(_changed(target, verdict.adversarial), int(verdict.prediction), label))
    return draw(tuple(COLUMNS.values()), [clean, found, behind])


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_input_transformations, "input-transformations", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
