"""Input transformations (Guo et al. 2018): an image is changed before it is classified, so that a perturbation is lost.

**Claim.** Five transformations remove adversarial perturbations: crops of random places, fewer bits a pixel, JPEG,
total variation minimization over pixels kept at random, and quilting from patches of clean images. The last two are
said to be strong because they are non-differentiable and random: an adversary who knows the network and not the
transformation loses most of its examples.

**Mechanism.** An image x is classified as f(g(x)). Cropping, total variation and quilting draw g anew in each call, and
f is trained on what they give.

**Flaw.** g changes an image little, so that f is as easily fooled behind it; only the gradient is gone. Bit depth and
JPEG shatter it; crops are random; total variation and quilting are both.

**Recipe.** ``PGD(steps=30, loss="margin", gradient=EOT(4, inner=BPDA({"transform": identity})))``: the identity stands
in for g backward, and a few draws are averaged where g is random. Bit depth and JPEG need BPDA alone, crops EOT alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.input_transformations.average import (
    AverageProbabilities,
    EachCrop,
    Ensemble,
)
from calipers.defenses.input_transformations.bit_depth import BitDepth
from calipers.defenses.input_transformations.crop import RandomCrops
from calipers.defenses.input_transformations.jpeg import Jpeg
from calipers.defenses.input_transformations.quilting import Quilting, patches_of
from calipers.defenses.input_transformations.total_variation import TotalVariation
from calipers.defenses.input_transformations.training import RETRAINED, train_retrained
from calipers.defenses.normalized import Normalized
from calipers.defenses.parts import bundled_network, load_part, small_network, training_images
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd, GradientEstimator
from calipers.target import Target

__all__ = ["InputTransformations", "database"]

_EPS: Final = "1.4"
_UNIT: Final = "rms 0.05 a pixel"
_STEPS: Final = 30
_OF_CROPS: Final = 20  # as many as it takes, since each is 60 crops an image
_STEP: Final = 0.15
_PATCHES: Final = 20_000
_BACKBONE: Final = "fashion-cnn28-plain"
_DRAWS: Final = Judge(draws=40)
_FEW: Final = Judge(draws=20)  # where a draw is 30 crops


@cache
def database() -> Tensor:
    """Make the patches that images are quilted with: 20 000 of the different ones in the training images that ship.

    Returns:
        Patches of 5 x 5 pixels, (patches, 5, 5).
    """
    return patches_of(training_images()[0], count=_PATCHES)


@final
@dataclass(frozen=True)
class InputTransformations(Defense):
    """The five transformations in front of networks of Fashion-MNIST, and their ensemble.

    Bit depth and JPEG stand before the pretrained network that ships. Crops, total variation and quilting stand before
    one small network that was trained on what they give.

    Differs from the paper: Fashion-MNIST and small networks; one network for three transformations, where the paper
    trains one each; crops of 24 of 28 pixels a side. The ensemble averages the probabilities of all five, one draw each
    and 30 crops; the paper's is of quilting, total variation and crops.

    Args:
        weights: the folder of its trained part; that which ships if None.
    """

    name: ClassVar[str] = "input-transformations"
    paper: ClassVar[Paper] = Paper(
        authors="Guo, Rana, Cisse and van der Maaten 2018",
        title="Countering adversarial images using input transformations",
        source="arXiv:1711.00117",
        data="ImageNet, ResNet-50",
        threat="l2, root mean square 0.05 a pixel",
        clean="75 %",
        claimed="70 % at a relative l2 of 0.06, against examples of the network without the transformation",
        adaptive="0 %",
        note="the size was printed as 0.005 and corrected to 0.05 by Athalye, Carlini and Wagner",
    )
    claim: ClassVar[str] = (
        "Changing an image before it is classified, at random and without a derivative, removes the perturbation."
    )
    flaw: ClassVar[str] = (
        "The change is small, so that the identity is a good enough derivative of it, and its randomness averages out."
    )
    recipe: ClassVar[str] = (
        'PGD(steps=30, loss="margin", gradient=EOT(4, inner=BPDA({"transform": identity})))'
    )
    hides: ClassVar[tuple[Hides, ...]] = ("shattered", "stochastic")
    minutes: ClassVar[float] = 9.0

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The ensemble; each transformation by itself; ``undefended``, the pretrained network; ``retrained``, the
            network behind the random transformations without any; and ``one-crop``, a single random crop before it.
        """
        parts: dict[str, tuple[Callable[[], nn.Module], bool]] = {
            "": (self._ensemble, True),
            "crop": (self._crop, True),
            "bit-depth": (self._bit_depth, False),
            "jpeg": (self._jpeg, False),
            "total-variation": (self._total_variation, True),
            "quilting": (self._quilting, True),
            "undefended": (_pretrained, False),
            "retrained": (self._retrained, False),
            "one-crop": (partial(self._crop, count=1), True),
        }
        return {
            variant: partial(self._target, variant, make, stochastic)
            for variant, (make, stochastic) in parts.items()
        }

    def _target(self, variant: str, make: Callable[[], nn.Module], stochastic: bool, device: str) -> Target:
        return Target(
            make().eval(),
            num_classes=10,
            input_shape=(1, 28, 28),
            device=device,
            stochastic=stochastic,
            name=f"{self.name}/{variant}".rstrip("/"),
        )

    def _retrained(self) -> nn.Module:
        net = load_part(small_network(), RETRAINED, self.weights)
        # the layout in which convolutions of few channels are faster
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _crop(self, *, count: int = 30) -> nn.Module:
        return _behind(RandomCrops(count=count), EachCrop(self._retrained()), average=AverageProbabilities())

    def _bit_depth(self) -> nn.Module:
        return _behind(BitDepth(), _pretrained())

    def _jpeg(self) -> nn.Module:
        return _behind(Jpeg(), _pretrained())

    def _total_variation(self) -> nn.Module:
        return _behind(TotalVariation(), self._retrained())

    def _quilting(self) -> nn.Module:
        return _behind(Quilting(database()), self._retrained())

    def _ensemble(self) -> nn.Module:
        return Ensemble(
            {
                "crop": self._crop(),
                "bit_depth": self._bit_depth(),
                "jpeg": self._jpeg(),
                "total_variation": self._total_variation(),
                "quilting": self._quilting(),
            }
        )

    def rows(self) -> tuple[Row, ...]:
        """List what is measured, a family of rows for each transformation and for the ensemble.

        Returns:
            The rows.
        """
        through = BPDA({"transform": identity})
        shattering = ("bit_depth", "jpeg", "total_variation", "quilting")
        all_through = BPDA({f"{member}.transform": identity for member in shattering})
        plain = Judge()
        return (
            *_family("ensemble", "", "undefended", _FEW, adaptive=all_through),
            *_family("crop", "crop", "retrained", _FEW, adaptive=EOT(2), steps=_OF_CROPS),
            _row(
                "crop",
                "ablation",
                "PGD on the gradient of one crop, carried over",
                Transfer(
                    "iclr2018:input-transformations/one-crop",
                    _pgd(Autograd(), _OF_CROPS),
                ),
                "crop",
                _FEW,
            ),
            *_family("bit-depth", "bit-depth", "undefended", plain, adaptive=through),
            *_family("jpeg", "jpeg", "undefended", plain, adaptive=through),
            *_family(
                "total-variation", "total-variation", "retrained", _DRAWS, adaptive=EOT(4, inner=through)
            ),
            *_random("total-variation", through),
            *_family("quilting", "quilting", "retrained", _DRAWS, adaptive=EOT(4, inner=through)),
            *_random("quilting", through),
        )

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the network behind the random transformations.

        Args:
            images: training images, uint8.
            labels: their classes.
            folder: where the file goes.
            share: of images and epochs.
            tell: told in words how far it is.
        """
        train_retrained(images, labels, folder, patches=database, share=share, tell=tell)


def _behind(transform: nn.Module, classifier: nn.Module, **behind: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(transform=transform, classifier=classifier, **behind))


def _pretrained() -> nn.Module:
    return Normalized(bundled_network(_BACKBONE))


def _pgd(gradient: GradientEstimator, steps: int = _STEPS) -> PGD:
    return PGD(steps=steps, loss="margin", step_size=_STEP, gradient=gradient)


def _row(family: str, role: Role, what: str, attack: Attack, variant: str, judge: Judge) -> Row:
    return Row(role, what, attack, "l2", _EPS, variant, judge, _UNIT, family)


def _family(
    family: str,
    variant: str,
    bare: str,
    judge: Judge,
    *,
    adaptive: GradientEstimator,
    steps: int = _STEPS,
) -> tuple[Row, ...]:
    """List the rows that every transformation has; ``bare`` is its network alone."""
    network = f"iclr2018:input-transformations/{bare}"
    iterated = PGD(steps=10, step_size=0.1, random_start=False, keep=True)
    nearest = Transfer(network, CarliniWagner(steps=40, weights=5))
    described = "PGD, " + " ".join(_words(adaptive))
    return (
        _row(family, "undefended", "PGD", _pgd(Autograd(), steps), bare, Judge()),
        _row(family, "naive", "I-FGSM on the network alone", Transfer(network, iterated), variant, judge),
        Row(
            "naive",
            "Carlini-Wagner on the network alone",
            nearest,
            "l2",
            "",
            variant=variant,
            judge=judge,
            family=family,
            within=_EPS,
        ),
        _row(
            family,
            "matched",
            "PGD, autograd through the transformation",
            _pgd(Autograd(), steps),
            variant,
            judge,
        ),
        _row(family, "adaptive", described, _pgd(adaptive, steps), variant, judge),
    )


def _random(family: str, through: BPDA) -> tuple[Row, ...]:
    """List the ablations of a transformation that shatters the gradient and draws it too."""
    return (
        _row(family, "ablation", "PGD, EOT over 4 draws, no BPDA", _pgd(EOT(4)), family, _DRAWS),
        _row(family, "ablation", "PGD, BPDA, one draw", _pgd(through), family, _DRAWS),
    )


def _words(gradient: GradientEstimator) -> tuple[str, ...]:
    if isinstance(gradient, EOT):
        over = f"EOT over {gradient.samples} draws"
        return (over,) if isinstance(gradient.inner, Autograd) else (*_words(gradient.inner), "and", over)
    return ("BPDA by the identity",)
