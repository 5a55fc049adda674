"""Arithmetic: sums, differences, scaling by constants, the larger of two, and the products that are refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from calipers.certificates.lipschitz.composition import Flow
from calipers.certificates.lipschitz.layers.call import Call, Rule, array
from calipers.certificates.lipschitz.layers.pooling import extreme_with_indices
from calipers.certificates.lipschitz.layers.structure import broadcast, scaled

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]


def _sum(sign: float, *, reverse: bool = False) -> Rule:
    def rule(call: Call, input: Any, other: Any, *, alpha: Any = 1) -> Flow:
        left, right = (other, input) if reverse else (input, other)
        if not isinstance(alpha, int | float):
            raise call.unknown(f"has alpha {alpha!r}")
        if isinstance(left, Flow) and isinstance(right, Flow):
            one, second = broadcast(call, left), broadcast(call, right)
            if alpha != 1:
                second = scaled(call, second, alpha)
            return call.composition.sum(one, second, sign=sign, place=call.place, kind=call.kind)
        flow, constant = (left, right) if isinstance(left, Flow) else (right, left)
        if not isinstance(flow, Flow):
            raise call.unknown("adds no tensors")
        array(call, constant)
        factor = 1.0 if flow is left else sign * float(alpha)
        return broadcast(call, flow) if factor == 1.0 else scaled(call, flow, factor)

    return rule


def _multiply(call: Call, input: Any, other: Any) -> Flow:
    if isinstance(input, Flow) and isinstance(other, Flow):
        raise call.unbounded(
            "multiplies two tensors that both depend on the input: the slope grows with them, and no "
            "Lipschitz constant exists on all inputs"
        )
    flow, constant = (input, other) if isinstance(input, Flow) else (other, input)
    return scaled(call, flow, constant)


def _divide(call: Call, input: Any, other: Any, *, rounding_mode: Any = None) -> Flow:
    if rounding_mode is not None:
        raise call.unbounded("rounds a quotient, which jumps")
    if isinstance(other, Flow):
        raise call.unbounded(
            "divides by a tensor that depends on the input: the slope grows without bound near zero"
        )
    return scaled(call, input, other, divide=True)


def _negate(call: Call, input: Any) -> Flow:
    return scaled(call, call.only(input), -1.0)


def _extreme(which: str) -> Callable[..., Any]:
    def rule(call: Call, input: Any, other: Any = None, *rest: Any, **named: Any) -> Any:
        if other is None and "dim" not in named:
            raise call.unknown("takes the extreme over the whole batch")
        if isinstance(other, int) or "dim" in named:
            if any(isinstance(value, Flow) for value in (other, *rest, *named.values())):
                raise call.unknown("has settings that depend on the network's input")
            return extreme_with_indices(call, which, input, named.get("dim", other))
        if rest or named:
            raise call.unknown(f"has the arguments {sorted(named)}")
        if isinstance(input, Flow) and isinstance(other, Flow):
            pair = (broadcast(call, input), broadcast(call, other))
            return call.composition.together(
                pair, place=call.place, kind=call.kind, shape=call.shape, extreme=which
            )
        flow, constant = (input, other) if isinstance(input, Flow) else (other, input)
        if bool(np.isnan(torch.as_tensor(constant).double().numpy()).any()):
            raise call.unknown("compares with NaN")
        return call.elementwise(broadcast(call, flow), 0.0, 1.0)

    return rule


def _where(call: Call, condition: Any, input: Any = None, other: Any = None) -> Flow:
    """Bound a choice by a constant condition: each entry is one of the two."""
    if not isinstance(condition, Tensor):
        raise call.unbounded(
            "chooses by a condition that depends on the input, which may jump: use the activation itself"
        )
    flows = [broadcast(call, value) for value in (input, other) if isinstance(value, Flow)]
    return call.composition.together(flows, place=call.place, kind=call.kind, shape=call.shape)


MODULES: Final[dict[type[nn.Module], Rule]] = {}
FUNCTIONS: Final[dict[Any, Rule]] = {
    **dict.fromkeys((torch.add, operator.add, operator.iadd), _sum(1.0)),
    **dict.fromkeys((torch.sub, torch.subtract, operator.sub, operator.isub), _sum(-1.0)),
    torch.rsub: _sum(-1.0, reverse=True),
    **dict.fromkeys((torch.mul, torch.multiply, operator.mul, operator.imul), _multiply),
    **dict.fromkeys(
        (torch.div, torch.divide, torch.true_divide, operator.truediv, operator.itruediv), _divide
    ),
    **dict.fromkeys((torch.neg, torch.negative, operator.neg), _negate),
    torch.max: _extreme("maximum"),
    torch.maximum: _extreme("maximum"),
    torch.min: _extreme("minimum"),
    torch.minimum: _extreme("minimum"),
    torch.where: _where,
}
METHODS: Final[dict[str, Rule]] = {
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _sum(1.0)),
    **dict.fromkeys(("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__"), _sum(-1.0)),
    "__rsub__": _sum(-1.0, reverse=True),
    **dict.fromkeys(("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"), _multiply),
    **dict.fromkeys(("div", "div_", "divide", "divide_", "true_divide", "__truediv__"), _divide),
    **dict.fromkeys(("neg", "neg_", "negative", "negative_"), _negate),
    **dict.fromkeys(("max", "maximum", "fmax"), _extreme("maximum")),
    **dict.fromkeys(("min", "minimum", "fmin"), _extreme("minimum")),
}
