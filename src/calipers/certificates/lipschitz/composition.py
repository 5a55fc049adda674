r"""Composition: Lipschitz constants along a graph of features, each with the linear map that is still pending.

Every tensor of a network that depends on its input is a :class:`Flow`: a linear map applied to a
:class:`Base`, features whose constant with respect to the input is known. The map waits until something
nonlinear needs a number, so that a normalization, a convolution and a batch normalization become one
convolution, and ``x + F(x)`` with a linear ``F`` becomes one map ``I + F``. Constants are from the norm p of
one input to the norm p of its features, for one p, and every product and sum is rounded up.

Reference:
    docs/theory/lipschitz: composition, sums, concatenation, sorting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from calipers.certificates.lipschitz.merging import add, compose
from calipers.certificates.lipschitz.operators import (
    ConvolutionMethod,
    Monomial,
    Operator,
    times,
    up,
)
from calipers.threat.threat_model import Norm

__all__ = ["Base", "Composition", "Flow", "LayerBound"]


@final
@dataclass(frozen=True)
class LayerBound:
    """What is proved of one layer, or of several that were merged into one linear map.

    Args:
        name: its place in the network; places joined by ``+`` where layers were merged.
        kind: the type of module, or the function.
        upper: an upper bound on its Lipschitz constant, from its own input to its output; for a layer of several
            inputs, from all of them together.
        method: how that was found.
        linear: whether it is a linear map (plus a constant).
        total: an upper bound on the constant from the network's input to this layer's output.
        operator: the map itself, of a linear layer.
    """

    name: str
    kind: str
    upper: float
    method: str
    linear: bool
    total: float
    operator: Operator | None = field(default=None, repr=False, compare=False)


@final
@dataclass(frozen=True, eq=False)
class Base:
    """Features with a known constant.

    Args:
        upper: upper bound on the constant from the network's input to these features.
        inputs: the flows that it was made of.
        slopes: the least and the largest slope of an elementwise activation; None for anything else.
        extreme: whether it is the larger or the smaller of two flows, entry by entry, or the largest or smallest
            of at least two entries along axes of one flow: ``maximum`` or ``minimum``, and the axes; () otherwise.
    """

    upper: float
    inputs: tuple[Flow, ...] = ()
    slopes: tuple[float, float] | None = None
    extreme: tuple[str, ...] | tuple[str, tuple[int, ...]] = ()


@final
@dataclass(eq=False)
class Flow:
    """A tensor that depends on the network's input: a linear map of a base, plus a constant.

    Args:
        base: the features to which the map is applied.
        operator: the map.
        shape: the shape of one input's features, without the batch.
        parts: place and kind of the layers that were merged into the map; the third says whether one only copies.
    """

    base: Base
    operator: Operator
    shape: tuple[int, ...]
    parts: tuple[tuple[str, str, bool], ...] = ()
    upper: float | None = field(default=None, init=False)
    settled: Flow | None = field(default=None, init=False)


@final
class Composition:
    """Builds flows, and bounds them in one norm.

    Args:
        norm: l1, l2 or linf.
        method: how the l2 norms of convolutions are found.
    """

    def __init__(self, norm: Norm, method: ConvolutionMethod = "auto") -> None:
        self.norm = norm
        self.method = method
        self.layers: list[LayerBound] = []

    def input(self, shape: tuple[int, ...]) -> Flow:
        """Start with the network's input.

        Args:
            shape: the shape of one input.

        Returns:
            Its flow, of constant 1.
        """
        return Flow(Base(1.0), Monomial(shape), shape)

    def upper(self, flow: Flow) -> float:
        """Bound the constant of a flow; the bound of its map becomes a row of the table.

        Args:
            flow: the flow.

        Returns:
            An upper bound on its constant with respect to the network's input.
        """
        if flow.upper is None:
            if isinstance(flow.operator, Monomial) and flow.operator.is_identity:
                flow.upper = flow.base.upper
                return flow.upper
            found = flow.operator.norm(self.norm, method=self.method)
            flow.upper = times(flow.base.upper, found.value)
            copies = isinstance(flow.operator, Monomial) and flow.operator.factors is None
            if not (copies and found.value == 1.0):
                shown = [part for part in flow.parts if not part[2]] or list(flow.parts)
                name = " + ".join(part[0] for part in shown)
                kind = " + ".join(part[1] for part in shown)
                self._row(name, kind, found.value, found.method, True, flow.upper, flow.operator)
        return flow.upper

    def then(
        self,
        flow: Flow,
        operator: Operator,
        *,
        place: str,
        kind: str,
        shape: tuple[int, ...],
        copies: bool = False,
    ) -> Flow:
        """Apply a linear map, merged with what is pending where that is possible.

        Args:
            flow: what it is applied to.
            operator: the map.
            place: where it is in the network.
            kind: what it is.
            shape: the shape of one input's result.
            copies: whether it only moves or copies features, which the table need not name.

        Returns:
            The result.
        """
        part = (place, kind, copies)
        merged = compose(flow.operator, operator)
        pending = flow.operator
        if merged is None and isinstance(pending, Monomial) and pending.index is not None:
            moved = Flow(flow.base, Monomial(pending.shape, pending.index), flow.shape, flow.parts)
            scaling = Monomial(pending.shape, None, pending.factors, pending.roundings)
            rest = compose(scaling, operator)
            if rest is not None and pending.factors is not None:
                return Flow(self.settle(moved).base, rest, shape, (*flow.parts, part))
        if merged is None:
            return Flow(self.settle(flow).base, operator, shape, (part,))
        return Flow(flow.base, merged, shape, (*flow.parts, part))

    def settle(self, flow: Flow) -> Flow:
        """Bound a flow and take its features as the base of what follows.

        Args:
            flow: the flow.

        Returns:
            The same features, with no map pending; always the same object for the same flow.
        """
        if isinstance(flow.operator, Monomial) and flow.operator.is_identity:
            return flow
        if flow.settled is None:
            base = Base(self.upper(flow), (flow,))
            flow.settled = Flow(base, Monomial(flow.shape), flow.shape)
        return flow.settled

    def activation(self, flow: Flow, slopes: tuple[float, float], *, place: str, kind: str) -> Flow:
        """Apply a scalar function to each feature.

        Args:
            flow: the features.
            slopes: the least and the largest slope of a chord of the function, rounded outward.
            place: where it is in the network.
            kind: what it is.

        Returns:
            The result, with no map pending.
        """
        constant = max(abs(slopes[0]), abs(slopes[1]))
        total = times(self.upper(flow), constant)
        self._row(place, kind, constant, f"slope in [{slopes[0]:.7g}, {slopes[1]:.7g}]", False, total)
        return Flow(Base(total, (flow,), slopes), Monomial(flow.shape), flow.shape)

    def layer(
        self,
        flow: Flow,
        constant: float,
        *,
        place: str,
        kind: str,
        shape: tuple[int, ...],
        method: str,
        linear: bool = False,
        extreme: tuple[str, tuple[int, ...]] | tuple[()] = (),
    ) -> Flow:
        """Apply a layer of which only a constant is known.

        Args:
            flow: the features.
            constant: an upper bound on the layer's constant in the norm of this composition.
            place: where it is in the network.
            kind: what it is.
            shape: the shape of one input's result.
            method: how the constant is known.
            linear: whether the layer is linear.
            extreme: see :class:`Base`.

        Returns:
            The result, with no map pending.
        """
        total = times(self.upper(flow), constant)
        self._row(place, kind, constant, method, linear, total)
        return Flow(Base(total, (flow,), extreme=extreme), Monomial(shape), shape)

    def together(
        self, flows: Sequence[Flow], *, place: str, kind: str, shape: tuple[int, ...], extreme: str = ""
    ) -> Flow:
        """Join flows by a map that is 1-Lipschitz on all of them together: concatenation, the larger of two.

        Args:
            flows: the flows.
            place: where it is in the network.
            kind: what it is.
            shape: the shape of one input's result.
            extreme: ``maximum`` or ``minimum`` where the result is that of two flows, entry by entry.

        Returns:
            The result, with no map pending.
        """
        total = self.joint(flows)
        self._row(place, kind, 1.0, "1 on its inputs together", not extreme, total)
        base = Base(total, tuple(flows), extreme=(extreme,) if extreme else ())
        return Flow(base, Monomial(shape), shape)

    def sum(self, first: Flow, second: Flow, *, sign: float, place: str, kind: str) -> Flow:
        """Add or subtract two flows of one shape.

        Maps of the same features are merged into one where that is possible. Otherwise the smaller of two bounds is
        taken: the sum of both constants, and the norm of (a, b) -> a + b times the constant of both together.

        Args:
            first: a flow.
            second: another one.
            sign: 1 to add, -1 to subtract.
            place: where it is in the network.
            kind: what it is.

        Returns:
            The sum.
        """
        for base, one in _readings(first):
            for other_base, other in _readings(second):
                merged = add(one, other, sign=sign) if base is other_base else None
                if merged is not None:
                    parts = (*first.parts, *second.parts, (place, kind, False))
                    return Flow(base, merged, first.shape, tuple(dict.fromkeys(parts)))
        factor = {Norm.L1: 1.0, Norm.L2: up(math.sqrt(2.0)), Norm.LINF: 2.0}[self.norm]
        apart = up(self.upper(first) + self.upper(second))
        total = min(apart, times(self.joint((first, second)), factor))
        self._row(place, kind, factor, "sum of branches", True, total)
        return Flow(Base(total, (first, second)), Monomial(first.shape), first.shape)

    def joint(self, flows: Sequence[Flow]) -> float:
        """Bound the constant of several flows as one vector.

        Parts of the same features are bounded by how often each feature occurs in them. The larger and the smaller of
        the same two flows are a permutation of them, entry by entry, and sorting moves no two vectors apart in any
        lp norm; the largest and the smallest along axes are two entries of a sorted vector. What remains is
        joined as the blocks of a vector.

        Args:
            flows: the flows.

        Returns:
            An upper bound on the constant from the network's input to all of them.
        """
        copies: dict[Base, list[Monomial]] = {}
        totals = []
        for flow in flows:
            plain = flow if isinstance(flow.operator, Monomial) else self.settle(flow)
            assert isinstance(plain.operator, Monomial)
            copies.setdefault(plain.base, []).append(plain.operator)
        grouped = {base: _stacked(maps).norm(self.norm).value for base, maps in copies.items()}
        while grouped:
            base, weight = grouped.popitem()
            partner = next((other for other in grouped if _are_sorted(base, other)), None)
            if partner is None:
                totals.append(times(base.upper, weight))
            else:
                totals.append(times(self.joint(base.inputs), max(weight, grouped.pop(partner))))
        if len(totals) == 1:
            return totals[0]
        match self.norm:
            case Norm.L1:
                found = sum(totals)
            case Norm.LINF:
                return max(totals, default=0.0)
            case _:
                largest = max(totals, default=0.0) or 1.0
                found = largest * math.sqrt(sum((total / largest) ** 2 for total in totals))
        return up(found, operations=4 * len(totals) + 8)

    def _row(
        self,
        name: str,
        kind: str,
        upper: float,
        method: str,
        linear: bool,
        total: float,
        operator: Operator | None = None,
    ) -> None:
        self.layers.append(LayerBound(name, kind, upper, method, linear, total, operator))


def _readings(flow: Flow) -> list[tuple[Base, Operator]]:
    """Give the ways in which a flow is a map of a base: as it was made, and as the base of what followed."""
    found: list[tuple[Base, Operator]] = [(flow.base, flow.operator)]
    if flow.settled is not None:
        found.append((flow.settled.base, flow.settled.operator))
    return found


def _stacked(maps: Sequence[Monomial]) -> Monomial:
    """Put the outputs of several maps of the same features one after the other."""
    if len(maps) == 1:
        return maps[0]
    index, factors = [], []
    for one in maps:
        count = math.prod(one.shape)
        index.append(np.arange(count) if one.index is None else one.index.ravel())
        weight = np.ones(()) if one.factors is None else one.factors
        factors.append(np.broadcast_to(weight, one.shape).ravel())
    plain = all(one.factors is None for one in maps)
    places = np.concatenate(index)
    weights = None if plain else np.concatenate(factors)
    return Monomial(places.shape, places, weights, max(one.roundings for one in maps))


def _are_sorted(first: Base, second: Base) -> bool:
    """Say whether two bases are the larger and the smaller of the same two flows, or of the same axes of one.

    Returns:
        True if they are.
    """
    if {*first.extreme[:1], *second.extreme[:1]} != {"maximum", "minimum"}:
        return False
    if first.extreme[1:] != second.extreme[1:]:
        return False
    if len(first.extreme) > 1:
        return _are_same(first.inputs[0], second.inputs[0])
    (a, b), (c, d) = first.inputs, second.inputs
    return (_are_same(a, c) and _are_same(b, d)) or (_are_same(a, d) and _are_same(b, c))


def _are_same(first: Flow, second: Flow) -> bool:
    """Say whether two flows are the same features: one flow, or the same copies of the same base.

    Returns:
        True if they are.
    """
    if first is second:
        return True
    one, other = first.operator, second.operator
    if first.base is not second.base or not (isinstance(one, Monomial) and isinstance(other, Monomial)):
        return False
    return one.shape == other.shape and _equal(one.index, other.index) and _equal(one.factors, other.factors)


def _equal(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)
