"""Defense-GAN (Samangouei et al. 2018): images are replaced by the nearest output of a generator.

**Claim.** A generator trained on clean images makes no adversarial ones. So, look for the latent point z whose image
G(z) is nearest to the given one, by 200 steps of gradient descent from each of ten random starts, and classify G(z): on
Fashion-MNIST and MNIST, white-box attacks are said to take little accuracy away.

**Mechanism.** The projection is an optimization. To differentiate it is to differentiate all steps of the descent.

**Flaw.** The descent runs outside of any graph, so the defense has no gradient; the starts are random. The literature
counts the gradient of the unrolled descent as vanishing. In this small form it does not vanish: the descent ends near a
minimum, and there the derivative is that of a projection, which the last steps hold already. And what lies on the
generator's range is left as it is by a perfect projection, so that one may search there, over z. What protects in
practice is that the projection is imperfect: it does not give back G(z), nor the clean image, and accuracy pays for it.

**Recipe.** ``PGD(steps=20, loss="margin", gradient=BPDA({"projection": continued}))``: projected forward; backward,
15 more steps of descent from the nearest image. Beside it BPDA with the identity, and
``CarliniWagner(over=Reparameterization(decode, encode))`` over z, with x' = G(z).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.attacks.fgsm import FGSM
from calipers.attacks.judge import Judge
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Row, Tell
from calipers.defenses.defense_gan.classifier import CLASSIFIER, train_classifier
from calipers.defenses.defense_gan.generator import LATENT
from calipers.defenses.defense_gan.latent import GENERATOR, continued, decode, encode, load_generator
from calipers.defenses.defense_gan.projection import Projection
from calipers.defenses.defense_gan.training import train_generator
from calipers.defenses.parts import has_part, load_part, small_network
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.reparameterization import Reparameterization
from calipers.target import Target

__all__ = ["DefenseGAN"]

_SHAPE: Final = (1, 28, 28)
_EPS, _UNIT, _STEPS = "1.98", "mean square 0.005 a pixel", 20
_JUDGE: Final = Judge(draws=12, rule="average")
_SEARCH: Final = CarliniWagner(steps=60, weights=4, over=Reparameterization(decode, encode))


@final
@dataclass(frozen=True)
class DefenseGAN(Defense):
    """Defense-GAN before a small network for Fashion-MNIST.

    Differs from the paper: 64 latent coordinates and width 16 in place of 128 and 64, a short training, and descents
    of 100 steps from 2 starts in place of 200 from 10; ``steps=200, restarts=10`` are the paper's.

    The judge asks twelve times, as a draw is expensive, and a candidate has succeeded where more than half of the
    answers are wrong.

    Args:
        weights: the folder of generator and classifier; those that ship if None. The search over z goes over the
            generator that ships.
        steps: of each descent (the paper's L is 200).
        restarts: descents an image (the paper's R is 10).
        rate: of the descent, for the mean square error; the paper's.
        momentum: of the descent; the paper's.
    """

    name: ClassVar[str] = "defense-gan"
    paper: ClassVar[Paper] = Paper(
        authors="Samangouei, Kabkab and Chellappa 2018",
        title="Defense-GAN: protecting classifiers against adversarial attacks using generative models",
        source="arXiv:1805.06605",
        data="MNIST",
        threat="l2 0.005 (mean square a pixel: l2 1.98)",
        clean="99.7 %",
        claimed="92 %",
        adaptive="55 %",
        note="0 % in principle, on the range of the generator; imperfections of the projection make that attack fail",
    )
    claim: ClassVar[str] = (
        "A generator of clean images makes no adversarial one, so its nearest output is classified rightly."
    )
    flaw: ClassVar[str] = (
        "The descent hides its gradient and starts at random; a few steps from where it ends have the derivative."
    )
    recipe: ClassVar[str] = 'PGD(steps=20, loss="margin", gradient=BPDA({"projection": continued}))'
    hides: ClassVar[tuple[Hides, ...]] = ("vanishing", "stochastic")
    minutes: ClassVar[float] = 18.0
    own_network: ClassVar[str] = "its generator makes images of Fashion-MNIST"

    steps: int = 100
    restarts: int = 2
    rate: float = 10.0
    momentum: float = 0.7

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The defense; ``unrolled``, the same with descents that autograd can follow; and ``undefended``, the
            classifier alone. To the classifier alone an image on the range of the generator is what a perfect
            projection would hand it.
        """
        return {
            "": self._projected,
            "undefended": self._bare,
            "unrolled": lambda device: self._projected(device, unrolled=True),
        }

    def _projected(self, device: str, *, unrolled: bool = False) -> Target:
        projection = self._projection(self.weights)
        projection.unrolled = unrolled
        net = nn.Sequential(OrderedDict(projection=projection, classifier=self._classifier()))
        return Target(
            net.eval(), num_classes=10, input_shape=_SHAPE, device=device, stochastic=True, name=self.name
        )

    def _bare(self, device: str) -> Target:
        name = f"{self.name}/undefended"
        return Target(self._classifier(), num_classes=10, input_shape=_SHAPE, device=device, name=name)

    def _classifier(self) -> nn.Module:
        return load_part(small_network(), CLASSIFIER, self.weights)

    def _projection(self, folder: Path | None) -> Projection:
        return Projection(
            load_generator(folder),
            latent=LATENT,
            steps=self.steps,
            restarts=self.restarts,
            rate=self.rate,
            momentum=self.momentum,
        )

    def rows(self) -> tuple[Row, ...]:
        """List what is measured; but for what is called theory, every attack is judged by whole projections.

        Returns:
            The rows. What stands in for the projection, and the search over z, know the generator that ships: around
            another one the adaptive attack goes through the unrolled descent, and nothing is searched over z.
        """
        bare = f"iclr2018:{self.name}/undefended" + (f"?weights={self.weights}" if self.weights else "")
        plain = PGD(steps=_STEPS, loss="margin")
        through = PGD(steps=_STEPS, loss="margin", gradient=BPDA({"projection": continued}))
        bpda = PGD(steps=_STEPS, loss="margin", gradient=BPDA({"projection": identity}))
        alone, again = Transfer(bare, CarliniWagner(steps=60, weights=4)), Transfer(bare, _SEARCH)
        known = self._has_the_shipped_generator()
        found = (
            Row("undefended", "PGD on the classifier alone", plain, "l2", _EPS, "undefended", unit=_UNIT),
            Row("naive", "C&W on the classifier alone, then projected", alone, "l2", "", judge=_JUDGE),
            Row("naive", "FGSM through the unrolled descent", FGSM(), "linf", "0.3", "unrolled", _JUDGE),
            Row("matched", "PGD through the unrolled descent", plain, "l2", _EPS, "unrolled", _JUDGE, _UNIT),
            Row(
                "adaptive",
                "PGD, BPDA with 15 steps of descent from the nearest image"
                if known
                else "PGD through the unrolled descent",
                through if known else plain,
                "l2",
                _EPS,
                "" if known else "unrolled",
                judge=_JUDGE,
                unit=_UNIT,
            ),
            Row("ablation", "PGD, BPDA with the identity", bpda, "l2", _EPS, judge=_JUDGE, unit=_UNIT),
            Row("ablation", "C&W over z, projected again", again, "l2", "", judge=_JUDGE),
            Row(
                "ablation",
                "theory, C&W over z: a perfect projection leaves G(z) as it is",
                _SEARCH,
                "l2",
                "",
                "undefended",
            ),
        )
        return found if known else tuple(row for row in found if "over z" not in row.what)

    def _has_the_shipped_generator(self) -> bool:
        if self.weights is None or not has_part(GENERATOR, self.weights):
            return True  # where the part is missing, loading says so
        own, shipped = load_generator(self.weights).state_dict(), load_generator(None).state_dict()
        return all(torch.equal(own[name], value) for name, value in shipped.items())

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train generator and classifier, each unless its file is there.

        Args:
            images: training images.
            labels: their classes.
            folder: where the files go.
            share: 1 for what ships; less for a try.
            tell: told in words how far it is.
        """
        if not has_part(GENERATOR, folder):
            train_generator(images, labels, folder, share=share, tell=tell)
        if not has_part(CLASSIFIER, folder):
            projection = replace(self, restarts=1)._projection(folder)
            train_classifier(projection, images, labels, folder, share=share, tell=tell)
