"""LipschitzCertifier: Theorem 0 with the best constants that are proved; one forward pass an input."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from calipers.certificates.base import Certifier, Progress
from calipers.certificates.lipschitz.freezing import copied, frozen
from calipers.certificates.lipschitz.margin import RULES, Margins, certify_margins, softmax_differences
from calipers.certificates.lipschitz.network import METHODS, LipschitzBound, Method, lipschitz_upper_bound
from calipers.certificates.lipschitz.shapes import InFloat64
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.certificates.smoothing.radius import convert_radius
from calipers.errors import Unsound, UsageError
from calipers.evidence.records import Certificate
from calipers.target import Access, Target
from calipers.target.fingerprint import fingerprint_module
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

__all__ = ["LipschitzCertifier", "bounds_of", "scores_in_float64"]

_ROWS = 100
_NO_RIVAL = -1


class _Found(NamedTuple):
    """What one norm of constants proves for a batch, in the norm that was asked for."""

    margins: Margins
    radius: np.ndarray
    theorem: str


_BOUNDS: WeakKeyDictionary[Target, dict[tuple[Norm, str, str], LipschitzBound]] = WeakKeyDictionary()


def bounds_of(target: Target, norm: Norm, method: Method) -> LipschitzBound:
    """Bound the Lipschitz constant of a target; the bound is kept as long as the target is.

    Args:
        target: a classifier that gives gradients, deterministic, in fp32.
        norm: the norm of inputs and scores.
        method: how it is bounded.

    Returns:
        The bound, in real arithmetic of the target's weights.

    Raises:
        Unsound: if no constant of the target's network would be one of the classifier.
    """
    if target.access is not Access.GRADIENTS:
        raise Unsound(
            f"{target.name} gives {target.access.name.lower()} only: a Lipschitz constant is computed from a network's "
            "layers; certify it by smoothing (--sigma)"
        )
    if target.stochastic or target.detector:
        what = "draws randomness" if target.stochastic else "rejects inputs"
        raise Unsound(
            f"{target.name} {what}: the constant of its scores says nothing of its answers; certify it by smoothing"
        )
    if target.precision != "fp32":
        raise Unsound(
            f"precision is {target.precision}: its rounding is far larger than the slack of a Lipschitz bound; "
            "use --precision fp32"
        )
    kept = _BOUNDS.setdefault(target, {})
    state = fingerprint_module(target.module)
    if (norm, method, state) not in kept:
        kept[norm, method, state] = lipschitz_upper_bound(
            target.module, target.input_shape, norm, method=method
        )
    return kept[norm, method, state]


def scores_in_float64(target: Target) -> nn.Module:
    """Copy a target's network, preprocessing included, into float64: the same real function, rounded less.

    Args:
        target: a classifier in fp32 that gives gradients.

    Returns:
        A module from inputs (batch, *input_shape), float64, to scores in float64.

    Raises:
        Unsound: if the network casts to another number format by itself.
    """
    wide = _InFloat64(frozen(copied(target.module)).double().eval(), target.device)
    draw = torch.Generator().manual_seed(0)
    low, high = target.bounds
    x = low + (high - low) * torch.rand((_ROWS, *target.input_shape), generator=draw, dtype=torch.float64)
    with torch.no_grad():
        found = wide(x)
        alone = torch.cat([wide(x[row : row + 1]) for row in (0, 1, _ROWS - 1)])
    if found.dtype is not torch.float64:
        raise Unsound(
            f"{target.name} casts its scores to {found.dtype} by itself: its margins cannot be had in float64; remove "
            "the cast"
        )
    together = found[[0, 1, _ROWS - 1]]
    if not bool(torch.allclose(together, alone, rtol=1e-9, atol=1e-12)):
        raise Unsound(
            f"{target.name} answers an input otherwise in a batch of {_ROWS}: no bound holds for it"
        )
    return wide


class _InFloat64(nn.Module):
    """A frozen network that stays in float64 where it would cast to float32."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.net = net.to(device).requires_grad_(False)
        self.device = device

    def forward(self, x: Tensor) -> Tensor:
        with InFloat64():
            scores: Tensor = self.net(x.to(self.device))
        return scores


@final
@dataclass(frozen=True)
class LipschitzCertifier(Certifier):
    r"""Certifies a deterministic classifier by the margin of its scores and a Lipschitz constant.

    The constant is an upper bound proved from the weights, layer by layer, or for layers together. Radii hold in real
    arithmetic for the network whose weights these are: scores are computed in float64 and a share of 1e-9 is taken off,
    while the rounding of a deployed float32 forward pass at the perturbed point is not counted. An input whose float32
    prediction is another one is withheld.

    For l1 and linf radii, constants in that norm and the l2 radius by comparison of norms both stand for candidates,
    and the larger radius is taken: no failure probability is spent, since there is none.

    Reference: Theorem 0 (docs/theory/lipschitz); Tsuzuku et al. 2018, arXiv:1802.04034.

    Args:
        method: how the constant is bounded: ``auto``, ``grid``, ``exact``, ``eclipse`` or ``lipsdp``.
        rule: the form of Theorem 0: ``best`` takes the smallest constant of each pair of classes; otherwise
            ``per-coordinate``, ``vector``, ``last-layer``, ``composed`` or ``softmax``.
    """

    revision: ClassVar[int] = 1

    method: Method = "auto"
    rule: str = "best"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method is {self.method!r}: use one of {', '.join(METHODS)}")
        if self.rule != "best" and self.rule not in RULES:
            raise UsageError(f"rule is {self.rule!r}: use one of best, {', '.join(RULES)}")

    def stream(
        self,
        target: Target,
        inputs: Iterable[tuple[int, Tensor]],
        threat: ThreatModel,
        *,
        seed: int,
        plan: ExecutionPlan | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Certificate]:
        """Certify inputs as they come; see :class:`Certifier`."""
        bounds = self._bounds(target, threat.norm)
        network = scores_in_float64(target)
        rows = _ROWS if plan is None else plan.batch_size
        for numbers, images in _batches(inputs, rows):
            target.check_inputs(images, indices=numbers)
            start = time.perf_counter()
            scores = _padded(network, images, rows, target.device)
            deployed = target.predict(images).cpu().numpy()
            found = [self._certify(scores, bound, threat.norm, target.dimension) for bound in bounds]
            if progress is not None:
                progress(len(numbers))
            seconds = (time.perf_counter() - start) / len(numbers)
            for place, index in enumerate(numbers):
                best = found[int(np.argmax([float(each.radius[place]) for each in found]))]
                yield self._record(
                    best, place, index, int(deployed[place]), target, threat.norm, seed, seconds
                )

    def _bounds(self, target: Target, norm: Norm) -> list[LipschitzBound]:
        if norm is Norm.L0:
            raise UsageError("norm is l0: Lipschitz constants certify l1, l2 and linf")
        bounds = [bounds_of(target, Norm.L2, self.method)]
        if norm is not Norm.L2 and self.method in ("auto", "grid", "exact"):
            try:
                bounds.insert(0, bounds_of(target, norm, self.method))
            except Unsound:
                return bounds
        return bounds

    def _certify(self, scores: np.ndarray, bound: LipschitzBound, norm: Norm, dimension: int) -> _Found:
        if self.rule == "softmax":
            shifted = np.exp(scores - scores.max(1, keepdims=True))
            scores = shifted / shifted.sum(1, keepdims=True)
            differences = {"softmax": softmax_differences(bound.differences["vector"])}
        elif self.rule == "best":
            differences = bound.differences
        elif self.rule in bound.differences:
            differences = {self.rule: bound.differences[self.rule]}
        else:
            raise Unsound(
                f"rule is {self.rule!r} and this network has no such constants: it has {', '.join(bound.differences)}"
            )
        margins = certify_margins(scores, differences)
        radius = np.asarray(convert_radius(margins.radius, bound.norm, norm, dimension))
        told = "" if bound.norm is norm else f", by comparison of {bound.norm} with {norm}"
        return _Found(margins, radius, told)

    def _record(
        self,
        found: _Found,
        place: int,
        index: int,
        deployed: int,
        target: Target,
        norm: Norm,
        seed: int,
        seconds: float,
    ) -> Certificate:
        margins = found.margins
        sure = margins.prediction[place] != ABSTAIN and deployed == margins.prediction[place]
        return Certificate(
            index=index,
            label=-1,
            prediction=int(margins.prediction[place]) if sure else ABSTAIN,
            method=repr(self),
            target=target.fingerprint,
            input_digest="",
            seed=seed,
            seconds=seconds,
            radius=float(found.radius[place]) if sure else 0.0,
            norm=norm.value,
            alpha=0.0,
            bound=self.method,
            theorem=f"{RULES[margins.rule[place]]}{found.theorem}",
            selected=int(margins.prediction[place]),
            counts=(),
            selection=(),
            p_lower=math.nan,
            p_upper=math.nan,
            samples=0,
            budget=0,
            stopping="",
            noise="",
            votes="",
            rival=int(margins.rival[place]) if sure else _NO_RIVAL,
            margin=float(margins.margin[place]),
            constant=float(margins.constant[place]),
        )


def _batches(inputs: Iterable[tuple[int, Tensor]], rows: int) -> Iterator[tuple[list[int], Tensor]]:
    numbers: list[int] = []
    images: list[Tensor] = []
    for index, image in inputs:
        numbers.append(index)
        images.append(image)
        if len(numbers) == rows:
            yield numbers, torch.stack(images)
            numbers, images = [], []
    if numbers:
        yield numbers, torch.stack(images)


def _padded(network: nn.Module, images: Tensor, rows: int, device: torch.device) -> np.ndarray:
    """Scores of a batch, run in one fixed batch shape, so that they depend on the input alone."""
    full = torch.zeros((rows, *images.shape[1:]), dtype=torch.float64, device=device)
    full[: len(images)] = images.to(device=device, dtype=torch.float64)
    with torch.no_grad():
        scores: np.ndarray = network(full)[: len(images)].cpu().numpy()
    return scores
