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

Before a given network it purifies by a density of its task's training images, which :meth:`PixelDefend.train` makes;
there the recipe is the identity, as Athalye, Carlini and Wagner 2018 (arXiv:1802.00420) had it on CIFAR-10.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from calipers.attacks.apgd import APGD
from calipers.attacks.base import Attack
from calipers.attacks.deepfool import DeepFool
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.given import given_network, sizes_for
from calipers.defenses.normalized import Normalized
from calipers.defenses.parts import bundled_network, has_part, load_part, part_file
from calipers.defenses.pixel_defend.context import through_context
from calipers.defenses.pixel_defend.pixel_cnn import PixelCNN
from calipers.defenses.pixel_defend.purifier import Purifier
from calipers.defenses.pixel_defend.training import AROUND, DENSITY, SHAPE, train_density
from calipers.errors import InvalidInput, UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.sources.network import Network
from calipers.sources.shipped import metadata
from calipers.target import Target
from calipers.threat.units import parse_size

__all__ = ["PixelDefend"]

_BACKBONE: Final = "fashion-cnn28-plain"
_BARE: Final = f"bundled:{_BACKBONE}"
_STEPS: Final = 60
_GREY, _COLOUR = 32, 16


@final
@dataclass(frozen=True)
class PixelDefend(Defense):
    """PixelDefend before the plain network of Fashion-MNIST that ships, or before one that is given.

    Before a given network :meth:`train` makes the density, of training images of its task; nothing ships. The density
    does not depend on the network, so that one serves all networks for such images.

    Differs from the paper: a PixelCNN of 69 000 weights with a mixture of logistics, trained for two epochs, where the
    paper has a PixelCNN++ with a softmax over 256 levels; a small network where the paper has ResNet and VGG. Before a
    given network the density is as small, 75 000 weights for colour, trained for five epochs.

    Args:
        weights: the folder of the density; the one that ships if None.
        network: the reference of a network to stand before, for grey images or colour.
        eps_defend: the largest change of a pixel in levels of 1/255; if None 32 for grey images and 16 for colour, as
            the paper is remembered for Fashion-MNIST and CIFAR-10.

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
    around_images: ClassVar[int] = 60_000

    eps_defend: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps_defend is not None and not 0 <= self.eps_defend <= 255:
            raise UsageError(
                f"eps_defend is {self.eps_defend}: give a number of levels from 0 to 255, such as 32"
            )

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The defense; ``undefended``, the pretrained network; and before the one that ships ``window-16``, where a
            pixel may be moved by 16 levels.
        """
        found: dict[str, Callable[[str], Target]] = {
            "": lambda device: self._purified(device, self.eps_defend),
            "undefended": lambda device: self._target(None, self._opened(), device),
        }
        if self.network is None:
            found["window-16"] = lambda device: self._purified(device, 16)
        return found

    def lacks(self) -> str:
        """Say that it cannot be measured before a network for whose images there is no density."""
        if self.network is None or (self.weights is not None and has_part(AROUND, self.weights)):
            return ""
        return (
            f"{self.name} has no density for {self.network}: make one of training images with calipers train iclr2018 "
            f"{self.name} --network MODEL --data DATA -o FOLDER, and name it by --weights FOLDER"
        )

    def _opened(self) -> Network:
        return bundled_network(_BACKBONE) if self.network is None else given_network(self.network)

    def _purified(self, device: str, eps_defend: int | None) -> Target:
        if self.lacks():
            raise UsageError(self.lacks())
        network = self._opened()
        colours = network.input_shape[0]
        if self.network is not None:
            self._check_shape(network, self.weights)
        name = DENSITY if self.network is None else AROUND
        density = load_part(PixelCNN(colours=colours), name, self.weights)
        assert isinstance(density, PixelCNN), "load_part gives back the network it is given"
        window = eps_defend if eps_defend is not None else (_GREY if colours == 1 else _COLOUR)
        return self._target(Purifier(density, eps_defend=window).eval(), network, device)

    def _check_shape(self, network: Network, folder: Path | None) -> None:
        path = part_file(AROUND, folder)
        told, shape = metadata(path).get(SHAPE, "an unknown shape"), _written(network.input_shape)
        if told != shape:
            raise UsageError(
                f"{path} is a density of images of {told} and {self.network} takes {shape}: train one for it"
            )

    def _target(self, purifier: Purifier | None, network: Network, device: str) -> Target:
        net: nn.Module = Normalized(network)
        if purifier is not None:
            net = nn.Sequential(OrderedDict(purifier=purifier, classifier=net))
        return Target(
            net.eval(),
            num_classes=network.num_classes,
            input_shape=network.input_shape,
            device=device,
            name=self.name if purifier is not None else self._bare(),
        )

    def _bare(self) -> str:
        return self.network or _BARE

    def rows(self) -> tuple[Row, ...]:
        """List what is measured: every attack is judged by the whole purification.

        Returns:
            The rows; none before a given network without a density. What goes back through the context knows the
            density that ships: with another one the adaptive attack goes back through the identity.
        """
        if self.lacks():
            return ()
        eps = sizes_for(self._opened().input_shape).linf
        levels = 255 * float(parse_size(eps))
        unit = f"{levels:g}/255"

        def row(role: Role, what: str, attack: Attack, variant: str = "") -> Row:
            return Row(role, what, attack, "linf", eps, variant=variant, unit="" if unit == eps else unit)

        straight, context = BPDA({"purifier": identity}), BPDA({"purifier": through_context})
        # larger balls are what the window was not made for: they lead to no smaller one
        plain = APGD(steps=_STEPS, radii=(1.0,), random_start=False)
        through, past = replace(plain, gradient=context), replace(plain, gradient=straight)
        # steps of one level, as many as Kurakin et al. 2017 (arXiv:1607.02533, section 2.2) take
        count = int(min(levels + 4, 1.25 * levels))
        bim = PGD(steps=count, step_size=1 / levels, random_start=False, keep=True)
        bare = "plain network" if self.network is None else "network alone"
        found = [
            row("undefended", f"APGD on the {bare}", plain, "undefended"),
            row("naive", "BIM on the classifier alone, then purified", Transfer(self._bare(), bim)),
            row(
                "naive", "DeepFool on the classifier alone, then purified", Transfer(self._bare(), DeepFool())
            ),
            row("matched", "APGD through the purifier", plain),
        ]
        if self._has_the_shipped_density():
            found += [
                row("adaptive", "APGD, BPDA through the context of the purifier's choices", through),
                row("ablation", "APGD, BPDA with the identity", past),
            ]
        else:
            found += [row("adaptive", "APGD, BPDA with the identity", past)]
        step = PGD(steps=1, step_size=1.0, random_start=False, gradient=straight)
        found += [
            row("ablation", "a single step, BPDA with the identity", step),
            row("ablation", "PGD, BPDA with the identity", PGD(steps=_STEPS, gradient=straight)),
        ]
        if self.network is None:
            narrow = "window-16"
            found += [
                row("ablation", "a window of 16 levels, APGD, the identity", past, narrow),
                row("ablation", "a window of 16 levels, BIM", Transfer(_BARE, bim), narrow),
            ]
        return tuple(found)

    def _has_the_shipped_density(self) -> bool:
        if self.network is not None:
            return False
        if self.weights is None or not has_part(DENSITY, self.weights):
            return True  # where the part is missing, loading says so
        own, shipped = (
            load_part(PixelCNN(), DENSITY, folder).state_dict() for folder in (self.weights, None)
        )
        return all(torch.equal(own[name], value) for name, value in shipped.items())

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the density, unless its file is there.

        Args:
            images: training images (n, channels, h, w), uint8.
            labels: their classes, which the density does not see.
            folder: where the file goes.
            share: 1 for what ships; less for a try.
            tell: told in words how far it is.

        Raises:
            InvalidInput: if the images are not as the network takes them.
        """
        name = DENSITY if self.network is None else AROUND
        network = self._opened()
        if has_part(name, folder):
            if self.network is not None:
                self._check_shape(network, folder)
            tell(f"{name}: there already")
            return
        if tuple(images.shape[1:]) != network.input_shape:
            raise InvalidInput(
                f"the training images are {_written(images.shape[1:])} and {self._bare()} takes "
                f"{_written(network.input_shape)}: give images of its task"
            )
        train_density(images, labels, folder, name=name, share=share, tell=tell)


def _written(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
