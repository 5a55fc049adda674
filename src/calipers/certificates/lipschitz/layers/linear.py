"""Linear layers and convolutions, as modules and as functions, and products with constant matrices."""

from __future__ import annotations

import operator
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from calipers.certificates.lipschitz.composition import Flow
from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.layers.call import Call, Rule, array
from calipers.certificates.lipschitz.operators import Convolved, Dense
from calipers.errors import UsageError

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]

_NO_PRODUCT: Final = (
    "multiplies two tensors that both depend on the input, as dot-product attention does: no Lipschitz "
    "constant exists on all inputs; certify by smoothing, or use an attention of bounded slope"
)


def _linear(call: Call, input: Any, weight: Any, bias: Any = None) -> Flow:
    del bias
    return _dense(call, call.only(input), array(call, weight))


def _linear_module(call: Call, module: Any, input: Any) -> Flow:
    array(call, 0.0 if module.bias is None else module.bias)
    return _linear(call, input, module.weight)


def _dense(call: Call, flow: Flow, matrix: np.ndarray) -> Flow:
    if matrix.ndim != 2 or not flow.shape or not matrix.size:
        raise call.unknown(f"has weights of shape {matrix.shape}")
    return call.linear(flow, Dense(matrix, whole=len(flow.shape) == 1))


def _matmul(call: Call, input: Any, other: Any) -> Flow:
    """Bound a product with a constant matrix on the right, which acts on the last axis."""
    flows = call.flows()
    if len(flows) > 1:
        raise call.unbounded(_NO_PRODUCT)
    if not isinstance(input, Flow):
        raise call.unknown("multiplies features from the left: transpose them, or use a linear layer")
    matrix = array(call, other)
    if matrix.ndim != 2 or not input.shape:
        raise call.unknown(f"multiplies by a constant of shape {matrix.shape}: a matrix is known")
    return _dense(call, input, np.ascontiguousarray(matrix.T))


def _addmm(call: Call, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Flow:
    if isinstance(input, Flow) or alpha != 1:
        raise call.unknown("adds features to a product, or scales it: write a linear layer")
    del beta
    return _matmul(call, mat1, mat2)


def _convolution_module(call: Call, module: Any, input: Any, output_size: Any = None) -> Flow:
    flow = call.only(input)
    array(call, 0.0 if module.bias is None else module.bias)
    if output_size is not None:
        raise call.unknown("is given an output_size: set output_padding instead")
    array(call, module.weight)
    try:
        convolution = Convolution.of(module)
    except UsageError as problem:
        raise call.unknown(str(problem)) from problem
    return _convolved(call, flow, convolution)


def _convolution(axes: int) -> Rule:
    def rule(
        call: Call,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> Flow:
        del bias
        flow, kernel = call.only(input), array(call, weight)
        spread = _each(call, dilation, axes)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(spread, kernel.shape[2:], strict=True)]
            around = tuple((extra // 2, extra - extra // 2) for extra in total)
        else:
            around = tuple((p, p) for p in _each(call, 0 if padding == "valid" else padding, axes))
        return _made(call, flow, kernel, _each(call, stride, axes), spread, around, groups)

    return rule


def _transposed(axes: int) -> Rule:
    def rule(
        call: Call,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        dilation: Any = 1,
    ) -> Flow:
        del bias
        flow, kernel = call.only(input), array(call, weight)
        around = tuple((p, p) for p in _each(call, padding, axes))
        more = _each(call, output_padding, axes)
        return _made(
            call, flow, kernel, _each(call, stride, axes), _each(call, dilation, axes), around, groups, more
        )

    return rule


def _made(
    call: Call,
    flow: Flow,
    kernel: np.ndarray,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    groups: Any,
    output_padding: tuple[int, ...] | None = None,
) -> Flow:
    try:
        convolution = Convolution(
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=padding,
            groups=int(groups),
            transposed=output_padding is not None,
            output_padding=output_padding or (),
        )
    except UsageError as problem:
        raise call.unknown(str(problem)) from problem
    return _convolved(call, flow, convolution)


def _convolved(call: Call, flow: Flow, convolution: Convolution) -> Flow:
    channels = (
        convolution.kernel.shape[0]
        if convolution.transposed
        else (convolution.kernel.shape[1] * convolution.groups)
    )
    if len(flow.shape) != convolution.axes + 1 or flow.shape[0] != channels:
        raise call.unknown(
            f"takes {channels} channels and {convolution.axes} axes, and is given {flow.shape}"
        )
    convolved = Convolved(convolution, flow.shape[1:])
    if convolved.output_shape != call.shape:
        raise call.unknown(f"gives {call.shape} where {convolved.output_shape} was expected")
    return call.linear(flow, convolved)


def _each(call: Call, value: Any, axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(values) == 1:
        values *= axes
    if len(values) != axes or not all(isinstance(one, int) for one in values):
        raise call.unknown(f"has the setting {value!r} for {axes} axes")
    return cast(tuple[int, ...], values)


_CONVOLUTIONS: Final = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

MODULES: Final[dict[type[nn.Module], Rule]] = {
    nn.Linear: _linear_module,
    **dict.fromkeys(_CONVOLUTIONS, _convolution_module),
}
FUNCTIONS: Final[dict[Any, Rule]] = {
    functional.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    operator.matmul: _matmul,
    torch.bmm: _matmul,
    torch.addmm: _addmm,
    functional.conv1d: _convolution(1),
    functional.conv2d: _convolution(2),
    functional.conv3d: _convolution(3),
    functional.conv_transpose1d: _transposed(1),
    functional.conv_transpose2d: _transposed(2),
    functional.conv_transpose3d: _transposed(3),
}
METHODS: Final[dict[str, Rule]] = {"matmul": _matmul, "mm": _matmul, "bmm": _matmul, "__matmul__": _matmul}
