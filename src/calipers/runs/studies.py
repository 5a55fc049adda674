"""Studies: what is made of several methods. Verifying: saved adversarial inputs are judged again, as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from calipers.errors import InvalidInput
from calipers.runs.adversarial import read_adversarial
from calipers.threat.threat_model import Norm, ThreatModel
from calipers.threat.units import parse_size

__all__ = ["BY_LABEL", "Verification", "Verified", "verify"]

BY_LABEL = "answered by its label"
"""How the fault of an input begins that is in place, and fools nobody."""

_SEED = 2**63  # no run's seed by chance: the judge of an attack drew from that


@final
@dataclass(frozen=True)
class Verified:
    """One saved input, judged again.

    Args:
        index: its index in the data set.
        label: its class.
        prediction: the answer at it, the most frequent one of a randomized classifier; -1 where it abstains.
        distance: the size of the perturbation, in input units, rounded up.
        holds: whether it is an adversarial example: inside, and not answered by the label.
        fault: why not; empty where it holds.
    """

    index: int
    label: int
    prediction: int
    distance: float
    holds: bool
    fault: str


@final
@dataclass(frozen=True)
class Verification:
    """What a file of adversarial inputs is worth.

    Args:
        rows: its inputs.
        norm: the norm of the distances.
        eps: the size that was allowed; None for none.
        target: the fingerprint of the classifier.
        same_target: whether the file says that it was made for this very classifier; None where it says nothing.
    """

    rows: tuple[Verified, ...]
    norm: str
    eps: float | None
    target: str
    same_target: bool | None

    @property
    def holding(self) -> int:
        """How many of the inputs are adversarial examples."""
        return sum(row.holds for row in self.rows)


def verify(
    adversarial: Path,
    *,
    model: str,
    data: str,
    norm: str,
    eps: str | None,
    precision: str = "fp32",
    device: str = "cpu",
    trust_code: bool = False,
) -> Verification:
    """Judge saved adversarial inputs again: the box, the size, NaN, and the answer of the real classifier.

    Nothing is moved and nothing is forgiven: what is in the file is what is judged. A randomized classifier is asked as
    often as the usual judge asks it, in draws that no attack has seen, and is fooled by its majority rule.

    Args:
        adversarial: the file, as `calipers attack --save` writes it, or an npz file with ``adversarial``.
        model: the model reference.
        data: the reference of the clean data.
        norm: the norm.
        eps: the size allowed, as it was written; None for any.
        precision: the number format of the model.
        device: where it runs.
        trust_code: whether code of the user's may be run.

    Returns:
        A row an input.

    Raises:
        InvalidInput: if an input is not of the data set or has no label there, or shapes differ.
    """
    import numpy as np
    import torch

    from calipers.attacks.geometry import distances, inside_box
    from calipers.attacks.judge import Judge
    from calipers.randomness import Draws, Role
    from calipers.runs.catalog import load_model
    from calipers.sources.datasets import load_dataset

    found = read_adversarial(adversarial)
    dataset = load_dataset(data, trust_code=trust_code)
    target = load_model(
        model,
        precision=precision,  # type: ignore[arg-type]  # refused there if it is none
        device=device,
        trust_code=trust_code,
        input_shape=dataset.shape,
    )
    if found.images.shape[1:] != target.input_shape:
        raise InvalidInput(
            f"{adversarial} holds inputs of shape {found.images.shape[1:]} and {target.name} takes "
            f"{target.input_shape}: they are of another model"
        )
    places = {int(index): place for place, index in enumerate(dataset.indices)}
    missing = [int(index) for index in found.indices if int(index) not in places]
    if missing:
        raise InvalidInput(
            f"{adversarial} holds input {missing[0]}, which {data} has not: name the data it is of"
        )
    examples = [dataset[places[int(index)]] for index in found.indices]
    clean = torch.from_numpy(np.stack([example.image for example in examples]))
    labels = [example.label for example in examples]
    for index, told, label in zip(found.indices, found.labels, labels, strict=True):
        if told not in (-1, label):
            raise InvalidInput(
                f"{adversarial} says that input {index} has the label {told}, and in {data} it has {label}"
            )
        if label < 0:
            raise InvalidInput(
                f"input {index} of {data} has no label: whether it is fooled depends on which answer is right"
            )
    threat = ThreatModel(Norm.parse(norm), None if eps is None else float(parse_size(eps)))
    images = torch.from_numpy(found.images)
    finite = torch.isfinite(images.flatten(1)).all(1)
    boxed = inside_box(images, target.bounds)
    asked = torch.where(finite.view(-1, *[1] * (images.ndim - 1)), images, clean)
    distance = distances(asked, clean, threat.norm)
    judge, right = Judge(), torch.tensor(labels)
    fresh = Draws(_SEED, Role.JUDGE, tuple(int(index) for index in found.indices))
    answers = judge.answers(target, asked, fresh)
    fooled = judge.rule_on(answers, right, threat.goal, stochastic=target.stochastic).tolist()
    frequent, kept = answers.mode(0).values.tolist(), (answers == right).sum(0).tolist()
    rows = []
    for place in range(len(images)):
        answer = frequent[place] if bool(finite[place]) else -1
        fault = ""
        if not bool(finite[place]):
            fault = "NaN or infinite values"
        elif not bool(boxed[place]):
            fault = f"values outside the bounds {list(target.bounds)}"
        elif threat.eps is not None and float(distance[place]) > threat.eps:
            fault = f"distance {float(distance[place])!r} above eps {threat.eps!r}"
        elif answer < 0:
            fault = "the classifier abstains"
        elif not fooled[place]:
            often = f" in {kept[place]} of {len(answers)} draws" if target.stochastic else ""
            fault = f"{BY_LABEL}{often}"
        rows.append(
            Verified(
                index=int(found.indices[place]),
                label=labels[place],
                prediction=answer,
                distance=float(distance[place]) if bool(finite[place]) else float("nan"),
                holds=not fault,
                fault=fault,
            )
        )
    said = found.about.get("target")
    return Verification(
        tuple(rows),
        threat.norm.value,
        threat.eps,
        target.fingerprint,
        None if not said else said == target.fingerprint,
    )
