"""Six broken defenses that are none of the nine, for the diagnosis and its prescriptions to be judged on.

Each hides the gradient of a network that falls to nothing, keeps its accuracy, and falls to an attack found by hand.
Measured on the first 50 bundled test images within linf 0.1, accuracy in % (a randomized classifier's by the average
of 30 draws), PGD with 40 steps everywhere:

===================  =====  ===========  ==========================  ======================  =============
defense              clean  clean, none  plain PGD, with no defense  plain PGD, with it      broken by hand
===================  =====  ===========  ==========================  ======================  =============
k winners take all   70     72           0                           44                      2
random projection    80     88           0                           82                      24
median filter        84     88           0                           50                      2
lookup               90     88           0                           82                      0
temperature          88     88           0                           86                      0
stochastic ensemble  88     88           0                           64                      0
===================  =====  ===========  ==========================  ======================  =============

On 500 images the clean accuracies are 77 (81 undefended), and 86, 87, 92, 92, 92 (92 undefended).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from calipers.attacks.pgd import PGD
from calipers.defenses.parts import training_images
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.threat.threat_model import Norm

CLASSES: Final = 10
SHAPE: Final = (1, 28, 28)
PLAIN: Final = "bundled:fashion-cnn28-plain"


@final
@dataclass(frozen=True, eq=False)
class Broken:
    """A defense that does not defend.

    Args:
        target: makes the classifier as it is deployed, which the judge asks.
        undefended: makes the same classifier without its defense.
        by_hand: the attack under which it falls, found by hand.
        norm: the adversary's norm.
        eps: the adversary's size, in input units.
    """

    target: Callable[[], Target]
    undefended: Callable[[], Target]
    by_hand: PGD
    norm: Norm = Norm.LINF
    eps: float = 0.1


class KWinners(nn.Module):
    """The k largest features of an input are winners, which all get the winners' mean; all others get 0.

    Reference: Xiao, Zhong and Zheng 2020 (arXiv:1905.10510), whose winners keep values of their own; winners of one
    value are those of the fly's olfactory code (Dasgupta, Stevens and Navlakha 2017).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        """Keep the winners."""
        best, where = features.topk(math.ceil(self.share * features.shape[1]), dim=1)
        return torch.zeros_like(features).scatter(1, where, best.mean(1, keepdim=True).expand_as(best))


class RandomProjection(nn.Module):
    """Keeps a few rounded measurements of an image, along directions that each row of each call draws anew.

    The directions lie among the leading principal components of the training images; the image is rebuilt from its
    measurements by least squares with these images' variances as prior.
    """

    mean: Tensor
    basis: Tensor
    spread: Tensor

    def __init__(self, measurements: int, components: int, step: float) -> None:
        super().__init__()
        self.measurements, self.step = measurements, step
        images, _ = training_images()
        flat = torch.cat([images, images.flip(3)]).flatten(1).double()
        variance, directions = torch.linalg.eigh(torch.cov(flat.T))
        self.register_buffer("mean", flat.mean(0).float())
        self.register_buffer("basis", directions[:, -components:].float())
        self.register_buffer("spread", variance[-components:].clamp_min(0).sqrt().float())

    def forward(self, x: Tensor) -> Tensor:
        """Measure and rebuild."""
        coordinates = (x.flatten(1) - self.mean) @ self.basis
        drawn = torch.randn(len(x), self.measurements, len(self.spread), device=x.device)
        seen = (drawn @ coordinates[..., None] / self.step).round() * self.step
        prior = drawn * self.spread
        noise = 0.3 * torch.eye(self.measurements, device=x.device)
        solved = torch.cholesky_solve(seen, torch.linalg.cholesky(prior @ prior.mT + noise))
        rebuilt = (prior.mT @ solved)[..., 0] * self.spread
        return (self.mean + rebuilt @ self.basis.T).view_as(x)


class MedianFilter(nn.Module):
    """Replaces a pixel by the median of its 3 x 3 window, found by bisection between the window's extremes."""

    def forward(self, x: Tensor) -> Tensor:
        """Filter."""
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        window = functional.unfold(padded, 3).view(len(x), 9, *x.shape[2:])
        low, high = window.amin(1), window.amax(1)
        for _ in range(8):
            middle = (low + high) / 2
            enough = (window <= middle[:, None]).sum(1) >= 5
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return high[:, None]


class Lookup(nn.Module):
    """Replaces a pixel by an entry of a table, by index, and sets the image's brightness to what it was."""

    table: Tensor

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(entries) / (entries - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Look up."""
        found = self.table[(x * (len(self.table) - 1)).round().long().clamp(0, len(self.table) - 1)]
        before, after = x.mean((1, 2, 3), keepdim=True), found.mean((1, 2, 3), keepdim=True)
        return found * (before / (after + 1e-6))


class Temperature(nn.Module):
    """Multiplies logits by a million, as if they had been trained at that temperature and were used without it.

    Reference: Carlini and Wagner 2017 (arXiv:1608.04644), section VIII, on defensive distillation.
    """

    def forward(self, logits: Tensor) -> Tensor:
        """Sharpen."""
        return 1e6 * logits


class Member(nn.Module):
    """The activation of a network that is drawn at random for each row of each call.

    Members of the ensemble differ in the phases of a fine wave on every rectifier; their mean is the rectifier.
    """

    def __init__(self, height: float, frequency: float) -> None:
        super().__init__()
        self.height, self.frequency = height, frequency

    def forward(self, features: Tensor) -> Tensor:
        """Rectify, and add the member's waves."""
        phase = 2 * math.pi * torch.rand_like(features)
        return features.relu() + self.height * (self.frequency * features + phase).sin()


class Readout(nn.Module):
    """Linear scores of features."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        """Score."""
        return features @ self.weight.T + self.bias


def undefended() -> Target:
    """Load the bundled network that five of the six are built around."""
    return load_model(PLAIN)


def k_winners() -> Target:
    """Make a network of 2 048 random features of which 5 in 100 win, its readout fitted by ridge regression."""
    return _target(_features(True), "k winners take all")


def rectifiers() -> Target:
    """Make the same network with rectifiers."""
    return _target(_features(False), "rectifiers")


def random_projection() -> Target:
    """Put a random projection before the bundled network: 100 measurements among 200 components."""
    return _target(_before(projection=RandomProjection(100, 200, 1.0)), "random projection", stochastic=True)


def median_filter() -> Target:
    """Put a median filter before the bundled network."""
    return _target(_before(filter=MedianFilter()), "median filter")


def lookup() -> Target:
    """Put a table of 24 entries before the bundled network."""
    return _target(_before(lookup=Lookup(24)), "lookup")


def temperature() -> Target:
    """Put a temperature behind the bundled network."""
    net = _before()
    net.add_module("temperature", Temperature())
    return _target(net, "temperature")


def stochastic_ensemble() -> Target:
    """Draw one of many networks around the bundled one, for each row of each call."""
    whole = undefended().module
    plain = whole.get_submodule("net")
    net = nn.Sequential()
    net.add_module("normalize", Normalize(whole.get_buffer("shift"), whole.get_buffer("scale")))
    for layer in ("conv1", "conv2", "conv3"):
        net.add_module(layer, plain.get_submodule(layer))
        net.add_module(f"{layer}_member", Member(0.1, 20))
    net.add_module("flatten", nn.Flatten())
    net.add_module("dense1", plain.get_submodule("dense1"))
    net.add_module("dense1_member", Member(0.1, 20))
    net.add_module("dense2", plain.get_submodule("dense2"))
    return _target(net, "stochastic ensemble", stochastic=True)


class Normalize(nn.Module):
    """Subtracts a shift and divides by a scale."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        return (x - self.shift) / self.scale


BROKEN: Final[dict[str, Broken]] = {
    "k winners take all": Broken(
        k_winners, rectifiers, PGD(loss="margin", gradient=BPDA({"winners": torch.relu}))
    ),
    "random projection": Broken(
        random_projection, undefended, PGD(gradient=EOT(10, inner=BPDA({"projection": identity})))
    ),
    "median filter": Broken(median_filter, undefended, PGD(gradient=BPDA({"filter": identity}))),
    "lookup": Broken(lookup, undefended, PGD(gradient=BPDA({"lookup": identity}))),
    "temperature": Broken(temperature, undefended, PGD(loss="margin")),
    "stochastic ensemble": Broken(
        stochastic_ensemble, undefended, PGD(gradient=BPDA({"*_member": torch.relu}))
    ),
}
"""The six, by name."""


@cache
def _features(winners: bool) -> nn.Sequential:
    """Fit scores of random features of the training images, shifted by up to a pixel and mirrored."""
    images, labels = training_images()
    width, generator = 2048, torch.Generator().manual_seed(0)
    linear = nn.Linear(28 * 28, width)
    linear.weight.data = torch.randn(width, 28 * 28, generator=generator) / 28
    linear.bias.data = -(linear.weight.data @ images.flatten(1).mean(0))
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    net.add_module("features", linear)
    net.add_module("winners", KWinners(0.05) if winners else nn.ReLU())
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    shifted = torch.cat([images.roll(move, (2, 3)) for move in moves])
    with torch.no_grad():
        found = net(torch.cat([shifted, shifted.flip(3)])).double()
    wanted = functional.one_hot(labels.repeat(2 * len(moves)), CLASSES).double()
    middle, rate = found.mean(0), wanted.mean(0)
    centred = found - middle
    square = centred.T @ centred / len(centred)
    square.diagonal().add_(0.1 * square.diagonal().mean())
    weight = torch.linalg.solve(square, centred.T @ (wanted - rate) / len(centred)).T
    net.add_module("scores", Readout(10 * weight.float(), 10 * (rate - weight @ middle).float()))
    return net.requires_grad_(False).eval()


def _before(**modules: nn.Module) -> nn.Sequential:
    net = nn.Sequential()
    for name, module in modules.items():
        net.add_module(name, module)
    net.add_module("classifier", undefended().module)
    return net


def _target(net: nn.Module, name: str, *, stochastic: bool = False) -> Target:
    return Target(net.eval(), num_classes=CLASSES, input_shape=SHAPE, stochastic=stochastic, name=name)
