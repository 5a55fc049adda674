"""Classifiers behind random patterns: the network that ships, its loss in training, and any network behind a draw."""

from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

from calipers.defenses.randomization.patterns import PATTERNS, ResizeAndPad
from calipers.target import Target

__all__ = ["RandomizedClassifier", "answers_by_pattern", "build_classifier", "half_behind_patterns"]


def build_classifier() -> nn.Sequential:
    """Build a small network for images of any size: convolutions, and a mean over all places.

    Returns:
        The network, 60 000 weights, for images in [-1, 1], with torch's own initial weights.
    """
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


@final
class RandomizedClassifier(nn.Module):
    """The classifier behind a random pattern, each row's its own.

    Args:
        net: a classifier of images of any size.
        patterns: the distribution.
        fill: the value around an image: 0 is grey in images of [-1, 1].
    """

    def __init__(self, net: nn.Module, patterns: ResizeAndPad, *, fill: float = 0.0) -> None:
        super().__init__()
        self.net = net
        self.patterns = replace(patterns, fill=fill)

    def forward(self, x: Float[Tensor, "batch channels side side"]) -> Float[Tensor, "batch classes"]:
        """Classify one draw of each image.

        Args:
            x: images, in [-1, 1] or where ``fill`` is grey.

        Returns:
            Logits.
        """
        logits: Tensor = self.net(self.patterns(x, None))
        return logits


def answers_by_pattern(
    undefended: Target, x: Float[Tensor, "batch channels side side"], patterns: ResizeAndPad = PATTERNS
) -> Int[Tensor, "patterns batch"]:
    """Ask for the class of each image in every pattern: with their probabilities, all there is to know of the defense.

    Args:
        undefended: the classifier without randomness.
        x: images, in input units.
        patterns: the distribution.

    Returns:
        Classes.
    """
    return torch.stack([undefended.predict(member.transform(x)) for member in patterns.members()])


def half_behind_patterns(net: nn.Module, x: Tensor, labels: Tensor, generator: Generator) -> Tensor:
    """Compute the loss of a batch, half of it behind random patterns and half as it is.

    Args:
        net: the network, of images in [-1, 1].
        x: images (batch, 1, 28, 28), in [0, 1].
        labels: their classes (batch,).
        generator: the source of the patterns.

    Returns:
        The mean cross-entropy.
    """
    half = len(x) // 2
    moved = PATTERNS(x[:half], generator)
    first = functional.cross_entropy(net(2 * moved - 1), labels[:half], reduction="sum")
    second = functional.cross_entropy(net(2 * x[half:] - 1), labels[half:], reduction="sum")
    return (first + second) / len(x)
