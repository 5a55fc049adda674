"""The Lipschitz constant of a whole network, bounded from above along its traced graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.utils import _pytree as pytree

from calipers.certificates.lipschitz.composition import Composition, Flow, LayerBound
from calipers.certificates.lipschitz.differences import Tail, last_layer, per_coordinate, vector
from calipers.certificates.lipschitz.layers.call import Call, Refused
from calipers.certificates.lipschitz.layers.registry import apply, refuse
from calipers.certificates.lipschitz.operators import ConvolutionMethod
from calipers.certificates.lipschitz.tracing import ROWS, Step, trace
from calipers.errors import NotLipschitz, UnknownLayer, Unsound, UsageError
from calipers.threat.threat_model import Norm

__all__ = ["METHODS", "LipschitzBound", "Method", "lipschitz_upper_bound"]

Method = Literal["auto", "grid", "exact", "eclipse", "lipsdp"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Ways to bound a network: ``auto`` takes the best that is quick."""

_MOST_SEMIDEFINITE_PAIRS = 45
"""Differences of outputs for which a semidefinite program of its own is solved."""


_QUICK = 1e11
"""Multiplications of ECLipsE-Fast that ``auto`` spends, a few seconds."""


@final
@dataclass(frozen=True, eq=False)
class LipschitzBound:
    """An upper bound on the Lipschitz constant of a network, and what it is made of; ``float()`` gives it.

    Args:
        upper: the bound, from the norm of inputs to the same norm of outputs, in units of output by unit of
            input. It holds in real arithmetic for the weights as they are.
        norm: the norm.
        method: what proved ``upper``: ``product`` of the layers, ``eclipse`` or ``lipsdp``.
        layers: a row a layer, in the order in which they are applied.
        differences: for each form of Theorem 0 (``per-coordinate``, ``vector``, ``last-layer``, ``composed``,
            where it applies) an array (K, K): upper bounds on the Lipschitz constants of the differences of
            two outputs.
        product: the layerwise product alone.
    """

    upper: float
    norm: Norm
    method: str
    layers: tuple[LayerBound, ...]
    differences: dict[str, NDArray[np.float64]] = field(repr=False)
    product: float

    def __float__(self) -> float:
        return self.upper


def lipschitz_upper_bound(
    module: nn.Module, input_shape: Sequence[int], norm: Norm = Norm.L2, *, method: Method = "auto"
) -> LipschitzBound:
    """Bound the Lipschitz constant of a network from above.

    The network is traced by torch.fx and every call is looked up among the layers for which a bound is proved;
    another layer, or a known one in another configuration, is refused with its place and the reason. Chains of
    linear layers are merged before they are bounded: a normalization of the input and a batch normalization
    become part of the convolution beside them, and ``x + F(x)`` with one convolution ``F`` is one convolution.

    Args:
        module: a network in eval mode with float32 or float64 weights; hooks and random layers are refused.
        input_shape: the shape of one input, channels first.
        norm: l1, l2 or linf.
        method: ``grid`` bounds convolutions for every input size by their symbol on a grid; ``exact`` finds
            their norms at the size they meet; ``auto`` does so where it is quick, and for l2 takes the better
            of the product and ECLipsE-Fast on the matrices that end the network; ``eclipse`` and ``lipsdp``
            insist on the joint bound.

    Returns:
        The bound, rounded up.

    Raises:
        Unsound: if the network has no bound (:class:`~calipers.errors.NotLipschitz`), none is known
            (:class:`~calipers.errors.UnknownLayer`), or the method does not apply to it.
        UsageError: if an argument means nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()).eval()
        >>> _ = nn.init.eye_(net[0].weight)
        >>> f"{float(lipschitz_upper_bound(net, (4,))):.6f}"
        '1.000000'
    """
    shape = tuple(int(side) for side in input_shape)
    if not shape or min(shape) < 1:
        raise UsageError(f"input_shape is {shape}: give positive sizes, such as (3, 32, 32)")
    if norm is Norm.L0:
        raise UsageError("norm is l0: Lipschitz constants are bounded in l1, l2 and linf")
    if method not in METHODS:
        raise UsageError(f"method is {method!r}: use one of {', '.join(METHODS)}")
    if method in ("eclipse", "lipsdp") and norm is not Norm.L2:
        raise Unsound(
            f"method {method!r} bounds l2 constants, and the norm is {norm}: use auto, grid or exact"
        )
    convolutions: ConvolutionMethod = method if method in ("grid", "exact") else "auto"
    composition = Composition(norm, convolutions)
    output = _walk(module, shape, composition)
    return _bound(output, composition, method)


def _walk(module: nn.Module, shape: tuple[int, ...], composition: Composition) -> Flow | tuple[int, ...]:
    """Follow the network's graph.

    Returns:
        The flow of its output; only its shape where it does not depend on the input.
    """
    traced = trace(module, shape)
    values: dict[fx.Node, Any] = {}
    x = torch.randn((ROWS, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        for step in traced.steps(x, before=refuse):
            if step.node.op != "output":
                values[step.node] = _value(step, values, composition, shape)
        found = _output(step, fx.node.map_arg(step.node.args[0], values.__getitem__), module)
        traced.check_agreement()
    return found


def _output(step: Step, value: Any, module: nn.Module) -> Flow | tuple[int, ...]:
    kind = type(module).__name__
    if isinstance(value, Refused):
        raise NotLipschitz("output", kind, value.reason)
    if isinstance(value, Flow):
        return value
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == ROWS:
        return tuple(value.shape[1:])
    what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
    raise UnknownLayer(
        "", kind, f"gives {what.replace('immutable_', '')} for {ROWS} inputs: give one tensor, a row an input"
    )


def _value(step: Step, values: dict[fx.Node, Any], composition: Composition, shape: tuple[int, ...]) -> Any:
    if step.node.op == "placeholder":
        return composition.input(shape)
    if not step.depends:
        return step.result
    args = fx.node.map_arg(step.node.args, values.__getitem__)
    kwargs = fx.node.map_arg(step.node.kwargs, values.__getitem__)
    call = Call(composition, step.place, step.kind, step.module, step.function, args, kwargs, step.shapes)
    picks = step.kind in ("getitem", "getattr")
    refused = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Refused)]
    if refused and not picks:
        raise call.unbounded(refused[0].reason)
    return apply(call, step.node.target)


def _bound(output: Flow | tuple[int, ...], composition: Composition, method: Method) -> LipschitzBound:
    if not isinstance(output, Flow):
        count = output[0] if len(output) == 1 else 0
        zeros = {"vector": np.zeros((count, count))} if count > 1 else {}
        return LipschitzBound(0.0, composition.norm, "constant", (), zeros, 0.0)
    product = composition.upper(output)
    if not math.isfinite(product):
        raise Unsound(
            f"the constant of this network overflows float64 ({product}): no radius can be certified"
        )
    upper, proved, composed = product, "product", None
    tail = Tail.of(output)
    if method in ("eclipse", "lipsdp") and len(tail.layers) < 2:
        raise Unsound(
            f"method {method!r} needs a network that ends in linear layers with activations of slope in [0, 1] "
            f"(ReLU, tanh, sigmoid) between them, and this one ends in {len(tail.layers)}: use auto, grid or exact"
        )
    joint = len(tail.layers) > 1 and (
        (method == "auto" and tail.operations <= _QUICK) or method in ("eclipse", "lipsdp")
    )
    if composition.norm is Norm.L2 and joint:
        together, composed = tail.eclipse()
        name = "eclipse"
        if method == "lipsdp":
            count = len(tail.layers[-1].matrix)
            name = "lipsdp"
            together, pairs = tail.semidefinite(pairs=count * (count - 1) // 2 <= _MOST_SEMIDEFINITE_PAIRS)
            composed = composed if pairs is None else np.minimum(composed, pairs)
        if method != "auto" or together < upper:
            upper, proved = together, name
    return LipschitzBound(
        upper,
        composition.norm,
        proved,
        tuple(composition.layers),
        _differences(output, composition, upper, composed),
        product,
    )


def _differences(
    output: Flow, composition: Composition, upper: float, composed: NDArray[np.float64] | None
) -> dict[str, NDArray[np.float64]]:
    if len(output.shape) != 1 or output.shape[0] < 2:
        return {}
    count = output.shape[0]
    found = {
        "per-coordinate": per_coordinate(composition, output, upper, count),
        "vector": vector(upper, count, composition.norm),
    }
    rows = last_layer(composition, output)
    if rows is not None:
        found["last-layer"] = rows
    if composed is not None:
        found["composed"] = composed
    return found
