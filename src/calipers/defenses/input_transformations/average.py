"""Averages of many classifications of one image: of crops, and of transformations."""

import math
from collections.abc import Mapping
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["AverageProbabilities", "EachCrop", "Ensemble"]

_TOGETHER: Final = 240


@final
class AverageProbabilities(nn.Module):
    """The logarithm of the mean of several softmax probabilities."""

    def forward(self, scores: Float[Tensor, "batch each classes"]) -> Float[Tensor, "batch classes"]:
        """Average.

        Args:
            scores: of each classification of an image.

        Returns:
            Log-probabilities.
        """
        return scores.log_softmax(2).logsumexp(1) - math.log(scores.shape[1])


@final
class EachCrop(nn.Module):
    """Classifies each crop of an image by itself.

    Args:
        net: the classifier of one image.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, crops: Float[Tensor, "batch crops channels side side"]
    ) -> Float[Tensor, "batch crops classes"]:
        """Classify, some hundreds at a time, since larger batches are slower.

        Args:
            crops: of each image.

        Returns:
            Scores.
        """
        parts = crops.flatten(0, 1).split(_TOGETHER)  # type: ignore[no-untyped-call]
        logits = torch.cat([self.net(part) for part in parts])
        return logits.view(len(crops), crops.shape[1], -1)


@final
class Ensemble(nn.Module):
    """The mean probabilities of several classifiers.

    Args:
        members: the classifiers by name, which become its submodules.
    """

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.members = tuple(members)
        for name, member in members.items():
            self.add_module(name, member)
        self.average = AverageProbabilities()

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Classify.

        Args:
            x: images in [0, 1].

        Returns:
            Log-probabilities.
        """
        each = torch.stack([self.get_submodule(name)(x) for name in self.members], 1)
        mean: Tensor = self.average(each)
        return mean
