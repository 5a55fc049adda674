"""Activations: the slopes of scalar functions, each bounded outward, and softmax.

The extreme slopes of smooth activations are roots of equations in elementary functions; they stand here to 15
digits, rounded outward, and are derived again with 40 digits by the tests.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from calipers.certificates.lipschitz.composition import Flow
from calipers.certificates.lipschitz.layers.call import Call, Rule
from calipers.certificates.lipschitz.operators import up
from calipers.threat.threat_model import Norm

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "SLOPES"]

SLOPES: Final[Mapping[str, tuple[float, float]]] = {
    "relu": (0.0, 1.0),
    "relu6": (0.0, 1.0),
    "tanh": (0.0, 1.0),
    "softsign": (0.0, 1.0),
    "tanhshrink": (0.0, 1.0),
    "logsigmoid": (0.0, 1.0),
    "atan": (0.0, 1.0),
    "sigmoid": (0.0, 0.25),
    "hardsigmoid": (0.0, up(1 / 6)),
    "abs": (-1.0, 1.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "erf": (0.0, up(2 / math.sqrt(math.pi))),
    "gelu": (-0.128904145185155, 1.128904145185155),
    "gelu_tanh": (-0.128993068658772, 1.128993068658772),
    "silu": (-0.0998393201288670, 1.099839320128867),
    "mish": (-0.112526122389463, 1.088498161251728),
    "selu": (0.0, 1.758099340847377),
    "hardswish": (-0.5, 1.5),
}
"""The least and the largest slope of activations without parameters, by name."""

_HIDDEN_JUMP: Final = 1e-8
"""Largest jump of a softplus that is let pass: five times that of torch's default, beta 1 and threshold 20."""


def _plain(name: str) -> Rule:
    least, largest = SLOPES[name]

    def rule(call: Call, input: Any, inplace: bool = False) -> Flow:
        del inplace
        return call.elementwise(call.only(input), least, largest)

    return rule


def _number(call: Call, value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise call.unknown(f"has {name} {value!r}: it must be a finite number")
    return float(value)


def _leaky(call: Call, input: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Flow:
    del inplace
    slope = _number(call, negative_slope, "negative_slope")
    return call.elementwise(call.only(input), min(slope, 1.0), max(slope, 1.0))


def _rrelu(
    call: Call,
    input: Any,
    lower: Any = 0.125,
    upper: Any = 1 / 3,
    training: Any = False,
    inplace: bool = False,
) -> Flow:
    if training is not False:
        raise call.unknown("is in training mode, where it draws its slopes")
    slope = (_number(call, lower, "lower") + _number(call, upper, "upper")) / 2
    wide = up(abs(slope))
    return _leaky(call, input, math.copysign(wide, slope), inplace)


def _prelu(call: Call, input: Any, weight: Any) -> Flow:
    if not isinstance(weight, Tensor) or not bool(torch.isfinite(weight).all()):
        raise call.unknown("has slopes that are not finite weights")
    slopes = [*weight.detach().double().flatten().tolist(), 1.0]
    return call.elementwise(call.only(input), min(slopes), max(slopes))


def _elu(call: Call, input: Any, alpha: Any = 1.0, inplace: bool = False) -> Flow:
    del inplace
    steep = _number(call, alpha, "alpha")
    return call.elementwise(call.only(input), min(steep, 0.0), max(steep, 1.0))


def _celu(call: Call, input: Any, alpha: Any = 1.0, inplace: bool = False) -> Flow:
    del inplace
    if _number(call, alpha, "alpha") <= 0.0:
        raise call.unbounded(f"has alpha {alpha!r}: its slope is bounded for positive ones only")
    return call.elementwise(call.only(input), 0.0, 1.0)


def _gelu(call: Call, input: Any, approximate: str = "none") -> Flow:
    if approximate not in ("none", "tanh"):
        raise call.unknown(f"has approximate {approximate!r}")
    least, largest = SLOPES["gelu" if approximate == "none" else "gelu_tanh"]
    return call.elementwise(call.only(input), least, largest)


def _softplus(call: Call, input: Any, beta: Any = 1.0, threshold: Any = 20.0) -> Flow:
    """Bound softplus, which falls by log(1 + exp(-threshold)) / beta where torch makes it linear."""
    steep, turn = _number(call, beta, "beta"), _number(call, threshold, "threshold")
    if steep <= 0.0 or turn < 20.0 or math.exp(-turn) > _HIDDEN_JUMP * steep:
        raise call.unbounded(
            f"has beta {beta!r} and threshold {threshold!r}: where it turns linear it jumps, which only a threshold of "
            f"20 or more, and log({1 / _HIDDEN_JUMP:.0e} / beta) or more, hides in rounding"
        )
    return call.elementwise(call.only(input), 0.0, 1.0)


def _softshrink(call: Call, input: Any, lambd: Any = 0.5) -> Flow:
    if _number(call, lambd, "lambd") < 0.0:
        raise call.unbounded(f"has lambd {lambd!r}: it jumps")
    return call.elementwise(call.only(input), 0.0, 1.0)


def _threshold(call: Call, input: Any, threshold: Any, value: Any, inplace: bool = False) -> Flow:
    del inplace
    if _number(call, threshold, "threshold") != _number(call, value, "value"):
        raise call.unbounded(f"jumps at {threshold!r} to {value!r}: no Lipschitz constant exists")
    return call.elementwise(call.only(input), 0.0, 1.0)


def _clamp(call: Call, input: Any, min: Any = None, max: Any = None, **inplace: bool) -> Flow:
    """Clip to constants: NaN ones would make NaN."""
    if set(inplace) - {"inplace"}:
        raise call.unknown(f"has the arguments {sorted(inplace)}")
    for bound in (min, max):
        if bound is not None and bool(torch.isnan(torch.as_tensor(bound)).any()):
            raise call.unknown("has a NaN bound")
    flow = call.only(input)
    if call.shape != flow.shape:
        raise call.unknown("changes the shape of its input")
    return call.elementwise(flow, 0.0, 1.0)


def _hardtanh(call: Call, input: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Flow:
    del inplace
    return _clamp(call, input, _number(call, min_val, "min_val"), _number(call, max_val, "max_val"))


def _softmax(call: Call, input: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Flow:
    """Bound softmax by 1/2 in l1, l2 and linf: its Jacobian is diag(p) - p p', whose row sums are 2 p (1 - p)."""
    # third by position is the number format in torch's form, and a number in torch.nn.functional's
    _check_dtype(call, _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype)
    flow = call.only(input)
    if dim is None:
        raise call.unknown("has no dim: name the axis")
    call.axes(dim, len(flow.shape) + 1)
    return call.layer(flow, 0.5, "diag(p) - p p'")


def _log_softmax(call: Call, input: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Flow:
    """Bound log-softmax: its Jacobian I - 1 p' is largest in norm where p is a corner of the simplex."""
    # third by position is the number format in torch's form, and a number in torch.nn.functional's
    _check_dtype(call, _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype)
    flow = call.only(input)
    if dim is None:
        raise call.unknown("has no dim: name the axis")
    (axis,) = call.axes(dim, len(flow.shape) + 1)
    classes = flow.shape[axis - 1]
    constant = {Norm.L1: max(1.0, classes - 1.0), Norm.L2: up(math.sqrt(classes)), Norm.LINF: 2.0}[call.norm]
    return call.layer(flow, constant, "I - 1 p'")


def _logsumexp(call: Call, input: Any, dim: Any, keepdim: bool = False) -> Flow:
    del keepdim
    flow = call.only(input)
    call.axes(dim, len(flow.shape) + 1)
    return call.layer(flow, 1.0, "its gradient is a softmax")


def _softmax2d(call: Call, module: Any, input: Any) -> Flow:
    del module
    return _softmax(call, input, -3)


def _check_dtype(call: Call, dtype: Any) -> None:
    if dtype not in (None, torch.float32, torch.float64):
        raise call.unknown(f"casts to {dtype}: bounds are of the real arithmetic of float32 or float64")


def _with(rule: Rule, *names: str) -> Rule:
    """Make the rule of a module from that of the function, with the module's attributes for arguments."""

    def module_rule(call: Call, module: Any, input: Any) -> Any:
        return rule(call, input, **{name: getattr(module, name) for name in names})

    return module_rule


MODULES: Final[dict[type[nn.Module], Rule]] = {
    nn.ReLU: _with(_plain("relu")),
    nn.ReLU6: _with(_plain("relu6")),
    nn.Tanh: _with(_plain("tanh")),
    nn.Softsign: _with(_plain("softsign")),
    nn.Tanhshrink: _with(_plain("tanhshrink")),
    nn.LogSigmoid: _with(_plain("logsigmoid")),
    nn.Sigmoid: _with(_plain("sigmoid")),
    nn.Hardsigmoid: _with(_plain("hardsigmoid")),
    nn.SiLU: _with(_plain("silu")),
    nn.Mish: _with(_plain("mish")),
    nn.SELU: _with(_plain("selu")),
    nn.Hardswish: _with(_plain("hardswish")),
    nn.GELU: _with(_gelu, "approximate"),
    nn.LeakyReLU: _with(_leaky, "negative_slope"),
    nn.RReLU: _with(_rrelu, "lower", "upper"),
    nn.PReLU: _with(_prelu, "weight"),
    nn.ELU: _with(_elu, "alpha"),
    nn.CELU: _with(_celu, "alpha"),
    nn.Softplus: _with(_softplus, "beta", "threshold"),
    nn.Softshrink: _with(_softshrink, "lambd"),
    nn.Threshold: _with(_threshold, "threshold", "value"),
    nn.Hardtanh: _with(_hardtanh, "min_val", "max_val"),
    nn.Softmax: _with(_softmax, "dim"),
    nn.Softmin: _with(_softmax, "dim"),
    nn.LogSoftmax: _with(_log_softmax, "dim"),
    nn.Softmax2d: _softmax2d,
}
FUNCTIONS: Final[dict[Any, Rule]] = {
    **{
        function: _plain(name)
        for name in SLOPES
        for space in (torch, functional)
        if (function := getattr(space, name, None)) is not None and name not in ("gelu", "gelu_tanh")
    },
    **{function: _plain("relu") for function in (torch.relu_, functional.relu_)},
    **{function: _plain("abs") for function in (torch.absolute, abs, operator.abs)},
    torch.arctan: _plain("atan"),
    torch.special.erf: _plain("erf"),
    torch.special.expit: _plain("sigmoid"),
    functional.gelu: _gelu,
    functional.leaky_relu: _leaky,
    functional.leaky_relu_: _leaky,
    functional.rrelu: _rrelu,
    functional.prelu: _prelu,
    torch.prelu: _prelu,
    functional.elu: _elu,
    functional.elu_: _elu,
    functional.celu: _celu,
    functional.softplus: _softplus,
    functional.softshrink: _softshrink,
    functional.threshold: _threshold,
    torch.threshold: _threshold,
    functional.hardtanh: _hardtanh,
    functional.hardtanh_: _hardtanh,
    torch.clamp: _clamp,
    torch.clip: _clamp,
    torch.softmax: _softmax,
    functional.softmax: _softmax,
    functional.softmin: _softmax,
    torch.log_softmax: _log_softmax,
    functional.log_softmax: _log_softmax,
    torch.logsumexp: _logsumexp,
}
METHODS: Final[dict[str, Rule]] = {
    **{name: _plain(name) for name in ("relu", "tanh", "sigmoid", "atan", "abs", "sin", "cos", "erf")},
    **{f"{name}_": _plain(name) for name in ("relu", "tanh", "sigmoid", "atan", "abs", "sin", "cos", "erf")},
    "absolute": _plain("abs"),
    "arctan": _plain("atan"),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_": _clamp,
    "clip_": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda call, input, max: _clamp(call, input, None, max),
    "prelu": _prelu,
    "softmax": lambda call, input, dim, dtype=None: _softmax(call, input, dim, dtype=dtype),
    "log_softmax": lambda call, input, dim, dtype=None: _log_softmax(call, input, dim, dtype=dtype),
    "logsumexp": _logsumexp,
}
