"""The defense: random resizing and padding before a classifier, its training, and the attacks it is measured with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.deepfool import DeepFool
from calipers.attacks.fgsm import FGSM
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.given import given_network, sizes_for
from calipers.defenses.normalized import Normalized
from calipers.defenses.parts import has_part, load_part, save_part
from calipers.defenses.randomization.classifier import (
    RandomizedClassifier,
    build_classifier,
    half_behind_patterns,
)
from calipers.defenses.randomization.patterns import PATTERNS, Pattern, corners_of, patterns_for
from calipers.errors import UsageError
from calipers.gradients.eot import EOT
from calipers.target import Target
from calipers.training.parts import train_part

__all__ = ["Randomization"]

_PART: Final = "randomization"
_EPS: Final = "0.1"
_SMALLER: Final = "0.03"
_FEW: Final = 100  # patterns that are taken one by one
_EPOCHS: Final = 8


@final
@dataclass(frozen=True)
class Randomization(Defense):
    """Random resizing and padding, before a small network of Fashion-MNIST or before one that is given.

    A given network is taken as it is, as in the paper; it must take images of another size, as one with a global mean
    does.

    Differs from the paper: the network that ships has seen random patterns and plain images in training, half and half,
    where the paper takes an ImageNet network as it is; and FGSM and DeepFool stand for its three attacks (its third is
    C&W).

    Args:
        weights: the folder of its trained part; that which ships if None. A given network has none.
        network: the reference of a network to stand before.
    """

    name: ClassVar[str] = "randomization"
    paper: ClassVar[Paper] = Paper(
        authors="Xie, Wang, Zhang, Ren and Yuille 2018",
        title="Mitigating adversarial effects through randomization",
        source="arXiv:1711.01991",
        data="ImageNet, Inception networks",
        threat="linf 0.031",
        clean="99.2 % of images that the network answers rightly",
        claimed="86 % at linf 10/255",
        adaptive="0 %",
        note="with adversarial training in the original; 0 % is of the randomization alone",
    )
    claim: ClassVar[str] = (
        "A perturbation is aimed at one scale and place, so resizing and padding at random make most of them miss."
    )
    flaw: ClassVar[str] = (
        "The gradient of one draw is that of one pattern, and all patterns can be averaged over."
    )
    recipe: ClassVar[str] = 'PGD(steps=20, loss="margin", gradient=EOT(30))'
    hides: ClassVar[tuple[Hides, ...]] = ("stochastic",)
    minutes: ClassVar[float] = 6.0

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The defense, and ``undefended``, the network on plain images, which takes images of any size.
        """
        return {"": self._defended, "undefended": self._undefended}

    def _defended(self, device: str) -> Target:
        if self.network is None:
            return self._target(device, RandomizedClassifier(self._net(), PATTERNS).eval(), stochastic=True)
        patterns = patterns_for(self._shape()[1])
        return self._target(
            device, RandomizedClassifier(self._net(), patterns, fill=0.5).eval(), stochastic=True
        )

    def _undefended(self, device: str) -> Target:
        return self._target(device, self._net(), stochastic=False)

    def _net(self) -> nn.Module:
        if self.network is None:
            return load_part(build_classifier(), _PART, self.weights)
        network = given_network(self.network)
        channels, length, _ = network.input_shape
        net, side = Normalized(network), patterns_for(length).side
        try:
            with torch.no_grad():
                net(torch.zeros(1, channels, side, side))
        except RuntimeError:
            raise UsageError(
                f"{self.network} takes no images of {side}x{side}: give a network of images of any size, such as one "
                "with a global mean before its last layer"
            ) from None
        return net.eval()

    def _shape(self) -> tuple[int, ...]:
        return (1, 28, 28) if self.network is None else given_network(self.network).input_shape

    def _target(self, device: str, net: nn.Module, *, stochastic: bool) -> Target:
        classes = 10 if self.network is None else given_network(self.network).num_classes
        centre = (0.5,) if self.network is None else None  # a given network has its own, behind the patterns
        return Target(
            net,
            num_classes=classes,
            input_shape=self._shape(),
            mean=centre,
            std=centre,
            device=device,
            stochastic=stochastic,
            name=self.name,
        )

    def rows(self) -> tuple[Row, ...]:
        """List what is measured; the paper's attacks search on the bare network, under no, one or some patterns.

        Returns:
            The rows.
        """
        shape = self._shape()
        every = patterns_for(shape[1])
        usual = (_EPS, _SMALLER) if self.network is None else (sizes_for(shape).linf, sizes_for(shape).small)
        attack = PGD(steps=20, loss="margin")
        count = len(every.patterns())
        corners = corners_of(every)

        def elsewhere(inner: Attack) -> Transfer:
            return Transfer(self.reference("undefended"), inner)

        def under(*patterns: Pattern) -> EOT:
            return EOT(len(patterns) or count, over=replace(every, only=patterns))

        one = under((every.smallest + 1, 1, 1))
        sampled = replace(attack, gradient=EOT(30))
        exact = elsewhere(replace(attack, gradient=under(), keep=True))

        def row(role: Role, what: str, method: Attack, *, eps: str = usual[0], variant: str = "") -> Row:
            return Row(role, what, method, "linf", eps, variant=variant)

        found = (
            row("undefended", "PGD", attack, variant="undefended"),
            Row("naive", "vanilla: DeepFool on the bare network", elsewhere(DeepFool()), "l2", ""),
            Row(
                "naive",
                "single pattern: DeepFool",
                elsewhere(DeepFool(gradient=one)),
                "l2",
                "",
            ),
            row("naive", "vanilla: FGSM on the bare network", elsewhere(FGSM())),
            row("naive", "single pattern: FGSM", elsewhere(FGSM(gradient=one))),
            row(
                "naive",
                f"ensemble of {len(corners)} patterns: FGSM",
                elsewhere(FGSM(gradient=under(*corners))),
            ),
            row("matched", "PGD, gradient of one draw", attack),
            row("adaptive", "PGD, EOT over 30 draws", sampled),
            row("ablation", "PGD on the bare network", elsewhere(replace(attack, keep=True))),
            row("ablation", f"PGD, the exact mean over all {count} patterns", exact),
            row("ablation", "PGD, the exact mean, at a smaller size", exact, eps=usual[1]),
            row("ablation", "PGD, EOT over 30 draws, at a smaller size", sampled, eps=usual[1]),
            row("ablation", "PGD, gradient of one draw, at a smaller size", attack, eps=usual[1]),
        )
        return tuple(each for each in found if count <= _FEW or "exact" not in each.what)

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the network, half of each batch behind random patterns and half as it is.

        Args:
            images: training images (n, 1, 28, 28), uint8.
            labels: their classes.
            folder: where the file goes.
            share: of images and epochs.
            tell: told how far it is.
        """
        if self.network is not None:
            tell(f"{self.name}: nothing to train, it is put before {self.network}")
            return
        if has_part(_PART, folder):
            tell(f"{_PART}: there already")
            return
        count = max(64, round(share * len(images)))
        epochs = max(1, round(share * _EPOCHS))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            net = build_classifier()
        recipe = f"half of each batch behind {PATTERNS!r}"
        folder.mkdir(parents=True, exist_ok=True)
        train_part(
            net,
            images[:count],
            labels[:count],
            half_behind_patterns,
            recipe=recipe,
            epochs=epochs,
            learning_rate=4e-3,
            checkpoint=folder / f"{_PART}.checkpoint",
            tell=lambda text: tell(f"{_PART}: {text}"),
        )
        about = {
            "what": "the network of calipers.defenses.randomization, for images in [-1, 1]",
            "data": f"the first {count} training images of Fashion-MNIST, {epochs} epochs",
            "recipe": recipe,
        }
        save_part(net, _PART, folder, about=about)
