"""Adversarial training (Madry et al. 2018): the defense that stands, and how far it reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, Literal, final

import torch
from torch import Tensor, nn

from calipers.attacks.pgd import PGD
from calipers.attacks.standard import Standard
from calipers.defenses.base import Defense, Hides, Paper, Row, Tell
from calipers.defenses.form import GREY, form_of, form_of_part
from calipers.defenses.parts import has_part, load_part, part_file
from calipers.defenses.undefended import (
    plain_loss,
    portion,
    train_network,
    train_undefended,
    undefended_target,
)
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.training import adversarial
from calipers.training.loop import TrainingProgress
from calipers.training.weights import save_weights

__all__ = ["RECIPE", "AdversarialLoss", "AdversarialTraining", "adversarially_trained", "train_adversarially"]

RECIPE: Final = adversarial.AdversarialTraining(arch="cnn28", eps=0.1, epochs=12, precision="bf16")
"""How the bundled network was trained, which is the target where no other weights are given."""

_PART = "adversarial-training"
_COLOUR_EPOCHS: Final = 4
_Sizes = tuple[tuple[Literal["linf", "l2", "l1"], str, str], ...]
_SIZES: Final[_Sizes] = (
    ("linf", "0.1", ""),
    ("l2", "1.4", "rms 0.05 a pixel"),
    ("l1", "10", "mean 0.013 a pixel"),
)
_COLOUR_SIZES: Final[_Sizes] = (
    ("linf", "8/255", ""),
    ("l2", "128/255", "rms 0.009 a pixel"),
    ("l1", "12", "mean 0.0039 a pixel"),
)
_BUNDLED, _PLAIN = "bundled:fashion-cnn28-adversarial", "bundled:fashion-cnn28-plain"


@final
@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """A network that learned from the worst points that projected gradient descent finds around each image.

    **The claim.** Robustness is a saddle point: the weights of least loss where the loss is largest in each ball. PGD
    finds that largest loss well enough, so that what is learned withstands every attack that knows the gradient.

    **The mechanism.** :mod:`calipers.training.adversarial`: seven steps of PGD for each batch, from a random point of
    the ball, and a step of the weights at what they find.

    **The limit.** Nothing is hidden, and stronger attacks take a few points only: this is the negative control, on
    which every check must stay green. But it is learned for one norm and one size. In l2 and l1, perturbations that
    change pixels by less in the mean bring down nine images of ten, and gradients near an image mislead.

    **The recipe.** :class:`~calipers.attacks.standard.Standard`: there is nothing to adapt to.

    The paper's own sizes are 8/255 on CIFAR-10, seven steps of 2/255 and a wide residual network. Here the size is .1
    on Fashion-MNIST, with steps of .036, and the network has 444 000 weights. On CIFAR-10 size and steps are
    nearly the paper's, and the network has 371 000 weights.
    """

    name: ClassVar[str] = "adversarial-training"
    paper: ClassVar[Paper] = Paper(
        authors="Madry, Makelov, Schmidt, Tsipras and Vladu 2018",
        title="Towards deep learning models resistant to adversarial attacks",
        source="arXiv:1706.06083",
        data="CIFAR-10",
        threat="linf 8/255",
        clean="87 %",
        claimed="45.8 % to 47 % (PGD)",
        adaptive="47 %",
        note="Athalye, Carlini and Wagner write the size as 0.031; AutoAttack finds 44.04 %",
    )
    claim: ClassVar[str] = (
        "A network trained where projected gradient descent errs most withstands every attack that follows gradients, "
        "at the size that it was trained for."
    )
    flaw: ClassVar[str] = (
        "None is hidden: stronger attacks take a few points; but it holds for the norm and the size of its training "
        "alone."
    )
    recipe: ClassVar[str] = "Standard()"
    hides: ClassVar[tuple[Hides, ...]] = ()
    minutes: ClassVar[float] = 12.0
    colour_minutes: ClassVar[float | None] = 8.0
    own_network: ClassVar[str] = "it is the training of a network of its own"

    def images(self) -> tuple[int, ...]:
        """Say what images its networks are for; see :meth:`Defense.images`."""
        return form_of_part(_PART, self.weights).input_shape

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers: the network, and one of the same architecture that was trained plainly.

        Returns:
            ``""`` and ``undefended``.
        """
        return {"": partial(adversarially_trained, self.weights), "undefended": self._undefended}

    def rows(self) -> tuple[Row, ...]:
        """List what is measured: at the size of linf that it was trained for, and at sizes of l2 and l1.

        Returns:
            The rows, one family a norm.
        """
        standard = Standard()
        rows: list[Row] = []
        grey = form_of_part(_PART, self.weights) == GREY
        for norm, eps, unit in _SIZES if grey else _COLOUR_SIZES:
            rows.append(
                Row("undefended", "Standard", standard, norm, eps, "undefended", unit=unit, family=norm)
            )
            if norm == "linf":
                naive = PGD(steps=40, restarts=5)
                rows.append(
                    Row("naive", "PGD-40 on the cross-entropy, 5 restarts", naive, norm, eps, family=norm)
                )
            rows.append(Row("adaptive", "Standard", standard, norm, eps, unit=unit, family=norm))
        return tuple(rows)

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the network by :data:`RECIPE`, or its form of CIFAR-10 and the plain one; see :meth:`Defense.train`."""
        if form_of(tuple(images.shape[1:])) != GREY:
            train_undefended(images, labels, folder, share=share, tell=tell)
        train_adversarially(images, labels, folder, share=share, tell=tell)

    def _undefended(self, device: str) -> Target:
        if form_of_part(_PART, self.weights) == GREY:
            return load_model(_PLAIN, device=device)
        return undefended_target(self.weights, device)


@final
@dataclass(frozen=True)
class AdversarialLoss:
    """The cross-entropy where seven steps of PGD end, with products in bfloat16.

    Reference: Madry et al. 2018, arXiv:1706.06083, equation 2.1.

    Args:
        eps: size of the linf ball, in input units.
    """

    eps: float

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        """Compute the loss.

        Args:
            net: the network.
            images: a batch (rows, channels, height, width), in [0, 1].
            labels: their classes (rows,).
            noise: where the ascents begin.

        Returns:
            The mean over the rows, in nats, a scalar.
        """

        def scores(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                found: Tensor = net(x)
            return found.float()

        net.requires_grad_(False)
        worst = adversarial.ascend(scores, images, labels, noise, eps=self.eps)
        net.requires_grad_(True)
        return plain_loss(net, worst, labels, noise)


def train_adversarially(images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
    """Train a network adversarially, unless its file is there.

    Args:
        images: training images (n, 1, 28, 28) or (n, 3, 32, 32), uint8.
        labels: their classes (n,), int64.
        folder: where the file goes.
        share: of images and epochs.
        tell: told in words how far it is.

    Raises:
        InvalidInput: if there is a file, and it is for other images, or of another share.
    """
    form = form_of(tuple(images.shape[1:]))
    if form != GREY:
        loss = AdversarialLoss(form.eps)
        train_network(
            _PART,
            form.network,
            loss,
            images,
            labels,
            folder,
            recipe=repr(loss),
            whole=_COLOUR_EPOCHS,
            share=share,
            tell=tell,
        )
        return
    if has_part(_PART, folder):
        form.check_part(_PART, folder, share=share)
        return
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(RECIPE, epochs=max(round(share * RECIPE.epochs), 1))

    def told(at: TrainingProgress) -> None:
        if at.report is not None:
            tell(f"{_PART}: epoch {at.report.epoch} of {at.report.epochs}: loss {at.report.loss:.4f}")

    model = adversarial.train(
        recipe,
        *portion(images, labels, share),
        num_classes=10,
        checkpoint=folder / f"{_PART}.partial",
        progress=told,
    )
    model = replace(model, state_dict={key: value.half() for key, value in model.state_dict.items()})
    save_weights(folder / f"{_PART}.safetensors", model, data=form.data, accuracy={})


def adversarially_trained(folder: Path | None, device: str) -> Target:
    """Make the adversarially trained classifier.

    Args:
        folder: where its file is; the one that ships if None.
        device: where it runs.

    Returns:
        The target.
    """
    form = form_of_part(_PART, folder)
    if form == GREY:
        return load_model(_BUNDLED if folder is None else f"file:{part_file(_PART, folder)}", device=device)
    net = load_part(form.network(), _PART, folder)
    return Target(net, num_classes=10, input_shape=form.input_shape, device=device, name=_PART)
