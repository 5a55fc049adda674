"""Adversarial training (Madry et al. 2018): the defense that stands, and how far it reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, Literal, final

from torch import Tensor

from calipers.attacks.pgd import PGD
from calipers.attacks.standard import Standard
from calipers.defenses.base import Defense, Hides, Paper, Row, Tell
from calipers.defenses.parts import part_file
from calipers.defenses.undefended import portion
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.training import adversarial
from calipers.training.loop import TrainingProgress
from calipers.training.weights import save_weights

__all__ = ["RECIPE", "AdversarialTraining"]

RECIPE: Final = adversarial.AdversarialTraining(arch="cnn28", eps=0.1, epochs=12, precision="bf16")
"""How the bundled network was trained, which is the target where no other weights are given."""

_PART = "adversarial-training"
_SIZES: Final[tuple[tuple[Literal["linf", "l2", "l1"], str, str], ...]] = (
    ("linf", "0.1", ""),
    ("l2", "1.4", "rms 0.05 a pixel"),
    ("l1", "10", "mean 0.013 a pixel"),
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
    on Fashion-MNIST, with steps of .036, and the network has 444 000 weights.
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
    own_network: ClassVar[str] = "it is the training of a network of its own"

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers: the network, and one of the same architecture that was trained plainly.

        Returns:
            ``""`` and ``undefended``.
        """
        return {"": self._trained, "undefended": lambda device: load_model(_PLAIN, device=device)}

    def rows(self) -> tuple[Row, ...]:
        """List what is measured: at linf .1, and at sizes of l2 and l1 that it was not trained for.

        Returns:
            The rows, one family a norm.
        """
        standard = Standard()
        rows: list[Row] = []
        for norm, eps, unit in _SIZES:
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
        """Train the network by :data:`RECIPE`; see :meth:`Defense.train`."""
        path = folder / f"{_PART}.safetensors"
        if path.is_file():
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
        save_weights(path, model, data="Fashion-MNIST", accuracy={})

    def _trained(self, device: str) -> Target:
        reference = _BUNDLED if self.weights is None else f"file:{part_file(_PART, self.weights)}"
        return load_model(reference, device=device)
