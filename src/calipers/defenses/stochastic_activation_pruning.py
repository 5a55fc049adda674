r"""Stochastic activation pruning (Dhillon et al. 2018): activations are thrown away at random, small ones first.

**Claim.** After every ReLU of a pretrained network, draw as many activations as the map has, with replacement and with
probability proportional to their size; set to zero what was never drawn, and scale up what was, so that the mean is
kept. An adversary who does not know the draws is said to be one move behind.

**Mechanism.** With :math:`p_j = |h_j| / \sum_i |h_i|` and r draws, activation j is kept with probability
:math:`1 - (1 - p_j)^r` and divided by it.

**Flaw.** The gradient is that of one draw: what was pruned passes none, and what survived by luck stands for all that
did not, divided by a small probability. The mean of a few such gradients is still noise.

**Recipe.** ``PGD(steps=20, loss="margin", gradient=EOT(10, inner=BPDA({"prune*": identity})))``: real draws forward,
and backward the network that was never pruned.

**Erratum.** The attack of Athalye, Carlini and Wagner 2018 (EOT alone) broke a re-implementation that prunes before the
ReLU, which weakens the defense. On the defense itself it is not effective, and BPDA in a new use is: it leaves 0.1 % on
CIFAR-10 (Dhillon and Carlini 2020, arXiv:2010.00071). All of them are rows here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from calipers.attacks.base import Attack
from calipers.attacks.fgsm import FGSM
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.given import given_network, sizes_for
from calipers.defenses.parts import bundled_network
from calipers.errors import UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.sources.architectures import CifarResNet, ResidualBlock, SmallConvNet
from calipers.target import Target

__all__ = [
    "LaterPruning",
    "PrunedConvNet",
    "PrunedResNet",
    "Pruning",
    "StochasticActivationPruning",
    "drawn_at_least_once",
    "prune",
]

_BACKBONE: Final = "fashion-cnn28-plain"
_EPS: Final = "0.05"
_FRACTION: Final = 0.4
_SIGMAS: Final = 5.0


def drawn_at_least_once(
    probabilities: Float[Tensor, "batch units"], draws: int
) -> Bool[Tensor, "batch units"]:
    """Say which units are among some draws with replacement, each row by draws of its own.

    Most of the draws are made all at once: if their number is Poisson, those of different units are independent. The
    rest up to ``draws`` follows one by one, so that the law is the multinomial's exactly.

    Args:
        probabilities: of each unit, rows that sum to 1; a row of zeros draws nothing.
        draws: the draws of each row, at least 1; from torch's global generator.

    Returns:
        Whether each unit was drawn.
    """
    rate = max(draws - _SIGMAS * math.sqrt(draws), 0.0)
    counts = torch.poisson(probabilities * rate)
    total = counts.sum(1)  # of whole numbers, exact
    over = total > draws
    counts[over] = 0
    left = torch.where(over, float(draws), draws - total)
    able = probabilities.sum(1) > 0
    most = int(left[able].max()) if bool(able.any()) else 0
    if most:
        odds = probabilities if bool(able.all()) else torch.where(able[:, None], probabilities, 1.0)
        more = torch.multinomial(odds, most, replacement=True)
        counted = torch.arange(most, device=left.device) < torch.where(able, left, 0.0)[:, None]
        counts.scatter_add_(1, more, counted.to(counts.dtype))
    return counts > 0


@final
class Pruning(nn.Module):
    """Keeps the activations that are drawn, and divides them by the probability that they are.

    The gradient of one draw takes what was drawn for given and differentiates the division.

    Reference: Dhillon et al. 2018, arXiv:1803.01442, Algorithm 1.

    Args:
        fraction: draws as a share of the number of activations; 1.0 is the paper's SAP-100.
    """

    def __init__(self, fraction: float = 1.0) -> None:
        super().__init__()
        if not 0 < fraction < math.inf:
            raise UsageError(f"fraction is {fraction}: give a share above 0, such as 1.0")
        self.fraction = fraction

    def forward(self, h: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        """Prune.

        Args:
            h: activations.

        Returns:
            Activations with the mean h.
        """
        flat = h.flatten(1)
        draws = max(1, round(self.fraction * flat.shape[1]))
        size = flat.abs()
        total = size.sum(1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
        kept = drawn_at_least_once((size / total).detach(), draws)
        place = kept.flatten().nonzero()[:, 0]
        chosen = flat.flatten()[place]
        # the largest number below one, so that neither the logarithm nor its slope is infinite
        p = chosen.abs() / total[place // flat.shape[1], 0]
        p = p.clamp_max(1 - torch.finfo(h.dtype).eps / 2)
        chance = -torch.expm1(draws * torch.log1p(-p))
        return torch.zeros_like(h).flatten().index_put((place,), chosen / chance).view_as(h)


@final
class LaterPruning(nn.Module):
    """What Athalye, Carlini and Wagner 2018 attacked: pruning of the outputs of convolutions, before the ReLU.

    With N = 2 w h c, a unit is kept with probability :math:`1 - e^{-N p}` and divided by that plus 1e-8. Kept for the
    erratum's comparison.

    Reference: their released code; the erratum, arXiv:2010.00071.
    """

    def forward(self, h: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        """Prune.

        Args:
            h: outputs of a convolution.

        Returns:
            The same with the mean h, nearly.
        """
        flat = h.flatten(1)
        p = flat.abs() / flat.abs().sum(1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
        chance = -torch.expm1(-2 * flat.shape[1] * p)
        kept = torch.rand_like(chance) < chance
        return torch.where(kept, flat / (chance + 1e-8), 0.0).view_as(h)


@final
class PrunedConvNet(nn.Module):
    """The bundled convolutional network with a layer after each ReLU, ``prune1`` to ``prune4``, and its own weights.

    Args:
        net: the network, whose layers are shared.
        make: makes a layer that prunes.
        later: whether the layers stand before the ReLUs of the convolutions instead, and none in the dense part.
    """

    def __init__(self, net: SmallConvNet, make: Callable[[], nn.Module], *, later: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = net.conv1, net.conv2, net.conv3
        self.dense1, self.dense2 = net.dense1, net.dense2
        self.prune1, self.prune2, self.prune3 = make(), make(), make()
        self.prune4 = nn.Identity() if later else make()
        self.later = later

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of a batch, of one draw.

        Args:
            x: images, normalized.

        Returns:
            Logits.
        """
        for conv, layer in (
            (self.conv1, self.prune1),
            (self.conv2, self.prune2),
            (self.conv3, self.prune3),
        ):
            x = functional.relu(layer(conv(x))) if self.later else layer(functional.relu(conv(x)))
        logits: Tensor = self.dense2(self.prune4(functional.relu(self.dense1(x.flatten(1)))))
        return logits


@final
class _PrunedBlock(nn.Module):
    """A residual block with a layer before each of its convolutions, or behind: ``prune1`` and ``prune2``."""

    def __init__(self, block: ResidualBlock, make: Callable[[], nn.Module], *, later: bool) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.stride, self.new_channels = block.stride, block.new_channels
        self.prune1, self.prune2 = make(), make()
        self.later = later

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        if self.later:
            inner = functional.relu(self.bn1(self.prune1(self.conv1(x))))
            outer = self.prune2(self.conv2(inner))
        else:
            inner = functional.relu(self.bn1(self.conv1(self.prune1(x))))
            outer = self.conv2(self.prune2(inner))
        return functional.relu(self.bn2(outer) + shortcut)


@final
class PrunedResNet(nn.Module):
    """A residual network for CIFAR-10 with a layer wherever something reads a ReLU, and its own weights.

    What a ReLU gives goes to a convolution, or to the mean at the end, through a layer; the shortcut carries it as it
    is. So it is in the authors' network, whose ReLUs stand before convolutions and not in the shortcut (He et al. 2016,
    arXiv:1603.05027); around the ReLUs of this one (He et al. 2015) the noise would add up from block to block.

    Differs from the paper: where a stage begins, the authors' shortcut is a convolution and reads what was pruned.

    Args:
        net: the network, whose layers are shared.
        make: makes a layer that prunes.
        later: whether the layers stand behind the convolutions instead, before batch normalization and ReLU.
    """

    def __init__(self, net: CifarResNet, make: Callable[[], nn.Module], *, later: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.linear = net.conv1, net.bn1, net.linear
        blocks = [block for stage in (net.layer1, net.layer2, net.layer3) for block in stage.children()]
        self.blocks = nn.Sequential(
            *(_PrunedBlock(block, make, later=later) for block in blocks if isinstance(block, ResidualBlock))
        )
        self.prune1 = make()
        self.later = later

    def forward(self, x: Float[Tensor, "batch 3 32 32"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of a batch, of one draw.

        Args:
            x: images, normalized.

        Returns:
            Logits.
        """
        if self.later:
            x = self.blocks(functional.relu(self.bn1(self.prune1(self.conv1(x)))))
        else:
            x = self.prune1(self.blocks(functional.relu(self.bn1(self.conv1(x)))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def prune(net: nn.Module, *, fraction: float = 1.0) -> nn.Module:
    """Put the defense around a pretrained network, without training.

    Args:
        net: one of the networks of :mod:`calipers.sources.architectures` with ReLUs: ``cnn28``, or a residual network
            for CIFAR-10, as in the paper.
        fraction: draws as a share of the number of activations.

    Returns:
        The network with its own weights and a :class:`Pruning` behind every ReLU, in evaluation mode.
    """
    return _pruned(net, partial(Pruning, fraction), later=False)


def _pruned(net: nn.Module, make: Callable[[], nn.Module], *, later: bool) -> nn.Module:
    if isinstance(net, SmallConvNet):
        return PrunedConvNet(net, make, later=later).eval()
    if isinstance(net, CifarResNet):
        return PrunedResNet(net, make, later=later).eval()
    raise UsageError(f"{type(net).__name__} has no ReLUs that are known: give a cnn28 or a residual network")


@final
@dataclass(frozen=True)
class StochasticActivationPruning(Defense):
    """Stochastic activation pruning, around the network of Fashion-MNIST that ships or around one that is given.

    Around a ResNet-20 of CIFAR-10 it is the paper's: as many draws as activations, nothing trained.

    Differs from the paper in the form that ships: a small wide network and Fashion-MNIST. With as many draws as
    activations this network hardly changes, so 0.4 of them are drawn, which costs about as much clean accuracy as the
    paper's form. Sizes are half of the usual 0.1, as the paper's 4/255 is half of 8/255: at 0.1 a single step of the
    paper's own attack leaves next to nothing. In both forms one draw is one answer, and the judge asks for many, where
    the paper averages the probabilities of 100 draws.

    Args:
        weights: unused, since nothing is trained.
        network: the reference of a ``cnn28`` or of a residual network for CIFAR-10 to stand around.
        fraction: draws as a share of the number of activations; if None, the paper's SAP-100, 1.0, around a given
            network, and 0.4 in the form that ships.
    """

    name: ClassVar[str] = "stochastic-activation-pruning"
    paper: ClassVar[Paper] = Paper(
        authors="Dhillon, Azizzadenesheli, Lipton, Bernstein, Kossaifi, Khanna and Anandkumar 2018",
        title="Stochastic activation pruning for robust adversarial defense",
        source="arXiv:1803.01442",
        data="CIFAR-10, ResNet-20",
        threat="linf 0.031",
        clean="83 %",
        claimed="51 % at linf 4/255, FGSM with the mean gradient of 100 draws",
        adaptive="0 %",
        note="that attack was on a re-implementation; on the defense itself BPDA leaves 0.1 % (arXiv:2010.00071, as "
        "remembered)",
    )
    claim: ClassVar[str] = (
        "Throwing away activations at random, small ones first, leaves accuracy and takes the adversary's aim."
    )
    flaw: ClassVar[str] = (
        "The gradient of one draw is noise, of which a mean takes little; the network behind it is as fragile as ever."
    )
    recipe: ClassVar[str] = 'PGD(steps=20, loss="margin", gradient=EOT(10, inner=BPDA({"prune*": identity})))'
    hides: ClassVar[tuple[Hides, ...]] = ("stochastic", "exploding")
    minutes: ClassVar[float] = 0.0

    fraction: float | None = None

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The defense; ``undefended``, the pretrained network; and ``reimplementation``, what was attacked in 2018.
        """
        return {
            "": self._pruned,
            "undefended": lambda device: self._target(device, lambda net: net, stochastic=False),
            "reimplementation": lambda device: self._target(
                device, partial(_pruned, make=LaterPruning, later=True), stochastic=True
            ),
        }

    def _pruned(self, device: str) -> Target:
        fraction = self.fraction
        if fraction is None:
            fraction = _FRACTION if self.network is None else 1.0
        return self._target(device, partial(prune, fraction=fraction), stochastic=True)

    def _target(self, device: str, defend: Callable[[nn.Module], nn.Module], *, stochastic: bool) -> Target:
        network = bundled_network(_BACKBONE) if self.network is None else given_network(self.network)
        mean, std = network.feeding.normalization()
        return Target(
            defend(network.net),
            num_classes=network.num_classes,
            input_shape=network.input_shape,
            mean=mean,
            std=std,
            device=device,
            stochastic=stochastic,
            name=self.name,
        )

    def rows(self) -> tuple[Row, ...]:
        """List what is measured, around a given network at the literature's size and at half of it, the paper's.

        Returns:
            The rows.
        """
        plain = BPDA({"prune*": identity})
        attack = PGD(steps=20, loss="margin")
        both = replace(attack, gradient=EOT(10, inner=plain))
        alone = replace(attack, gradient=EOT(10))
        averaged = FGSM(gradient=EOT(100))
        judge = Judge() if self.network is None else Judge(draws=30)  # a draw of a ResNet takes longer
        sizes = None if self.network is None else sizes_for(given_network(self.network).input_shape)
        size = _EPS if sizes is None else sizes.linf

        def row(role: Role, what: str, method: Attack, *, eps: str = size, variant: str = "") -> Row:
            return Row(role, what, method, "linf", eps, variant=variant, judge=judge)

        found = (
            row("undefended", "PGD", attack, variant="undefended"),
            row("naive", "FGSM, mean gradient of 100 draws", averaged),
            row("matched", "PGD, gradient of one draw", attack),
            row("adaptive", "PGD, BPDA through the network without pruning, EOT over 10 draws", both),
            row("ablation", "EOT alone, 10 draws", alone),
            row("ablation", "BPDA alone, one draw", replace(attack, gradient=plain)),
            row(
                "ablation",
                "EOT alone on the re-implementation of 2018",
                alone,
                variant="reimplementation",
            ),
        )
        if sizes is None:
            return (
                *found,
                row("ablation", "BPDA alone at twice the size", replace(attack, gradient=plain), eps="0.1"),
            )
        return (
            *found,
            row("ablation", "FGSM, mean gradient of 100 draws, at half the size", averaged, eps=sizes.half),
            row("ablation", "BPDA and EOT over 10 draws, at half the size", both, eps=sizes.half),
        )

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train nothing: the defense is put around a network that is trained already.

        Args:
            images: unused.
            labels: unused.
            folder: unused.
            share: unused.
            tell: told so.
        """
        around = self.network or f"bundled:{_BACKBONE}"
        tell(f"{self.name}: nothing to train, it is put around {around}")
