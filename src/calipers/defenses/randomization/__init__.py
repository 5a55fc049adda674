r"""Random resizing and padding (Xie et al. 2018): the image is resized and moved at random before it is classified.

**Claim.** An adversarial perturbation is aimed at one scale and one place: resize the image to a random size, pad it to
a fixed one at a random place, and most perturbations miss, at no cost in clean accuracy.

**Mechanism.** A size r is drawn from a few, the image is resized to it by nearest neighbours, and lies at one of the
:math:`(R - r + 1)^2` places of a grey square of side R. For images of 28 and R = 31, sizes 28 to 30 give
16 + 9 + 4 = 29 patterns.

**Flaw.** The gradient of one draw is that of one pattern. The randomness is small and known: the gradient of the mean
over patterns is had by sampling, and here, where there are 29, exactly.

**Recipe.** ``PGD(steps=20, loss="margin", gradient=EOT(30))``.
"""

from calipers.defenses.randomization.classifier import (
    RandomizedClassifier,
    answers_by_pattern,
    build_classifier,
)
from calipers.defenses.randomization.defense import Randomization
from calipers.defenses.randomization.patterns import PATTERNS, ResizeAndPad, patterns_for, resize_and_pad

__all__ = [
    "PATTERNS",
    "Randomization",
    "RandomizedClassifier",
    "ResizeAndPad",
    "answers_by_pattern",
    "build_classifier",
    "patterns_for",
    "resize_and_pad",
]
