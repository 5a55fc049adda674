"""The detector in front of the network of Fashion-MNIST that ships: targets, rows, training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, NamedTuple, final

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
from calipers.defenses.given import MADE_FOR, check_made_for, given_network, network_digest, sizes_for
from calipers.defenses.lid.detection import Logistic, Roc, fit_logistic, roc
from calipers.defenses.lid.dimension import (
    MINIBATCH,
    ReferenceLID,
    layer_names,
    layer_outputs,
    minibatch_features,
)
from calipers.defenses.parts import (
    bundled_network,
    has_part,
    load_images,
    load_part,
    save_images,
    save_part,
    training_images,
)
from calipers.errors import InvalidInput, UsageError
from calipers.sources.network import Network
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel, Untargeted
from calipers.threat.units import parse_size

__all__ = ["DetectedClassifier", "LocalIntrinsicDimension"]

_BACKBONE: Final = "fashion-cnn28-plain"
_RATE: Final = 0.05
_REFERENCE, _FITTED, _CALIBRATED = 600, 400, 2000


class _Parts(NamedTuple):
    """The names of the trained parts.

    Args:
        detector: the regression, as deployed.
        leaky: the one that was fitted as in the authors' code.
        reference: the images of the reference; empty where those that ship are taken.
    """

    detector: str
    leaky: str
    reference: str


_SHIPPED: Final = _Parts("lid", "lid-leaky", "")
_GIVEN: Final = _Parts("around-lid", "around-lid-leaky", "around-lid-reference")


@final
class DetectedClassifier(nn.Module):
    """The classifier with the detector's verdict as a last column: the largest logit plus the log-odds.

    Args:
        net: the classifier.
        lid: the dimensions.
        detector: the regression.
    """

    def __init__(self, net: nn.Module, lid: ReferenceLID, detector: Logistic) -> None:
        super().__init__()
        self.net, self.lid, self.detector = net, lid, detector

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch columns"]:
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
    """The detector at a false-positive rate of 5 %, on the network of Fashion-MNIST that ships or on one that is given.

    Around a given network, :meth:`train` makes detector and reference of training images of its task; nothing ships.

    Differs from the paper: one detector for three kinds of attack in place of one each (DDN stands for C&W in its
    training), the reference is a fixed set of 600 training images in minibatches of 100, and it never holds the clean
    original of what is judged; :meth:`detection` has that as the authors' code does it.

    Args:
        weights: the folder of its trained parts; those that ship if None.
        network: the reference of a ``cnn28`` or of a residual network for CIFAR-10 to stand around.
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

    def lacks(self) -> str:
        """Say that it cannot be measured around a network that no detector was trained for."""
        if self.network is None or (self.weights is not None and has_part(_GIVEN.detector, self.weights)):
            return ""
        return (
            f"{self.name} has no detector for {self.network}: make one of training images with calipers train "
            f"iclr2018 {self.name} --network MODEL --data DATA -o FOLDER, and name it by --weights FOLDER"
        )

    def _detected(self, device: str) -> Target:
        network = self._opened()
        whole = DetectedClassifier(network.net, self._lid(network), self._detector(network, leaky=False))
        return self._target(device, network, whole.eval(), detector=True)

    def _undefended(self, device: str) -> Target:
        network = self._opened()
        return self._target(device, network, network.net, detector=False)

    def _target(self, device: str, network: Network, net: nn.Module, *, detector: bool) -> Target:
        mean, std = network.feeding.normalization()
        return Target(
            net,
            num_classes=network.num_classes,
            input_shape=network.input_shape,
            mean=mean,
            std=std,
            device=device,
            detector=detector,
            name=self.name,
        )

    def _opened(self) -> Network:
        return bundled_network(_BACKBONE) if self.network is None else given_network(self.network)

    def _eps(self) -> str:
        return sizes_for(self._opened().input_shape).linf

    def _lid(self, network: Network) -> ReferenceLID:
        if self.network is None:
            references = training_images()[0]
        else:
            self._refuse_another(network, _GIVEN.reference)
            references = load_images(_GIVEN.reference, self.weights)
        return ReferenceLID(network.net, _normalized(network, references))

    def _detector(self, network: Network, *, leaky: bool) -> Logistic:
        parts = _SHIPPED if self.network is None else _GIVEN
        part = parts.leaky if leaky else parts.detector
        if self.network is not None:
            self._refuse_another(network, part)
        detector = load_part(Logistic(len(layer_names(network.net))), part, self.weights)
        assert isinstance(detector, Logistic), "load_part gives back what it fills"
        return detector

    def _refuse_another(self, network: Network, part: str) -> None:
        if self.lacks():
            raise UsageError(self.lacks())
        check_made_for(network, part, self.weights, reference=str(self.network))

    def rows(self) -> tuple[Row, ...]:
        """List what is measured; an input has fallen where it is misclassified and not rejected.

        Returns:
            The rows; none around a network without a detector.
        """
        if self.lacks():
            return ()
        eps = self._eps()
        attack = PGD(steps=50, restarts=3, loss="margin")
        confident = PGD(steps=100, loss="margin", keep=True)

        def alone(inner: Attack) -> Transfer:
            return Transfer(self.network or f"bundled:{_BACKBONE}", inner)

        def row(role: Role, what: str, method: Attack, *, variant: str = "") -> Row:
            return Row(role, what, method, "linf", eps, variant=variant)

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
        clean: Float[Tensor, "batch channels height width"],
        x: Float[Tensor, "batch channels height width"],
        *,
        reference: Literal["training", "minibatch", "leaky minibatch"] = "training",
    ) -> Roc:
        """Say how well the detector tells inputs from the clean images that they were made from.

        Args:
            clean: clean images, in input units; for minibatches in multiples of 100, or fewer than that.
            x: what was made of each.
            reference: ``training``, fixed training images, as deployed; ``leaky minibatch``, as in the authors' code,
                the clean images of the input's own minibatch, its own original among them, with the detector that was
                fitted so; ``minibatch``, that detector, with the own original taken out.

        Returns:
            The curve.
        """
        network = self._opened()
        net, detector = network.net, self._detector(network, leaky=reference != "training")
        lid = self._lid(network)

        def scores(inputs: Tensor) -> Tensor:
            if reference == "training":
                parts = torch.split(_normalized(network, inputs), MINIBATCH)
                return torch.cat([detector(lid(layer_outputs(net, part))) for part in parts])
            found = minibatch_features(
                net,
                _normalized(network, clean),
                _normalized(network, inputs),
                leaky_reference=reference == "leaky minibatch",
            )
            return torch.as_tensor(detector(found))

        with torch.no_grad():
            return roc(scores(clean), scores(x))

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Attack training images, fit the regressions on them, and calibrate their thresholds on others.

        Around a given network the first images are kept as the reference; else those that ship are it.

        Args:
            images: training images (n, channels, height, width), uint8.
            labels: their classes.
            folder: where the files go.
            share: of the images; at least one minibatch.
            tell: told how far it is.

        Raises:
            InvalidInput: if there are too few images.
        """
        parts = _SHIPPED if self.network is None else _GIVEN
        network = self._opened()
        if has_part(parts.detector, folder) and has_part(parts.leaky, folder):
            if self.network is not None:
                check_made_for(network, parts.detector, folder, reference=self.network)
            tell(f"{parts.detector}: there already")
            return
        net, target = network.net, self._undefended("cpu")
        fitted, calibrated = (
            max(1, round(share * count / MINIBATCH)) * MINIBATCH for count in (_FITTED, _CALIBRATED)
        )
        needed = _REFERENCE + 2 * fitted + calibrated
        if self.network is not None and len(images) < needed:
            raise InvalidInput(f"there are {len(images)} training images: {self.name} needs {needed}")
        pool = images[_REFERENCE:].float() / 255
        keep = (target.predict(pool[: 2 * fitted]) == labels[_REFERENCE:][: 2 * fitted]).nonzero()[:fitted, 0]
        x, y = pool[keep], labels[_REFERENCE:][keep]
        others = pool[2 * fitted : 2 * fitted + calibrated]
        sets = _training_sets(target, x, y, float(parse_size(self._eps())), parts.detector, tell)
        about = {
            "data": f"{len(x)} training images, attacked and with noise; threshold on {len(others)} others",
            "false_positives": f"{_RATE} of clean images",
        }
        if self.network is None:
            references = training_images()[0]
        else:
            about[MADE_FOR] = network_digest(network)
            kept = images[:_REFERENCE]
            save_images(kept, parts.reference, folder, about={"what": "LID's reference", **about})
            references = kept.float() / 255
        reference = ReferenceLID(net, _normalized(network, references))

        def deployed(clean: Tensor, made: Tensor) -> Tensor:
            split = torch.split(_normalized(network, made), MINIBATCH)
            with torch.no_grad():
                return torch.cat([reference(layer_outputs(net, part)) for part in split])

        def leaky(clean: Tensor, made: Tensor) -> Tensor:
            return minibatch_features(
                net, _normalized(network, clean), _normalized(network, made), leaky_reference=True
            )

        for name, features in ((parts.leaky, leaky), (parts.detector, deployed)):
            found = [(features(x, made), positive) for made, positive in sets]
            table = torch.cat([one for one, _ in found])
            positive = torch.cat([torch.full((len(one),), flag) for one, flag in found])
            detector = fit_logistic(table, positive).half().float()
            scores = detector(features(others, others))
            detector.threshold = scores.double().quantile(1 - _RATE).float()[None]
            what = {"what": f"the logistic regression of calipers.defenses.lid ({name})"}
            save_part(detector, name, folder, about=what | about)
            tell(f"{name}: coefficients {[round(one, 2) for one in detector.weight.tolist()]}")


def _normalized(network: Network, x: Tensor) -> Tensor:
    mean, std = network.feeding.normalization()
    if mean is None or std is None:
        return x
    shift, scale = (torch.tensor(row).view(1, -1, 1, 1) for row in (mean, std))
    return (x - shift) / scale


def _training_sets(
    target: Target, x: Tensor, y: Tensor, eps: float, name: str, tell: Tell
) -> list[tuple[Float[Tensor, "batch channels height width"], bool]]:
    # clean, noisy and adversarial inputs, each with whether it is adversarial; the noise has the l2 size of the attack
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[Tensor, bool]] = []
    for attack, norm, size in (
        (DDN(steps=50), Norm.L2, None),
        (FGSM(), Norm.LINF, eps),
        (PGD(steps=20), Norm.LINF, eps),
    ):
        made = attack(target, x, y, ThreatModel(norm, size, Untargeted()), seed=0).adversarial
        noise = torch.randn(x.shape, generator=generator)
        apart = (made - x).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        noisy = (x + apart.view(-1, 1, 1, 1) * noise).clamp(0, 1)
        found += [(x, False), (noisy, False), (made, True)]
        tell(f"{name}: attacked {len(x)} training images by {type(attack).__name__}")
    return found
