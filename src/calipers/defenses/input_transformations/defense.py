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
from typing import ClassVar, Final, NamedTuple, final

import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.given import given_network, sizes_for
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
from calipers.defenses.parts import (
    bundled_network,
    has_part,
    load_images,
    load_part,
    save_images,
    small_network,
    training_images,
)
from calipers.errors import UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd, GradientEstimator
from calipers.sources.network import Network
from calipers.target import Target

__all__ = ["InputTransformations", "database"]

_UNIT: Final = "rms 0.05 a pixel"
_STEPS: Final = 30
_OF_CROPS: Final = 20  # as many as it takes, since each is 60 crops an image
_STEP: Final = 0.15
_PATCHES: Final = 20_000
_QUILTED: Final = "around-quilting"
_GIVEN_IMAGES, _GIVEN_PATCHES = 2_000, 50_000  # patches of three channels are further from each other
_CROP: Final = 24 / 28  # of a side
_BACKBONE: Final = "fashion-cnn28-plain"
_DRAWS: Final = Judge(draws=40)
_FEW: Final = Judge(draws=20)  # where a draw is 30 crops
_QUILTING: Final = ("ensemble", "quilting")


@cache
def database() -> Tensor:
    """Make the patches that images are quilted with: 20 000 of the different ones in the training images that ship.

    Returns:
        Patches of 5 x 5 pixels, (patches, 1, 5, 5).
    """
    return patches_of(training_images()[0], count=_PATCHES)


@final
@dataclass(frozen=True)
class InputTransformations(Defense):
    """The five transformations, and their ensemble, in front of networks of Fashion-MNIST or of one that is given.

    Bit depth and JPEG stand before the pretrained network that ships. Crops, total variation and quilting stand before
    one small network that was trained on what they give. A given network stands behind all five as it is. Quilting
    around it has patches of training images of its task, which :meth:`train` takes; without them quilting and the
    ensemble are left out.

    Differs from the paper: Fashion-MNIST and small networks; one network for three transformations, where the paper
    trains one each; crops of 24 of 28 pixels a side. The ensemble averages the probabilities of all five, one draw each
    and 30 crops; the paper's is of quilting, total variation and crops. A given network has not seen any transformation
    in training, so that total variation and quilting cost it more clean accuracy than in the paper.

    Args:
        weights: the folder of its trained part; that which ships if None.
        network: the reference of a network to stand before.
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
        note="the size is printed as 0.005 by Athalye, Carlini and Wagner; 0.05 is a later correction, as remembered",
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
            network behind the random transformations without any, unless a network is given; and ``one-crop``, a
            single random crop before it.
        """
        parts: dict[str, tuple[Callable[[], nn.Module], bool]] = {
            "": (self._ensemble, True),
            "crop": (self._crop, True),
            "bit-depth": (self._bit_depth, False),
            "jpeg": (self._jpeg, False),
            "total-variation": (self._total_variation, True),
            "quilting": (self._quilting, True),
            "undefended": (self._pretrained, False),
            "one-crop": (partial(self._crop, count=1), True),
        }
        if self.network is None:
            parts["retrained"] = (self._retrained, False)
        return {
            variant: partial(self._target, variant, make, stochastic)
            for variant, (make, stochastic) in parts.items()
        }

    def lacks(self) -> str:
        """Say that there are no patches to quilt with around a given network."""
        if self.network is None or (self.weights is not None and has_part(_QUILTED, self.weights)):
            return ""
        return (
            f"{self.name} has no patches for {self.network}, so quilting and the ensemble are left out: take some of "
            f"training images with calipers train iclr2018 {self.name} --network MODEL --data DATA -o FOLDER, and name "
            "them by --weights FOLDER"
        )

    def _target(self, variant: str, make: Callable[[], nn.Module], stochastic: bool, device: str) -> Target:
        network = self._opened()
        return Target(
            make().eval(),
            num_classes=network.num_classes,
            input_shape=network.input_shape,
            device=device,
            stochastic=stochastic,
            name=f"{self.name}/{variant}".rstrip("/"),
        )

    def _opened(self) -> Network:
        return bundled_network(_BACKBONE) if self.network is None else given_network(self.network)

    def _pretrained(self) -> nn.Module:
        return Normalized(self._opened())

    def _retrained(self) -> nn.Module:
        # behind the random transformations; a given network stands there as it is
        if self.network is not None:
            return self._pretrained()
        net = load_part(small_network(), RETRAINED, self.weights)
        # the layout in which convolutions of few channels are faster
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _crop(self, *, count: int = 30) -> nn.Module:
        side = self._opened().input_shape[1]
        crops = RandomCrops(size=round(_CROP * side), side=side, count=count)
        return _behind(crops, EachCrop(self._retrained()), average=AverageProbabilities())

    def _bit_depth(self) -> nn.Module:
        return _behind(BitDepth(), self._pretrained())

    def _jpeg(self) -> nn.Module:
        return _behind(Jpeg(), self._pretrained())

    def _total_variation(self) -> nn.Module:
        return _behind(TotalVariation(), self._retrained())

    def _quilting(self) -> nn.Module:
        return _behind(Quilting(self._patches()), self._retrained())

    def _patches(self) -> Tensor:
        if self.network is None:
            return database()
        if self.lacks():
            raise UsageError(self.lacks())
        patches, channels = load_images(_QUILTED, self.weights), self._opened().input_shape[0]
        if patches.shape[1] != channels:
            raise UsageError(
                f"the patches in {self.weights} have {patches.shape[1]} channels and {self.network} takes {channels}: "
                "take patches of its own training images"
            )
        return patches

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
        plain, averaged = Judge(), EOT(4, inner=through)
        families = _Families(self, sizes_for(self._opened().input_shape).l2)
        behind = (
            "retrained" if self.network is None else "undefended"
        )  # the network of the random transformations
        often = _DRAWS if self.network is None else _FEW  # a network for colour images takes longer to answer
        every = (
            *families.all("ensemble", "", "undefended", often, adaptive=all_through),
            *families.all("crop", "crop", behind, _FEW, adaptive=EOT(2), steps=_OF_CROPS),
            families.row(
                "crop",
                "ablation",
                "PGD on the gradient of one crop, carried over",
                Transfer(self.reference("one-crop"), _pgd(Autograd(), _OF_CROPS)),
                "crop",
                _FEW,
            ),
            *families.all("bit-depth", "bit-depth", "undefended", plain, adaptive=through),
            *families.all("jpeg", "jpeg", "undefended", plain, adaptive=through),
            *families.all("total-variation", "total-variation", behind, _DRAWS, adaptive=averaged),
            *families.random("total-variation", through),
            *families.all("quilting", "quilting", behind, _DRAWS, adaptive=averaged),
            *families.random("quilting", through),
        )
        return tuple(row for row in every if not self.lacks() or row.family not in _QUILTING)

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the network behind the random transformations; around a given network, take patches to quilt with.

        Args:
            images: training images (n, channels, height, width), uint8.
            labels: their classes.
            folder: where the file goes.
            share: of images and epochs, or of patches.
            tell: told in words how far it is.
        """
        if self.network is None:
            train_retrained(images, labels, folder, patches=database, share=share, tell=tell)
        elif has_part(_QUILTED, folder):
            tell(f"{_QUILTED}: there already")
        else:
            few = images[: max(1, round(share * _GIVEN_IMAGES))]
            found = patches_of(few.float() / 255, count=max(10, round(share * _GIVEN_PATCHES)))
            about = {"what": "patches to quilt with", "data": f"{len(found)} patches of {len(few)} images"}
            save_images((found * 255).round().to(torch.uint8), _QUILTED, folder, about=about)
            tell(f"{_QUILTED}: {about['data']}")


def _behind(transform: nn.Module, classifier: nn.Module, **behind: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(transform=transform, classifier=classifier, **behind))


def _pgd(gradient: GradientEstimator, steps: int = _STEPS) -> PGD:
    return PGD(steps=steps, loss="margin", step_size=_STEP, gradient=gradient)


class _Families(NamedTuple):
    """The rows of each transformation.

    Args:
        defense: whose they are.
        eps: the size, in l2.
    """

    defense: Defense
    eps: str

    def row(self, family: str, role: Role, what: str, attack: Attack, variant: str, judge: Judge) -> Row:
        """Write a row."""
        return Row(role, what, attack, "l2", self.eps, variant, judge, _UNIT, family)

    def all(
        self,
        family: str,
        variant: str,
        bare: str,
        judge: Judge,
        *,
        adaptive: GradientEstimator,
        steps: int = _STEPS,
    ) -> tuple[Row, ...]:
        """List the rows that every transformation has; ``bare`` is its network alone."""
        network = self.defense.reference(bare)
        iterated = PGD(steps=10, step_size=0.1, random_start=False, keep=True)
        nearest = Transfer(network, CarliniWagner(steps=40, weights=5))
        described = "PGD, " + " ".join(_words(adaptive))
        return (
            self.row(family, "undefended", "PGD", _pgd(Autograd(), steps), bare, Judge()),
            self.row(
                family, "naive", "I-FGSM on the network alone", Transfer(network, iterated), variant, judge
            ),
            Row(
                "naive",
                "Carlini-Wagner on the network alone",
                nearest,
                "l2",
                "",
                variant=variant,
                judge=judge,
                family=family,
                within=self.eps,
            ),
            self.row(
                family,
                "matched",
                "PGD, autograd through the transformation",
                _pgd(Autograd(), steps),
                variant,
                judge,
            ),
            self.row(family, "adaptive", described, _pgd(adaptive, steps), variant, judge),
        )

    def random(self, family: str, through: BPDA) -> tuple[Row, ...]:
        """List the ablations of a transformation that shatters the gradient and draws it too."""
        return (
            self.row(family, "ablation", "PGD, EOT over 4 draws, no BPDA", _pgd(EOT(4)), family, _DRAWS),
            self.row(family, "ablation", "PGD, BPDA, one draw", _pgd(through), family, _DRAWS),
        )


def _words(gradient: GradientEstimator) -> tuple[str, ...]:
    if isinstance(gradient, EOT):
        over = f"EOT over {gradient.samples} draws"
        return (over,) if isinstance(gradient.inner, Autograd) else (*_words(gradient.inner), "and", over)
    return ("BPDA by the identity",)
