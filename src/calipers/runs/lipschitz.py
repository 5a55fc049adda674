"""The Lipschitz constant of a model reference, from above and from below, layer by layer."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, final

from calipers.threat.threat_model import Norm

__all__ = ["LayerRow", "ModelConstant", "measure_constant"]


@final
@dataclass(frozen=True)
class LayerRow:
    """One layer, or several that were merged into one linear map.

    Args:
        name: its place in the network.
        kind: the type of module, or the function.
        upper: upper bound on its constant.
        lower: a stretch that an input of the layer undergoes; None where none was computed.
        method: how the upper bound was found.
        total: upper bound on the constant from the network's input to its output.
    """

    name: str
    kind: str
    upper: float
    lower: float | None
    method: str
    total: float


@final
@dataclass(frozen=True)
class ModelConstant:
    """The constant of a network, from both sides.

    Args:
        described: pairs of a word and its value: what was loaded.
        norm: the norm of inputs and scores.
        upper: the upper bound, in units of score by input unit.
        lower: a slope that was found between two inputs; None where none was looked for.
        method: what proved the upper bound.
        product: the layerwise product alone.
        layers: a row a layer.
        upper_seconds: time that the upper bounds took.
        lower_seconds: time that the lower bounds took.
    """

    described: tuple[tuple[str, str], ...]
    norm: str
    upper: float
    lower: float | None
    method: str
    product: float
    layers: tuple[LayerRow, ...]
    upper_seconds: float
    lower_seconds: float

    @property
    def ratio(self) -> float | None:
        """The upper bound over the lower: how much is left open."""
        return None if not self.lower else self.upper / self.lower

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON.

        Returns:
            A mapping.
        """
        return {**asdict(self), "described": dict(self.described), "ratio": self.ratio}


def measure_constant(
    model: str,
    *,
    norm: str = "l2",
    method: str = "auto",
    samples: int = 64,
    steps: int = 20,
    seed: int = 0,
    device: str = "cpu",
    trust_code: bool = False,
) -> ModelConstant:
    """Bound the Lipschitz constant of a network from both sides.

    Args:
        model: the model reference.
        norm: l1, l2 or linf.
        method: how the upper bound is found.
        samples: points at which slopes are measured; 0 leaves the lower bound of the whole out.
        steps: steps of the ascent on slopes.
        seed: the seed of the points.
        device: where the network runs.
        trust_code: whether code of the user's may be run.

    Returns:
        Both bounds, and a row a layer.
    """
    from calipers.certificates.lipschitz.certifier import bounds_of, scores_in_float64
    from calipers.certificates.lipschitz.floors import operator_floor
    from calipers.certificates.lipschitz.sandwich import sampled_lower_bound
    from calipers.runs.catalog import open_model

    wanted = Norm.parse(norm)
    loaded = open_model(model, device=device, trust_code=trust_code)
    start = time.perf_counter()
    bound = bounds_of(loaded.target, wanted, method)  # type: ignore[arg-type]  # refused there if it is none
    middle = time.perf_counter()
    rows = tuple(
        LayerRow(
            layer.name,
            layer.kind,
            layer.upper,
            None if layer.operator is None else operator_floor(layer.operator, wanted),
            layer.method,
            layer.total,
        )
        for layer in bound.layers
    )
    lower = None
    if samples:
        lower = sampled_lower_bound(
            scores_in_float64(loaded.target),
            loaded.target.input_shape,
            loaded.target.bounds,
            wanted,
            samples=samples,
            steps=steps,
            seed=seed,
        )
    return ModelConstant(
        described=loaded.description,
        norm=wanted.value,
        upper=bound.upper,
        lower=lower,
        method=bound.method,
        product=bound.product,
        layers=rows,
        upper_seconds=middle - start,
        lower_seconds=time.perf_counter() - middle,
    )
