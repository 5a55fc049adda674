"""What pruning keeps of a layer: `python docs/case_study_pictures/stochastic_activation_pruning.py`."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from panels import Panel, answer, draw, save, test_images
from torch import Tensor

from calipers.defenses.stochastic_activation_pruning import StochasticActivationPruning
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

IMAGES = (0, 2)
CHANNEL = 9


def _channel(target: Target, x: Tensor) -> Tensor:
    """One channel of the first layer in one draw, from 0 to 1."""
    seen: list[Tensor] = []
    layer = dict(target.module.named_modules())["net.prune1"]
    handle = layer.register_forward_hook(lambda module, given, found: seen.extend((given[0], found)))
    target.logits(x, draws=Draws(0, Role.JUDGE, tuple(range(len(x)))))
    handle.remove()
    before, after = seen
    peak = before[:, CHANNEL].flatten(1).amax(1).view(-1, 1, 1)
    return torch.stack([before[:, CHANNEL] / peak, after[:, CHANNEL] / peak]).clamp(0, 1)


def draw_stochastic_activation_pruning() -> Figure:
    """Draw clean images, a channel before and after pruning, and the adaptive attack's images with the same."""
    defense = StochasticActivationPruning()
    target = defense.target()
    x, y = test_images(IMAGES)
    row = next(row for row in defense.rows() if row.role == "adaptive")
    found = row.attack(target, x, y, ThreatModel(Norm.LINF, float(row.eps)), seed=0, judge=row.judge).verdict
    clean, moved = _channel(target, x), _channel(target, found.adversarial)
    rows = []
    for number, label in enumerate(y.tolist()):
        fallen = int(found.prediction[number])
        rows.append(
            [
                answer(x[number], label, label),
                Panel(clean[0, number]),
                Panel(clean[1, number]),
                answer(found.adversarial[number], fallen, label),
                Panel(moved[1, number]),
            ]
        )
    titles = (
        "clean",
        "a channel of\nlayer 1",
        "what one draw\nkeeps of it",
        "adaptive,\nlinf .05",
        "what one draw\nkeeps",
    )
    return draw(titles, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture.

    Args:
        arguments: the command line; that of the process if None.
    """
    save(draw_stochastic_activation_pruning, "stochastic-activation-pruning", __doc__ or "", arguments)


if __name__ == "__main__":
    main()
