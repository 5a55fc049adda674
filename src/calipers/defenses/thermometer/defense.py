"""The thermometer defense: its networks, the attacks that it is measured with, and its training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from calipers.attacks.combine import worst_of
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.adversarial_training import (
    AdversarialTraining,
    adversarially_trained,
    train_adversarially,
)
from calipers.defenses.base import Defense, Hides, Paper, Row, Tell
from calipers.defenses.form import GREY, Form, form_of, form_of_part
from calipers.defenses.parts import load_part
from calipers.defenses.thermometer.encoding import (
    LEVELS,
    ThermometerEncoder,
    lower_buckets,
    next_bucket,
    rise_from_threshold,
    rise_to_threshold,
)
from calipers.defenses.thermometer.logit_space import LogitSpacePGA, ascend, code_of, reachable
from calipers.defenses.undefended import plain_loss, train_network, train_undefended, undefended_target
from calipers.errors import MissingFile
from calipers.gradients.bpda import BPDA
from calipers.target import Target
from calipers.training.parts import BatchLoss

__all__ = ["LogitSpaceLoss", "Thermometer", "encoded_network"]

_ALONE, _BOTH = "encoding alone", "with adversarial training"
_PART, _BOTH_PART = "thermometer", "thermometer-adversarial"
_MADRY = "bundled:fashion-cnn28-adversarial"
_STEPS: Final = 3
_EPOCHS, _COLOUR_EPOCHS = (8, 3), (6, 2)


def encoded_network(form: Form = GREY) -> nn.Sequential:
    """Build the encoder and the network behind it.

    Args:
        form: what images they are for.

    Returns:
        A network with the parts ``encoder`` and ``classifier``.
    """
    encoder = ThermometerEncoder(LEVELS, channels=form.channels)
    behind = form.network(LEVELS)
    return nn.Sequential(OrderedDict(encoder=encoder, classifier=behind))


@final
@dataclass(frozen=True)
class LogitSpaceLoss:
    """The cross-entropy where steps of LS-PGA end, with products in bfloat16.

    Args:
        eps: size of the linf ball, in input units.
        steps: of LS-PGA.
    """

    eps: float
    steps: int = _STEPS

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        """Compute the loss.

        Args:
            net: the encoder and the network.
            images: a batch (rows, channels, height, width), in [0, 1].
            labels: their classes (rows,).
            noise: where LS-PGA begins.

        Returns:
            The mean over the rows, in nats, a scalar.
        """
        net.requires_grad_(False)
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = ascend(net, images, labels, self.eps, noise, steps=self.steps)
        net.requires_grad_(True)
        return plain_loss(net, code_of(logits, reachable(images, self.eps)), labels, noise)


@final
@dataclass(frozen=True)
class Thermometer(Defense):
    """A network that sees each pixel as sixteen channels, the first of which are 1 and the others 0.

    **The claim.** A network of small slopes is easily moved by many small steps. If a pixel is shown in discrete
    levels, no small step moves anything, and the network behind may be as nonlinear as it likes.

    **The mechanism.** :func:`~calipers.defenses.thermometer.encoding.encode`. Trained adversarially, with LS-PGA, it
    was the most robust network of its time by the authors' measure.

    **The flaw.** What small steps do not do, larger ones do: a ball of .1 reaches four buckets of a pixel. The encoding
    only takes the derivative away: it shatters the gradient. LS-PGA goes around that, but its seven steps of .01 hardly
    move logits that begin as normal draws of deviation 1, so it finds little more than noise does; the same search with
    steps of 1 breaks the defense.

    **The recipe.** The real encoding forward, a ramp backward: ``PGD(BPDA({"encoder": next_bucket}))``. With
    adversarial training LS-PGA searches once more what still stands, with steps that move its logits. What remains is
    what adversarial training gives, and less than it gives without the encoding.

    The paper's own sizes are 8/255 on CIFAR-10, seven steps of LS-PGA and a wide residual network. Here the size is .1
    on Fashion-MNIST, the network has 95 000 weights, and it is trained with three steps. On CIFAR-10 the size is the
    paper's, and the network has 384 000 weights.
    """

    name: ClassVar[str] = "thermometer"
    paper: ClassVar[Paper] = Paper(
        authors="Buckman, Roy, Raffel and Goodfellow 2018",
        title="Thermometer encoding: one hot way to resist adversarial examples",
        source="openreview:S18Su--CW",
        data="CIFAR-10",
        threat="linf 8/255",
        clean="90 % (with adversarial training)",
        claimed="79.16 % (LS-PGA, with adversarial training); 50.00 % was the best known before",
        adaptive="0 % the encoding alone; 30 % with adversarial training",
        note="Athalye, Carlini and Wagner write the size as 0.031",
    )
    claim: ClassVar[str] = (
        "Pixels shown in sixteen discrete levels keep small perturbations from the network, whose accuracy under the "
        "strongest known white-box attack rises from 50 % to 79 %."
    )
    flaw: ClassVar[str] = (
        "The encoding changes at its thresholds alone, so its derivative is 0 everywhere: the perturbations still get "
        "through, and only the gradient does not."
    )
    recipe: ClassVar[str] = 'PGD(BPDA({"encoder": next_bucket}), steps=40, step_size=0.25, loss="margin")'
    hides: ClassVar[tuple[Hides, ...]] = ("shattered",)
    minutes: ClassVar[float] = 7.0
    colour_minutes: ClassVar[float | None] = 18.0
    own_network: ClassVar[str] = "its network is trained on encoded images"

    def images(self) -> tuple[int, ...]:
        """Say what images its networks are for; see :meth:`Defense.images`."""
        return form_of_part(_PART, self.weights).input_shape

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers: encoding and adversarial training, each alone, both, and neither.

        Returns:
            ``""``, ``adversarial`` (both), ``undefended`` (neither) and ``undefended-adversarial``.
        """
        return {
            "": partial(self._encoded, _PART),
            "adversarial": partial(self._encoded, _BOTH_PART),
            "undefended": partial(undefended_target, self.weights),
            "undefended-adversarial": self._adversarially_trained,
        }

    def rows(self) -> tuple[Row, ...]:
        """List what is measured, at the size that adversarial training was for.

        Returns:
            The rows of the encoding alone, and of the encoding with adversarial training.
        """
        form = form_of_part(_PART, self.weights)
        eps = form.sizes.linf
        carried = self._carried_over(form)
        plain, adaptive = PGD(steps=40, step_size=0.25, loss="margin"), _through(next_bucket)
        return (
            Row("undefended", "PGD-40 on the margin", plain, "linf", eps, "undefended", family=_ALONE),
            Row(
                "naive",
                "LS-PGA, 7 steps of 0.01 along the sign",
                LogitSpacePGA(),
                "linf",
                eps,
                family=_ALONE,
            ),
            Row("matched", "PGD-40 on the margin, autograd: gradient 0", plain, "linf", eps, family=_ALONE),
            Row(
                "adaptive",
                "PGD-40 on the margin, BPDA: ramp in the next bucket",
                adaptive,
                "linf",
                eps,
                family=_ALONE,
            ),
            *(
                Row(
                    "ablation",
                    f"PGD-40 on the margin, BPDA: {what}",
                    _through(chosen),
                    "linf",
                    eps,
                    family=_ALONE,
                )
                for what, chosen in (
                    ("ramp up to each threshold", rise_to_threshold),
                    ("ramp behind each bucket", rise_from_threshold),
                    ("ramp behind each threshold", lower_buckets),
                )
            ),
            *(
                Row("ablation", f"LS-PGA, {what}", chosen, "linf", eps, family=_ALONE)
                for what, chosen in (
                    ("7 steps of 0.01 along the gradient (the released code)", LogitSpacePGA(sign=False)),
                    ("7 steps of 1 along the sign", LogitSpacePGA(step_size=1.0)),
                )
            ),
            Row(
                "ablation",
                "examples of an adversarially trained network",
                carried,
                "linf",
                eps,
                family=_ALONE,
            ),
            Row(
                "undefended",
                "adversarial training alone: PGD-40 on the margin",
                plain,
                "linf",
                eps,
                "undefended-adversarial",
                family=_BOTH,
            ),
            Row(
                "naive",
                "LS-PGA, 7 steps of 0.01 along the sign",
                LogitSpacePGA(),
                "linf",
                eps,
                "adversarial",
                family=_BOTH,
            ),
            Row(
                "matched",
                "PGD-40 on the margin, autograd: gradient 0",
                plain,
                "linf",
                eps,
                "adversarial",
                family=_BOTH,
            ),
            Row(
                "adaptive",
                "PGD-40 on the margin, BPDA: ramp in the next bucket; then LS-PGA, 40 steps of 0.5",
                worst_of(adaptive, LogitSpacePGA(steps=40, step_size=0.5, anneal=1.05)),
                "linf",
                eps,
                "adversarial",
                family=_BOTH,
            ),
            Row(
                "ablation",
                "PGD-40 on the margin, BPDA: ramp in the next bucket",
                adaptive,
                "linf",
                eps,
                "adversarial",
                family=_BOTH,
            ),
            Row(
                "ablation",
                "LS-PGA, 7 steps of 1 along the sign",
                LogitSpacePGA(step_size=1.0),
                "linf",
                eps,
                "adversarial",
                family=_BOTH,
            ),
            Row(
                "ablation",
                "examples of an adversarially trained network",
                carried,
                "linf",
                eps,
                "adversarial",
                family=_BOTH,
            ),
        )

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the network without the encoding, with it, and with it adversarially; see :meth:`Defense.train`."""
        form = form_of(tuple(images.shape[1:]))
        train_undefended(images, labels, folder, share=share, tell=tell)
        if form != GREY:
            train_adversarially(images, labels, folder, share=share, tell=tell)
        ball, (plain, adversarial) = form.sizes.linf, _EPOCHS if form == GREY else _COLOUR_EPOCHS
        losses: tuple[tuple[str, BatchLoss, str, int], ...] = (
            (_PART, plain_loss, "cross-entropy", plain),
            (
                _BOTH_PART,
                LogitSpaceLoss(form.eps),
                f"LS-PGA, {_STEPS} steps of 0.01, linf {ball}",
                adversarial,
            ),
        )
        for name, loss, recipe, whole in losses:
            train_network(
                name,
                partial(encoded_network, form),
                loss,
                images,
                labels,
                folder,
                recipe=recipe,
                whole=whole,
                share=share,
                tell=tell,
            )

    def _carried_over(self, form: Form) -> Transfer:
        """Search on the adversarially trained network: the one that ships, or the one that is in the folder now."""
        if form == GREY:
            return Transfer(_MADRY)
        there = AdversarialTraining(self.weights)
        try:
            fingerprint = there.target().fingerprint
        except MissingFile:  # whoever measures is told
            fingerprint = ""
        return Transfer(there.reference(), fingerprint=fingerprint)

    def _encoded(self, name: str, device: str) -> Target:
        form = form_of_part(name, self.weights)
        net = load_part(encoded_network(form), name, self.weights)
        return Target(net, num_classes=10, input_shape=form.input_shape, device=device, name=name)

    def _adversarially_trained(self, device: str) -> Target:
        grey = form_of_part(_PART, self.weights) == GREY
        return adversarially_trained(None if grey else self.weights, device)


def _through(ramp: Callable[..., Tensor]) -> PGD:
    """Search by PGD behind a ramp."""
    return PGD(BPDA({"encoder": ramp}), steps=40, step_size=0.25, loss="margin")
