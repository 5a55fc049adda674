"""Structure: what moves, copies or joins features, read off by running it on their numbers; and scaling."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from calipers.certificates.lipschitz.composition import Flow
from calipers.certificates.lipschitz.convolution import PaddingMode
from calipers.certificates.lipschitz.layers.call import Call, Refused, Rule, array
from calipers.certificates.lipschitz.operators import Monomial
from calipers.certificates.lipschitz.tracing import ROWS

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]


_PADDING_MODES: Final[dict[str, PaddingMode]] = {
    "constant": "zeros",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


def _numbers(shape: tuple[int, ...]) -> Tensor:
    """Number the features of a batch from 1, so that 0 marks a constant; exact in float64."""
    count = ROWS * math.prod(shape)
    return torch.arange(1, count + 1, dtype=torch.float64).reshape(ROWS, *shape)


def _index(call: Call, found: Any, count: int) -> np.ndarray:
    """Turn the numbers that a call gave into the index of one input's features.

    Returns:
        The index, -1 where a constant stands.

    Raises:
        UnknownLayer: if inputs of the batch are mixed, or differ in what is copied.
    """
    if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != ROWS:
        raise call.unknown("changes the batch axis, or gives something else than tensors")
    places = found.double().numpy()
    index = places.astype(np.int64)
    first = np.where(index[0] > 0, index[0] - 1, -1)
    own = (first >= -1) & (first < count)
    same = all(
        np.array_equal(np.where(index[row] > 0, index[row] - 1 - row * count, -1), first)
        for row in range(1, ROWS)
    )
    if not (bool(own.all()) and same and np.array_equal(places, index)):
        raise call.unknown("mixes the inputs of a batch")
    return first


def _copied(call: Call, *args: Any, **kwargs: Any) -> Any:
    """Bound anything that only moves, copies or drops features of one tensor, by doing it to their numbers."""
    del args, kwargs
    flows = call.flows()
    if any(flow is not flows[0] for flow in flows):
        raise call.unknown("has settings that depend on the network's input")
    return _moved(call, flows[0])


def _moved(call: Call, flow: Flow) -> Any:
    numbers = _numbers(flow.shape)
    count = math.prod(flow.shape)
    results, structure = pytree.tree_flatten(call.run({id(flow): numbers}))
    made = []
    for found in results:
        index = _index(call, found, count)
        plain = index.size == count and np.array_equal(index.ravel(), np.arange(count))
        moved = Monomial(index.shape, None if plain else index)
        made.append(
            call.composition.then(
                flow, moved, place=call.place, kind=call.kind, shape=index.shape, copies=True
            )
        )
    return (
        made[0]
        if len(made) == 1 and isinstance(results[0], Tensor) and structure.is_leaf()
        else (pytree.tree_unflatten(made, structure))
    )


def _same(call: Call, input: Any, *args: Any, **kwargs: Any) -> Flow:
    """Pass a tensor on: dropout in eval mode, identity, contiguous, a cast between float32 and float64."""
    del args, kwargs
    flow = call.only(input)
    if call.shape != flow.shape:
        raise call.unknown("changes the shape of its input")
    return flow


def _cast(call: Call, input: Any, *args: Any, **kwargs: Any) -> Flow:
    flow = call.only(input)
    wide = (torch.float32, torch.float64)
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype) and value not in wide:
            raise call.unknown(
                f"casts to {value}: a bound is of the real arithmetic of float32 or float64, and this one rounds"
            )
        if isinstance(value, str) and value.startswith("torch."):
            raise call.unknown(f"casts to {value}: name the dtype")
        if isinstance(value, Tensor) and value.dtype not in wide:
            raise call.unknown(f"casts to {value.dtype}")
    return flow


def _dropout(call: Call, input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> Flow:
    del p, inplace
    if training is not False:
        raise call.unknown("drops features at random: give training=self.training, and call .eval()")
    return _same(call, input)


def _dropout_function(call: Call, input: Any, p: Any, train: Any) -> Flow:
    return _dropout(call, input, p, train)


def _module(call: Call, module: Any, input: Any) -> Any:
    del module
    return _copied(call, input)


def _pass(call: Call, module: Any, input: Any) -> Flow:
    del module
    return _same(call, input)


def _interpolate(
    call: Call,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: Any = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: Any = False,
) -> Any:
    del size, scale_factor, align_corners, recompute_scale_factor
    if mode not in ("nearest", "nearest-exact") or antialias:
        raise call.unknown(f"resizes by mode {mode!r}: 'nearest' and 'nearest-exact' are known")
    return _copied(call, input)


def _upsample_module(call: Call, module: Any, input: Any) -> Any:
    return _interpolate(call, input, mode=module.mode)


def _pad(call: Call, input: Any, pad: Any, mode: Any = "constant", value: Any = None) -> Any:
    """Bound padding: a constant is no feature, so it is written as number 0 whatever its value."""
    flow = call.only(input)
    if not all(isinstance(side, int) for side in pad):
        raise call.unknown(f"pads by {pad!r}")
    if value is not None:
        array(call, value)
    sides = tuple(pad)
    numbers = functional.pad(_numbers(flow.shape), sides, mode=mode)
    index = _index(call, numbers, math.prod(flow.shape))
    around = [(sides[place], sides[place + 1]) for place in range(0, len(sides), 2)][::-1]
    axes = len(flow.shape) - 1
    told = None
    if 0 < len(around) <= axes and min(sides) >= 0:
        told = (((0, 0),) * (axes - len(around)) + tuple(around), _PADDING_MODES[mode])
    return call.linear(flow, Monomial(index.shape, index, padding=told), copies=True)


def _pad_module(mode: str) -> Rule:
    def rule(call: Call, module: Any, input: Any) -> Any:
        return _pad(call, input, module.padding, mode, getattr(module, "value", None))

    return rule


def _getitem(call: Call, input: Any, item: Any) -> Any:
    if isinstance(input, tuple | list | dict):
        found = input[item]
        if isinstance(found, Refused):
            raise call.unbounded(found.reason)
        return found
    if not isinstance(input, Flow):
        raise call.unknown("looks up a table with numbers that depend on the input: it jumps")
    return _copied(call, input, item)


def _getattr(call: Call, input: Any, name: Any) -> Any:
    if isinstance(input, tuple) and name in ("values", "indices"):
        return _getitem(call, input, 0 if name == "values" else 1)
    if name in ("T", "mT"):
        return _copied(call, input)
    raise call.unknown(f"reads the attribute {name!r} of a tensor")


def _shaped_like(call: Call, input: Any, other: Any) -> Any:
    """Reshape or expand to the shape of another tensor, of which nothing else is used."""
    if not isinstance(input, Flow):
        raise call.unknown("shapes a constant")
    values = {id(flow): torch.zeros((ROWS, *flow.shape), dtype=torch.float64) for flow in call.flows()}
    values[id(input)] = _numbers(input.shape)
    del other
    index = _index(call, call.run(values), math.prod(input.shape))
    return call.linear(input, Monomial(index.shape, index), copies=True)


def _joined(call: Call, tensors: Any, *args: Any, **kwargs: Any) -> Any:
    """Join tensors along an axis: of parts of the same features the numbers say what the result copies."""
    del args, kwargs
    flows = [leaf for leaf in tensors if isinstance(leaf, Flow)]
    if not isinstance(tensors, tuple | list) or len(flows) < len(call.flows()):
        raise call.unknown("has settings that depend on the network's input")
    # each flow's own numbers, shifted past those of the flows before it
    distinct = {id(flow): flow for flow in flows}
    single = next(iter(distinct.values()))
    if len(distinct) == 1:
        zeroed = [0.0 * leaf if isinstance(leaf, Tensor) else leaf for leaf in tensors]
        return _moved(_with_first(call, zeroed), single)
    zeros = {key: torch.zeros((ROWS, *flow.shape), dtype=torch.float64) for key, flow in distinct.items()}
    zeroed_call = _with_first(call, [0.0 * leaf if isinstance(leaf, Tensor) else leaf for leaf in tensors])
    weights = []
    for (
        key,
        flow,
    ) in distinct.items():  # every flow must stay within its rows, and be copied as often as it is given
        found = zeroed_call.run({**zeros, key: _numbers(flow.shape)})
        weights.append(_index(call, found, math.prod(flow.shape)))
    return call.composition.together(flows, place=call.place, kind=call.kind, shape=call.shape)


def _with_first(call: Call, tensors: Sequence[Any]) -> Call:
    args = (tensors, *call.args[1:]) if call.args else ()
    kwargs = dict(call.kwargs)
    if not call.args:
        kwargs["tensors"] = tensors
    return Call(
        call.composition, call.place, call.kind, call.module, call.function, args, kwargs, call.shapes
    )


def broadcast(call: Call, flow: Flow) -> Flow:
    """Copy a flow into the shape of the call's result.

    Args:
        call: an elementwise call.
        flow: one of its arguments.

    Returns:
        The flow in that shape.
    """
    shape = call.shape
    if flow.shape == shape:
        return flow
    numbers = _numbers(flow.shape)
    index = _index(call, numbers.broadcast_to((ROWS, *shape)), math.prod(flow.shape))
    moved = Monomial(shape, index)
    return call.composition.then(flow, moved, place=call.place, kind=call.kind, shape=shape, copies=True)


def scaled(call: Call, flow: Flow, factors: Any, *, divide: bool = False) -> Flow:
    """Multiply or divide features by constants.

    Args:
        call: an elementwise call.
        flow: the features.
        factors: a number or a tensor that broadcasts with a batch of features.
        divide: whether to divide.

    Returns:
        The result.
    """
    values = array(call, factors)
    wide = broadcast(call, flow)
    axes = len(wide.shape) + 1
    if values.ndim > axes:
        raise call.unknown("adds an axis to its input")
    full = values.reshape((1,) * (axes - values.ndim) + values.shape)
    if len(full) > 1 and not all(np.array_equal(full[0], row) for row in full[1:]):
        raise call.unknown("scales the inputs of a batch differently")
    one = full[0]
    if divide:
        if not np.all(one != 0.0):
            raise call.unknown("divides by zero")
        one = 1.0 / one
        if bool((np.abs(one) < sys.float_info.min).any()):
            raise call.unknown("divides by numbers that are too large")
    if not np.all(np.isfinite(one)):
        raise call.unknown("divides by numbers that are too small")
    return call.linear(wide, Monomial(wide.shape, None, one, roundings=int(divide)))


MODULES: Final[dict[type[nn.Module], Rule]] = {
    **dict.fromkeys(
        (
            nn.Flatten,
            nn.Unflatten,
            nn.PixelShuffle,
            nn.PixelUnshuffle,
            nn.ChannelShuffle,
            nn.Unfold,
            nn.UpsamplingNearest2d,
        ),
        _module,
    ),
    **{
        getattr(nn, f"{kind}Pad{axes}d"): _pad_module(mode)
        for kind, mode in (
            ("Zero", "constant"),
            ("Constant", "constant"),
            ("Reflection", "reflect"),
            ("Replication", "replicate"),
            ("Circular", "circular"),
        )
        for axes in (1, 2, 3)
    },
    **dict.fromkeys(
        (
            nn.Identity,
            nn.Dropout,
            nn.Dropout1d,
            nn.Dropout2d,
            nn.Dropout3d,
            nn.AlphaDropout,
            nn.FeatureAlphaDropout,
        ),
        _pass,
    ),
    nn.Upsample: _upsample_module,
}
_COPIES: Final = (
    "flatten",
    "reshape",
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "squeeze",
    "unsqueeze",
    "unflatten",
    "narrow",
    "select",
    "split",
    "tensor_split",
    "chunk",
    "unbind",
    "index_select",
    "flip",
    "roll",
    "rot90",
    "tile",
    "repeat_interleave",
    "broadcast_to",
)
FUNCTIONS: Final[dict[Any, Rule]] = {
    **{getattr(torch, name): _copied for name in _COPIES},
    functional.pixel_shuffle: _copied,
    functional.pixel_unshuffle: _copied,
    functional.channel_shuffle: _copied,
    functional.unfold: _copied,
    torch.clone: _same,
    torch.detach: _same,
    functional.interpolate: _interpolate,
    functional.pad: _pad,
    **dict.fromkeys(
        (
            functional.dropout,
            functional.dropout1d,
            functional.dropout2d,
            functional.dropout3d,
            functional.alpha_dropout,
            functional.feature_alpha_dropout,
        ),
        _dropout,
    ),
    torch.dropout: _dropout_function,
    operator.getitem: _getitem,
    getattr: _getattr,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate, torch.stack), _joined),
    **dict.fromkeys((torch.hstack, torch.vstack, torch.dstack), _joined),
}
METHODS: Final[dict[str, Rule]] = {
    **dict.fromkeys(
        (*_COPIES, "view", "expand", "repeat", "unfold", "squeeze_", "unsqueeze_", "t", "adjoint"), _copied
    ),
    **dict.fromkeys(("contiguous", "clone", "detach", "cpu", "cuda", "requires_grad_", "positive"), _same),
    **dict.fromkeys(("to", "float", "double", "type", "type_as"), _cast),
    **dict.fromkeys(("view_as", "reshape_as", "expand_as"), _shaped_like),
}
