"""The diagnosis of a model reference: what `calipers diagnose` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from calipers.errors import InvalidInput
from calipers.threat.threat_model import Norm, ThreatModel
from calipers.threat.units import parse_size

if TYPE_CHECKING:
    from calipers.diagnostics.diagnose import Diagnosis
    from calipers.diagnostics.prescription import Prescription

__all__ = ["ModelDiagnosis", "diagnose_reference"]


@final
@dataclass(frozen=True)
class ModelDiagnosis:
    """The diagnosis of a model on data, with what was loaded.

    Args:
        described: pairs of a word and its value: what was loaded.
        norm: the norm of the perturbations.
        eps: their size as it was written.
        diagnosis: what the checks say.
        prescription: the attack that was chosen after it; None where none was asked for.
    """

    described: tuple[tuple[str, str], ...]
    norm: str
    eps: str
    diagnosis: Diagnosis
    prescription: Prescription | None

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON.

        Returns:
            A mapping.
        """
        found = {
            "described": dict(self.described),
            "norm": self.norm,
            "eps": self.eps,
            **self.diagnosis.to_dict(),
        }
        if self.prescription is not None:
            found["prescription"] = self.prescription.to_dict()
        return found


def diagnose_reference(
    model: str,
    data: str,
    *,
    norm: str,
    eps: str,
    attack: str | None = None,
    gradient: str | None = None,
    limit: int | None = 50,
    skip: int = 0,
    sample: int | None = None,
    seed: int = 0,
    budget: float = 60.0,
    prescribe: bool = False,
    precision: str = "fp32",
    device: str = "cpu",
    trust_code: bool = False,
    tell: Callable[[str], None] | None = None,
) -> ModelDiagnosis:
    """Diagnose what a model reference names, on what a data reference names.

    Args:
        model: the model reference.
        data: the data reference.
        norm: l1, l2 or linf.
        eps: the size as people write it.
        attack: the attack under diagnosis, as users name attacks; PGD with 40 steps and 2 restarts if None.
        gradient: how it has its gradient, as users write it; its own way if None.
        limit: how many inputs are taken at most.
        skip: how many inputs are left out at the front.
        sample: the size of a stratified subset; None takes them in their order.
        seed: of every draw.
        budget: seconds for all checks together, and as many again for the prescription.
        prescribe: whether an attack is chosen from the findings.
        precision: the number format of the model.
        device: where it runs.
        trust_code: whether code of the user's may be run.
        tell: told in words what is being done.

    Returns:
        The diagnosis.

    Raises:
        InvalidInput: if the data has no labels, or not the model's shape.
    """
    import torch

    from calipers.diagnostics.diagnose import diagnose
    from calipers.diagnostics.prescribe import prescribe as choose
    from calipers.runs.catalog import open_model
    from calipers.runs.naming import name_attack
    from calipers.sources.datasets import load_dataset

    threat = ThreatModel(Norm.parse(norm), float(parse_size(eps)))
    loaded = open_model(model, precision=precision, device=device, trust_code=trust_code)  # type: ignore[arg-type]
    target = loaded.target
    whole = load_dataset(data, input_shape=target.input_shape, trust_code=trust_code)
    part = whole.take(skip=skip, limit=limit)
    if sample is not None:
        part = part.sample(sample, seed=seed)
    if not part.labelled:
        raise InvalidInput(f"{data} has no labels: a diagnosis needs to know which answer is right")
    part.require_fit(input_shape=target.input_shape, num_classes=target.num_classes)
    x = torch.stack([torch.as_tensor(each.image) for each in part])
    y = torch.tensor([each.label for each in part])
    named = name_attack(
        attack or "pgd(steps=40, restarts=2)", gradient=gradient, sized=True, trust_code=trust_code
    )
    found = diagnose(target, x, y, threat, attack=named, seed=seed, budget=budget, tell=tell)
    chosen = choose(target, x, y, threat, found, seed=seed, budget=budget, tell=tell) if prescribe else None
    return ModelDiagnosis((*loaded.description, ("data", part.name)), threat.norm.value, eps, found, chosen)
