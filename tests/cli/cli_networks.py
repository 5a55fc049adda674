"""Small networks that a ``python:`` reference can name, good and bad."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from calipers.target import Target


def three_classes() -> nn.Module:
    """A linear classifier of 1x4x4 images into 3 classes, always the same."""
    generator = torch.Generator().manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(3, 16, generator=generator))
        network[1].bias.zero_()
    return network.eval()


class _Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = three_classes()

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        scores: Tensor = self.network(x)
        return scores


def slow() -> nn.Module:
    """The same, which takes 10 ms a batch."""
    return _Slow().eval()


def in_training_mode() -> nn.Module:
    """A network on which nobody called eval()."""
    return three_classes().train()


def one_class() -> nn.Module:
    """A network with a single output."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval()


def softmax() -> nn.Module:
    """A network that ends in a softmax."""
    return nn.Sequential(three_classes(), nn.Softmax(1)).eval()


def nan_scores() -> nn.Module:
    """A network with a NaN among its weights."""
    network = three_classes()
    with torch.no_grad():
        next(network.parameters())[0, 0] = math.nan
    return network


def decisions() -> Target:
    """A plain function that gives classes and no scores."""

    def darkest_quarter(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 4, 4).mean(2)[:, :3].argmin(1)

    return Target.from_decisions(
        darkest_quarter, num_classes=3, input_shape=(1, 4, 4), fingerprint="darkest quarter, version 1"
    )


def scores_alone() -> Target:
    """The scores of `three_classes` from a plain function, with no gradient."""
    weight = three_classes()[1].weight.detach().numpy().astype(np.float64)

    def scores(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 16) @ weight.T

    return Target.from_scores(
        scores, num_classes=3, input_shape=(1, 4, 4), fingerprint="scores of three classes, version 1"
    )


class _Coin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        often = x.flatten(1)[:, 0]
        fooled = (torch.rand(len(x), device=x.device) < often).float()
        return torch.stack([1 - fooled, fooled], 1)


def coin() -> Target:
    """A randomized classifier of 1x4x4 images that errs as often as the first pixel says."""
    return Target(_Coin().eval(), num_classes=2, input_shape=(1, 4, 4), stochastic=True, probe=False)
