"""Normalization by stored statistics is a scaling of channels; by those of the input itself it is refused."""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import numpy as np
from torch import nn
from torch.nn import functional

from calipers.certificates.lipschitz.composition import Flow
from calipers.certificates.lipschitz.layers.call import Call, Rule, array
from calipers.certificates.lipschitz.operators import Monomial

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]


def _batch_norm(
    call: Call,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Flow:
    """Scale each channel by gamma / sqrt(var + eps)."""
    del momentum
    flow = call.only(input)
    if training is not False or running_var is None or running_mean is None:
        raise call.unbounded(
            "normalizes by the statistics of the batch: an answer depends on the other inputs; keep "
            "running statistics and call .eval()"
        )
    array(call, running_mean)
    array(call, 0.0 if bias is None else bias)
    spread = array(call, running_var) + float(eps)
    if not spread.size or float(spread.min()) <= 0.0:
        raise call.unknown("has a variance that is not positive")
    gamma = np.ones(len(spread)) if weight is None else array(call, weight)
    factors = (gamma / np.sqrt(spread)).reshape(-1, *(1,) * (len(flow.shape) - 1))
    if bool(((np.abs(factors) < sys.float_info.min) & (gamma.reshape(factors.shape) != 0.0)).any()):
        raise call.unknown("scales by less than the least normal float64: its rounding is no relative one")
    return call.linear(flow, Monomial(flow.shape, None, factors, roundings=6))


def _batch_norm_module(call: Call, module: Any, input: Any) -> Flow:
    if not module.track_running_stats:
        raise call.unbounded(
            "has track_running_stats=False: it normalizes by the statistics of the batch even in eval mode"
        )
    return _batch_norm(
        call, input, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps
    )


def _useless(call: Call, weight: Any, eps: float, what: str) -> Exception:
    gamma = 1.0 if weight is None else float(np.abs(array(call, weight)).max())
    constant = gamma / math.sqrt(eps) if eps > 0.0 else math.inf
    return call.unbounded(
        f"divides by the statistics of {what} itself: its constant is finite and useless, "
        f"max|gamma|/sqrt(eps) = {constant:.4g}; use BatchNorm, or a network without normalization"
    )


def _refuse_module(call: Call, module: Any, *inputs: Any) -> Flow:
    del inputs
    eps = 1e-5 if getattr(module, "eps", None) is None else float(module.eps)
    raise _useless(call, getattr(module, "weight", None), eps, "each input")


def _instance_norm_module(call: Call, module: Any, input: Any) -> Flow:
    if module.track_running_stats and module.running_var is not None:
        return _batch_norm_module(call, module, input)
    return _refuse_module(call, module, input)


def _refuse_function(call: Call, *args: Any, weight: Any = None, eps: Any = 1e-5, **rest: Any) -> Flow:
    del rest
    weights = [
        value for value in args[2:3] if value is not None and not isinstance(value, bool | int | float)
    ]
    raise _useless(
        call, weight if weight is not None else next(iter(weights), None), float(eps or 1e-5), "each input"
    )


def _normalize(call: Call, input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None) -> Flow:
    del input, p, dim, out
    raise call.unbounded(
        f"divides by the norm of the features themselves: its constant is finite and useless, 1/eps = {1 / eps:.4g}"
    )


_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS: Final = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

MODULES: Final[dict[type[nn.Module], Rule]] = {
    **dict.fromkeys(_BATCH_NORMS, _batch_norm_module),
    **dict.fromkeys(_INSTANCE_NORMS, _instance_norm_module),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), _refuse_module),
}
FUNCTIONS: Final[dict[Any, Rule]] = {
    functional.batch_norm: _batch_norm,
    functional.layer_norm: _refuse_function,
    functional.group_norm: _refuse_function,
    functional.instance_norm: _refuse_function,
    functional.rms_norm: _refuse_function,
    functional.normalize: _normalize,
}
METHODS: Final[dict[str, Rule]] = {}
