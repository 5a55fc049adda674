"""The defense: a pretrained network that prunes its activations, and the attacks it is measured with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, final

from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.fgsm import FGSM
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.given import given_network, sizes_for
from calipers.defenses.parts import bundled_network
from calipers.defenses.stochastic_activation_pruning.layers import LaterPruning
from calipers.defenses.stochastic_activation_pruning.networks import prune, pruned
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.target import Target

__all__ = ["StochasticActivationPruning"]

_BACKBONE: Final = "fashion-cnn28-plain"
_EPS: Final = "0.05"
_FRACTION: Final = 0.4


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
                device, partial(pruned, make=LaterPruning, later=True), stochastic=True
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
