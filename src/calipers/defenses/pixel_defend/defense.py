"""PixelDefend (Song et al. 2018): images are moved towards a learned density before they are classified.

**Claim.** Adversarial examples lie where the density of the training images is low. So, pixel after pixel in raster
order, take the level within 32 of the given one that is likeliest given the pixels before it, and hand the result to
any classifier: accuracy under the strongest attack that the authors tried goes from 63 % to 84 % on Fashion-MNIST.

**Mechanism.** The density is a PixelCNN. Purification is a loop of 784 greedy choices, each of which depends on all
choices before it.

**Flaw.** Each choice is an argmax, so the gradient is shattered; and a path through 784 passes of a network would
vanish or explode if there were one. An attack that follows it goes nowhere. But what the loop gives is close to what it
gets: backward, it may be taken for the identity, and better for what a pixel does to itself and to the choices made
after it.

**Recipe.** ``APGD(steps=60, radii=(1,), random_start=False, gradient=BPDA({"purifier": through_context}))``: purified
forward, and backward through the context of the choices.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, final

from torch import Tensor, nn

from calipers.attacks.apgd import APGD
from calipers.attacks.base import Attack
from calipers.attacks.deepfool import DeepFool
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.normalized import Normalized
from calipers.defenses.parts import bundled_network, has_part, load_part
from calipers.defenses.pixel_defend.context import through_context
from calipers.defenses.pixel_defend.pixel_cnn import PixelCNN
from calipers.defenses.pixel_defend.purifier import Purifier
from calipers.defenses.pixel_defend.training import DENSITY, train_density
from calipers.errors import UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.target import Target

__all__ = ["PixelDefend"]

_BACKBONE: Final = "fashion-cnn28-plain"
_BARE: Final = f"bundled:{_BACKBONE}"
_EPS, _UNIT, _STEPS = "0.1", "25.5/255", 60
_BIM_STEPS, _BIM_STEP = 29, 1 / 25.5


@final
@dataclass(frozen=True)
class PixelDefend(Defense):
    """PixelDefend before the plain network of Fashion-MNIST that ships.

    Differs from the paper: a PixelCNN of 69 000 weights with a mixture of logistics, trained for two epochs, where the
    paper has a PixelCNN++ with a softmax over 256 levels; a small network where the paper has ResNet and VGG.

    Args:
        weights: the folder of the density; the one that ships if None.
        eps_defend: the largest change of a pixel in levels of 1/255; 32 for Fashion-MNIST, as the paper is remembered,
            and 16 for CIFAR-10.

    Raises:
        UsageError: if ``eps_defend`` is no number of levels.
    """

    name: ClassVar[str] = "pixel-defend"
    paper: ClassVar[Paper] = Paper(
        authors="Song, Kim, Nowozin, Ermon and Kushman 2018",
        title="PixelDefend: leveraging generative models to understand and defend against adversarial examples",
        source="arXiv:1710.10766",
        data="CIFAR-10 (and Fashion-MNIST)",
        threat="linf 0.031",
        clean="90 %",
        claimed="70 % on CIFAR-10 (undefended 32 %), 84 % on Fashion-MNIST (63 %): strongest of the attacks on the "
        "classifier alone",
        adaptive="9 %",
        note="the claimed figures are those of the abstract, the best combination with another defense",
    )
    claim: ClassVar[str] = (
        "Adversarial examples are unlikely images: moved to where the density is high, they are classified rightly."
    )
    flaw: ClassVar[str] = (
        "The loop of 784 argmaxes has no gradient, but it is close to the identity, which has one."
    )
    recipe: ClassVar[str] = (
        'APGD(steps=60, radii=(1,), random_start=False, gradient=BPDA({"purifier": through_context}))'
    )
    hides: ClassVar[tuple[Hides, ...]] = ("shattered", "vanishing")
    minutes: ClassVar[float] = 8.0
    own_network: ClassVar[str] = "its density is a PixelCNN of Fashion-MNIST"

    eps_defend: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eps_defend <= 255:
            raise UsageError(
                f"eps_defend is {self.eps_defend}: give a number of levels from 0 to 255, such as 32"
            )

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The defense; ``window-16``, where a pixel may be moved by 16 levels; and ``undefended``, the pretrained
            network.
        """
        return {
            "": lambda device: self._purified(device, self.eps_defend),
            "window-16": lambda device: self._purified(device, 16),
            "undefended": lambda device: self._target(None, device),
        }

    def _purified(self, device: str, eps_defend: int) -> Target:
        density = load_part(PixelCNN(), DENSITY, self.weights)
        assert isinstance(density, PixelCNN), "load_part gives back the network it is given"
        return self._target(Purifier(density, eps_defend=eps_defend).eval(), device)

    def _target(self, purifier: Purifier | None, device: str) -> Target:
        network = bundled_network(_BACKBONE)
        net: nn.Module = Normalized(network)
        if purifier is not None:
            net = nn.Sequential(OrderedDict(purifier=purifier, classifier=net))
        return Target(
            net.eval(),
            num_classes=network.num_classes,
            input_shape=network.input_shape,
            device=device,
            name=self.name if purifier is not None else _BARE,
        )

    def rows(self) -> tuple[Row, ...]:
        """List what is measured: every attack is judged by the whole purification.

        Returns:
            The rows.
        """
        straight, context = BPDA({"purifier": identity}), BPDA({"purifier": through_context})
        # larger balls are what the window was not made for: they lead to no smaller one
        plain = APGD(steps=_STEPS, radii=(1.0,), random_start=False)
        through, past = replace(plain, gradient=context), replace(plain, gradient=straight)
        bim = PGD(steps=_BIM_STEPS, step_size=_BIM_STEP, random_start=False, keep=True)
        step = PGD(steps=1, step_size=1.0, random_start=False, gradient=straight)
        pgd = PGD(steps=_STEPS, gradient=straight)
        return (
            _row("undefended", "APGD on the plain network", plain, variant="undefended"),
            _row("naive", "BIM on the classifier alone, then purified", Transfer(_BARE, bim)),
            _row("naive", "DeepFool on the classifier alone, then purified", Transfer(_BARE, DeepFool())),
            _row("matched", "APGD through the purifier", plain),
            _row("adaptive", "APGD, BPDA through the context of the purifier's choices", through),
            _row("ablation", "APGD, BPDA with the identity", past),
            _row("ablation", "a single step, BPDA with the identity", step),
            _row("ablation", "PGD, BPDA with the identity", pgd),
            _row("ablation", "a window of 16 levels, APGD, the identity", past, variant="window-16"),
            _row("ablation", "a window of 16 levels, BIM", Transfer(_BARE, bim), variant="window-16"),
        )

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the density, unless its file is there.

        Args:
            images: training images.
            labels: their classes.
            folder: where the file goes.
            share: 1 for what ships; less for a try.
            tell: told in words how far it is.
        """
        if not has_part(DENSITY, folder):
            train_density(images, labels, folder, share=share, tell=tell)


def _row(role: Role, what: str, attack: Attack, variant: str = "") -> Row:
    return Row(role, what, attack, "linf", _EPS, variant=variant, unit=_UNIT)
