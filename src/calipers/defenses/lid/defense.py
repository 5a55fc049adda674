"""The detector in front of the network of Fashion-MNIST that ships: targets, rows, training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.carlini_wagner import CarliniWagner
from calipers.attacks.ddn import DDN
from calipers.attacks.fgsm import FGSM
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.lid.detection import Logistic, Roc, fit_logistic, roc
from calipers.defenses.lid.dimension import (
    LAYERS,
    MINIBATCH,
    ReferenceLID,
    layer_outputs,
    minibatch_features,
)
from calipers.defenses.parts import bundled_network, has_part, load_part, save_part, training_images
from calipers.sources.architectures import SmallConvNet
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel, Untargeted

__all__ = ["DetectedClassifier", "LocalIntrinsicDimension"]

_BACKBONE: Final = "fashion-cnn28-plain"
_PART: Final = "lid"
_LEAKY_PART: Final = "lid-leaky"
_RATE: Final = 0.05
_EPS: Final = 0.1
_REFERENCE, _FITTED, _CALIBRATED = 600, 400, 2000


@final
class DetectedClassifier(nn.Module):
    """The classifier with the detector's verdict as a last column: the largest logit plus the log-odds.

    Args:
        net: the classifier.
        lid: the dimensions.
        detector: the regression.
    """

    def __init__(self, net: SmallConvNet, lid: ReferenceLID, detector: Logistic) -> None:
        super().__init__()
        self.net, self.lid, self.detector = net, lid, detector

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch columns"]:
        """Classify and detect.

        Args:
            x: images, normalized.

        Returns:
            Logits, and the rejection score.
        """
        outputs = layer_outputs(self.net, x)
        logits = outputs[-1]
        rejected = logits.amax(1) + self.detector(self.lid(outputs))
        return torch.cat([logits, rejected[:, None]], 1)


@final
@dataclass(frozen=True)
class LocalIntrinsicDimension(Defense):
    """The detector at a false-positive rate of 5 %, on the network of Fashion-MNIST that ships.

    Differs from the paper: one detector for three kinds of attack in place of one each (DDN stands for C&W in its
    training), the reference is a fixed set of 600 training images in minibatches of 100, and it never holds the clean
    original of what is judged; :meth:`detection` has that as the authors' code does it.
    """

    name: ClassVar[str] = "lid"
    paper: ClassVar[Paper] = Paper(
        authors="Ma, Li, Wang, Erfani, Wijewickrema, Schoenebeck, Song, Houle and Bailey 2018",
        title="Characterizing adversarial subspaces using local intrinsic dimensionality",
        source="arXiv:1801.02613",
        data="CIFAR-10, a network of 12 layers",
        threat="linf 0.031",
        clean="2.6 % of clean images are flagged",
        claimed="AUC 0.974, accuracy of detection 0.926, against C&W in l2",
        adaptive="5 %",
        note="a detector: 4.4 % of high-confidence examples are flagged",
    )
    claim: ClassVar[str] = (
        "Distances to neighbours tell an adversarial example from an image of the data, layer by layer."
    )
    flaw: ClassVar[str] = (
        "Both are smooth functions of the input, so an adversary fools classifier and detector together."
    )
    recipe: ClassVar[str] = 'PGD(steps=50, restarts=3, loss="margin") on classifier and detector together'
    hides: ClassVar[tuple[Hides, ...]] = ()
    minutes: ClassVar[float] = 3.0

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The classifier with its detector, and ``undefended``, the classifier alone.
        """
        return {"": self._detected, "undefended": self._undefended}

    def _detected(self, device: str) -> Target:
        net, references = _backbone(), training_images()[0]
        detector = load_part(Logistic(len(LAYERS)), _PART, self.weights)
        assert isinstance(detector, Logistic), "load_part gives back what it fills"
        whole = DetectedClassifier(net, ReferenceLID(net, _normalized(references)), detector)
        return self._target(device, whole.eval(), detector=True)

    def _undefended(self, device: str) -> Target:
        return self._target(device, _backbone(), detector=False)

    def _target(self, device: str, net: nn.Module, *, detector: bool) -> Target:
        mean, std = bundled_network(_BACKBONE).feeding.normalization()
        return Target(
            net,
            num_classes=10,
            input_shape=(1, 28, 28),
            mean=mean,
            std=std,
            device=device,
            detector=detector,
            name=self.name,
        )

    def rows(self) -> tuple[Row, ...]:
        """List what is measured; an input has fallen where it is misclassified and not rejected.

        Returns:
            The rows.
        """
        attack = PGD(steps=50, restarts=3, loss="margin")
        confident = PGD(steps=100, loss="margin", keep=True)

        def alone(inner: Attack) -> Transfer:
            return Transfer(f"bundled:{_BACKBONE}", inner)

        def row(role: Role, what: str, method: Attack, *, variant: str = "") -> Row:
            return Row(role, what, method, "linf", str(_EPS), variant=variant)

        return (
            row("undefended", "PGD", attack, variant="undefended"),
            Row("naive", "C&W, confidence 0, on the classifier alone", alone(CarliniWagner()), "l2", ""),
            row("naive", "FGSM on the classifier alone", alone(FGSM())),
            row("naive", "BIM on the classifier alone", alone(PGD(steps=20, random_start=False))),
            row("matched", "PGD on the classifier alone", alone(attack)),
            row("adaptive", "PGD on classifier and detector together", attack),
            row("ablation", "PGD with high confidence, on the classifier alone", alone(confident)),
        )

    def detection(
        self,
        clean: Float[Tensor, "batch 1 28 28"],
        x: Float[Tensor, "batch 1 28 28"],
        *,
        reference: Literal["training", "minibatch", "leaky minibatch"] = "training",
    ) -> Roc:
        """Say how well the detector tells inputs from the clean images that they were made from.

        Args:
            clean: clean images, in input units; for minibatches in multiples of 100, or fewer than that.
            x: what was made of each.
            reference: ``training``, the images that ship, as deployed; ``leaky minibatch``, as in the authors' code,
                the clean images of the input's own minibatch, its own original among them, with the detector that was
                fitted so; ``minibatch``, that detector, with the own original taken out.

        Returns:
            The curve.
        """
        net = _backbone()
        detector = load_part(
            Logistic(len(LAYERS)), _PART if reference == "training" else _LEAKY_PART, self.weights
        )
        lid = ReferenceLID(net, _normalized(training_images()[0]))

        def scores(inputs: Tensor) -> Tensor:
            if reference == "training":
                return torch.cat(
                    [detector(_dimensions(net, lid, part)) for part in torch.split(inputs, MINIBATCH)]
                )
            leaky = reference == "leaky minibatch"
            return torch.as_tensor(
                detector(
                    minibatch_features(net, _normalized(clean), _normalized(inputs), leaky_reference=leaky)
                )
            )

        with torch.no_grad():
            return roc(scores(clean), scores(x))

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Attack training images, fit the regressions on them, and calibrate their thresholds on others.

        Args:
            images: training images (n, 1, 28, 28), uint8.
            labels: their classes.
            folder: where the files go.
            share: of the images; at least one minibatch.
            tell: told how far it is.
        """
        if has_part(_PART, folder) and has_part(_LEAKY_PART, folder):
            tell(f"{_PART}: there already")
            return
        net, target = _backbone(), self._undefended("cpu")
        fitted, calibrated = (
            max(1, round(share * count / MINIBATCH)) * MINIBATCH for count in (_FITTED, _CALIBRATED)
        )
        pool = images[_REFERENCE:].float() / 255
        keep = (target.predict(pool[: 2 * fitted]) == labels[_REFERENCE:][: 2 * fitted]).nonzero()[:fitted, 0]
        x, y = pool[keep], labels[_REFERENCE:][keep]
        others = pool[2 * fitted : 2 * fitted + calibrated]
        sets = _training_sets(target, x, y, tell)
        reference = ReferenceLID(net, _normalized(training_images()[0]))

        def deployed(clean: Tensor, made: Tensor) -> Tensor:
            with torch.no_grad():
                parts = [
                    reference(layer_outputs(net, _normalized(part))) for part in torch.split(made, MINIBATCH)
                ]
            return torch.cat(parts)

        def leaky(clean: Tensor, made: Tensor) -> Tensor:
            return minibatch_features(net, _normalized(clean), _normalized(made), leaky_reference=True)

        for name, features in ((_PART, deployed), (_LEAKY_PART, leaky)):
            found = [(features(x, made), positive) for made, positive in sets]
            table = torch.cat([one for one, _ in found])
            positive = torch.cat([torch.full((len(one),), flag) for one, flag in found])
            detector = fit_logistic(table, positive).half().float()
            scores = detector(features(others, others))
            detector.threshold = scores.double().quantile(1 - _RATE).float()[None]
            about = {
                "what": f"the logistic regression of calipers.defenses.lid ({name})",
                "data": f"{len(x)} training images, attacked and with noise; threshold on {len(others)} others",
                "false_positives": f"{_RATE} of clean images",
            }
            save_part(detector, name, folder, about=about)
            tell(f"{name}: coefficients {[round(one, 2) for one in detector.weight.tolist()]}")


def _backbone() -> SmallConvNet:
    net = bundled_network(_BACKBONE).net
    assert isinstance(net, SmallConvNet), "this is the architecture of the file that ships"
    return net


def _dimensions(net: SmallConvNet, lid: ReferenceLID, x: Tensor) -> Tensor:
    found: Tensor = lid(layer_outputs(net, _normalized(x)))
    return found


def _normalized(x: Tensor) -> Tensor:
    mean, std = bundled_network(_BACKBONE).feeding.normalization()
    assert mean is not None and std is not None, "the file that ships says both"
    return (x - mean[0]) / std[0]


def _training_sets(
    target: Target, x: Tensor, y: Tensor, tell: Tell
) -> list[tuple[Float[Tensor, "batch 1 28 28"], bool]]:
    # clean, noisy and adversarial inputs, each with whether it is adversarial; the noise has the l2 size of the attack
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[Tensor, bool]] = []
    for attack, norm, eps in (
        (DDN(steps=50), Norm.L2, None),
        (FGSM(), Norm.LINF, _EPS),
        (PGD(steps=20), Norm.LINF, _EPS),
    ):
        made = attack(target, x, y, ThreatModel(norm, eps, Untargeted()), seed=0).adversarial
        noise = torch.randn(x.shape, generator=generator)
        size = (made - x).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        noisy = (x + size.view(-1, 1, 1, 1) * noise).clamp(0, 1)
        found += [(x, False), (noisy, False), (made, True)]
        tell(f"{_PART}: attacked {len(x)} training images by {type(attack).__name__}")
    return found
