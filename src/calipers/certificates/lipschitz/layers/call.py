"""Call: one call of the graph as a rule sees it, with what it may ask and how it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calipers.certificates.lipschitz.composition import Composition, Flow
from calipers.certificates.lipschitz.operators import Operator
from calipers.certificates.lipschitz.tracing import ROWS
from calipers.errors import NotLipschitz, UnknownLayer
from calipers.threat.threat_model import Norm

__all__ = ["Call", "Refused", "Rule"]


@final
@dataclass(frozen=True)
class Refused:
    """A part of a result that no later layer may use, such as the indices of a sort.

    Args:
        reason: why.
    """

    reason: str


Rule = Callable[..., Any]
"""A rule of the closed world: ``rule(call, *args, **kwargs)`` with the arguments of the function, flows in
place of tensors that depend on the input; for a module ``rule(call, module, *args)``. It returns a flow, or a
structure of flows."""


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One call of the graph.

    Args:
        composition: where flows are made.
        place: where the call is in the network.
        kind: the type of the module, or the name of the function.
        module: the module, or None for a function.
        function: runs the call on tensors.
        args: its arguments, flows in place of tensors that depend on the input.
        kwargs: the same by name.
        shapes: the shape of each tensor of the result, the batch first, in the result's structure.
    """

    composition: Composition
    place: str
    kind: str
    module: nn.Module | None
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: Any

    @property
    def norm(self) -> Norm:
        """The norm in which constants are asked for."""
        return self.composition.norm

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the only result for one input."""
        shape: tuple[int, ...] = self.shapes
        if not (isinstance(shape, tuple) and shape and all(isinstance(side, int) for side in shape)):
            raise self.unknown("gives more than one result")
        if shape[0] != ROWS:
            raise self.unknown("changes the batch axis")
        return shape[1:]

    def flows(self) -> list[Flow]:
        """Give the arguments that depend on the network's input."""
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Flow)]

    def only(self, given: Any) -> Flow:
        """Check that one argument depends on the input and no other one does.

        Args:
            given: the argument.

        Returns:
            It.

        Raises:
            UnknownLayer: if another argument depends on the input, or this one does not.
        """
        if not isinstance(given, Flow) or any(flow is not given for flow in self.flows()):
            raise self.unknown("has weights or settings that depend on the network's input")
        return given

    def unknown(self, reason: str) -> UnknownLayer:
        """Make the error that refuses this call because it is not known.

        Args:
            reason: what is not known.

        Returns:
            The error, to be raised.
        """
        return UnknownLayer(self.place, self.kind, reason)

    def unbounded(self, reason: str) -> NotLipschitz:
        """Make the error that refuses this call because it has no useful constant.

        Args:
            reason: why.

        Returns:
            The error, to be raised.
        """
        return NotLipschitz(self.place, self.kind, reason)

    def run(self, values: Mapping[int, Tensor]) -> Any:
        """Run the call on other tensors.

        Args:
            values: a tensor for each flow, by its ``id``.

        Returns:
            The results.

        Raises:
            UnknownLayer: if the call fails.
        """

        def replaced(leaf: Any) -> Any:
            return values[id(leaf)] if isinstance(leaf, Flow) else leaf

        is_leaf = lambda leaf: isinstance(leaf, Flow)  # noqa: E731
        args, kwargs = pytree.tree_map(replaced, (self.args, dict(self.kwargs)), is_leaf=is_leaf)
        try:
            return self.function(*args, **kwargs)
        except Exception as problem:
            raise self.unknown(f"cannot be run by itself: {problem}") from problem

    def linear(self, flow: Flow, operator: Operator, *, copies: bool = False) -> Flow:
        """Answer with a linear map of one flow.

        Args:
            flow: what it is applied to.
            operator: the map.
            copies: whether it only moves or copies features.

        Returns:
            The result.
        """
        return self.composition.then(
            flow, operator, place=self.place, kind=self.kind, shape=self.shape, copies=copies
        )

    def elementwise(self, flow: Flow, least: float, largest: float) -> Flow:
        """Answer with a scalar function of each feature.

        Args:
            flow: the features.
            least: its least slope, rounded down.
            largest: its largest slope, rounded up.

        Returns:
            The result.
        """
        return self.composition.activation(flow, (least, largest), place=self.place, kind=self.kind)

    def layer(
        self,
        flow: Flow,
        constant: float,
        method: str,
        *,
        linear: bool = False,
        extreme: tuple[str, tuple[int, ...]] | tuple[()] = (),
    ) -> Flow:
        """Answer with a layer of which only a constant is known.

        Args:
            flow: the features.
            constant: an upper bound in the norm asked for.
            method: how it is known.
            linear: whether the layer is linear.
            extreme: see :class:`~calipers.certificates.lipschitz.composition.Base`.

        Returns:
            The result.
        """
        return self.composition.layer(
            flow,
            constant,
            place=self.place,
            kind=self.kind,
            shape=self.shape,
            method=method,
            linear=linear,
            extreme=extreme,
        )

    def axes(self, dim: Any, axes: int) -> tuple[int, ...]:
        """Normalize axes and check that the batch is none of them.

        Args:
            dim: an axis, several, or None for all of them.
            axes: how many axes a batch of features has.

        Returns:
            The axes, each at least 1.

        Raises:
            UnknownLayer: if the batch axis is among them.
        """
        listed: Sequence[Any] = (
            range(axes) if dim is None else dim if isinstance(dim, tuple | list) else [dim]
        )
        if not all(isinstance(axis, int) and -axes <= axis < axes for axis in listed) or not listed:
            raise self.unknown(f"has the axis {dim!r}, which is none")
        found = tuple(sorted({int(axis) % axes for axis in listed}))
        if 0 in found:
            raise self.unknown("reduces or sorts the batch axis: inputs are mixed")
        return found


def array(call: Call, value: Any) -> np.ndarray:
    """Read weights that do not depend on the input.

    Args:
        call: the call that uses them.
        value: a tensor or a number.

    Returns:
        Their values, float64.

    Raises:
        UnknownLayer: if a value is missing, complex, NaN or infinite.
    """
    if isinstance(value, Flow):
        raise call.unknown("has weights or settings that depend on the network's input")
    if not isinstance(value, Tensor | int | float) or (isinstance(value, Tensor) and value.is_complex()):
        raise call.unknown(f"has {type(value).__name__} for weights")
    # a number of Python's is a float64; torch would make a float32 of it
    wide = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    found: np.ndarray = wide.detach().double().cpu().numpy()
    if not np.all(np.isfinite(found)):
        raise call.unknown("has NaN or infinite weights: no bound can be given")
    return found
