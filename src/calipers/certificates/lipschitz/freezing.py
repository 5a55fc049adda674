"""Freezing: a copy of a network whose weights are plain numbers, or the reason why it is no fixed, known function."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_globals
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize

from calipers.errors import UnknownLayer

__all__ = ["constant", "copied", "frozen", "one_line"]


def copied(module: nn.Module) -> nn.Module:
    """Copy a network to the CPU, after checking that nothing but its modules and weights decides what it computes.

    Args:
        module: a network.

    Returns:
        The copy, in its own number format.

    Raises:
        UnknownLayer: if it is in training mode, has hooks or replaced methods, or weights in a coarse format.
    """
    _check_modes(module)
    try:
        found = copy.deepcopy(module).cpu().requires_grad_(False)
    except Exception as problem:
        raise UnknownLayer("", type(module).__name__, f"cannot be copied: {one_line(problem)}") from problem
    for path, value in (*found.named_parameters(), *found.named_buffers()):
        _check_format(path, value)
    return found


def frozen(module: nn.Module) -> nn.Module:
    """Copy a network into float64 with every parametrized weight replaced by its value.

    The value is computed in the network's own format: it is the weight that is deployed.

    Args:
        module: a network from :func:`copied`.

    Returns:
        The copy.

    Raises:
        UnknownLayer: if a parametrization cannot be read.
    """
    with torch.no_grad():
        return _bake(copy.deepcopy(module)).double()


def _check_modes(module: nn.Module) -> None:
    for path, part in module.named_modules():
        kind = type(part).__name__
        if part.training:
            raise UnknownLayer(path, kind, "is in training mode: call .eval() on the network")
        if isinstance(part, LazyModuleMixin):
            raise UnknownLayer(path, kind, "is not initialized yet: run the network once")
        if part._forward_hooks or part._forward_pre_hooks:
            raise UnknownLayer(
                path,
                kind,
                "has a forward hook, which may change anything: remove it (weight_norm and "
                "spectral_norm of the old style are hooks: use those of torch.nn.utils.parametrizations)",
            )
        if vars(part).get("_compiled_call_impl") is not None:
            raise UnknownLayer(
                path, kind, "is compiled, or its call replaced: bound the network before .compile()"
            )
        replaced = [name for name in vars(part) if callable(getattr(type(part), name, None))]
        if replaced or type(part).__call__ is not nn.Module.__call__:
            name = replaced[0] if replaced else "__call__"
            raise UnknownLayer(path, kind, f"has a replaced {name}: define it in a class")
    if module_globals._global_forward_hooks or module_globals._global_forward_pre_hooks:
        raise UnknownLayer("", type(module).__name__, "runs under a global forward hook: remove it")


def _check_format(path: str, value: Tensor) -> None:
    if isinstance(value, UninitializedParameter | UninitializedBuffer):
        raise UnknownLayer(path, "weights", "are not initialized yet: run the network once")
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
        raise UnknownLayer(
            path, "weights", f"are a {type(value).__name__} of layout {value.layout}: use dense tensors"
        )
    if value.is_complex() or value.is_quantized:
        raise UnknownLayer(path, "weights", f"are {value.dtype}: bounds are proved for float32 and float64")
    if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
        raise UnknownLayer(
            path,
            "weights",
            f"are {value.dtype}: a bound is of the real arithmetic of float32 or float64 weights, and "
            "says nothing of a network that rounds this coarsely",
        )


def constant(place: str, value: Any) -> Any:
    """Check a constant of a network.

    Args:
        place: where it is.
        value: a tensor, or anything else.

    Returns:
        It, in float64 where it is a tensor of floats.

    Raises:
        UnknownLayer: if it is in a coarse format, or holds NaN or infinite values.
    """
    if not isinstance(value, Tensor):
        return value
    _check_format(place, value)
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise UnknownLayer(place, "weights", "hold NaN or infinite values: no bound can be given")
    return value.double() if value.is_floating_point() else value


def _bake(module: nn.Module) -> nn.Module:
    """Replace parametrized weights by their values, and the classes that compute them by those they stand for.

    ``torch.nn.utils.parametrize.remove_parametrizations`` would take the property off a class that copies share.

    Returns:
        The module.

    Raises:
        UnknownLayer: if a weight cannot be computed.
    """
    for path, part in list(module.named_modules()):
        if not parametrize.is_parametrized(part):
            continue
        assert isinstance(part.parametrizations, nn.ModuleDict)
        try:
            values = {name: getattr(part, name).detach().clone() for name in part.parametrizations}
            again = {name: getattr(part, name).detach() for name in part.parametrizations}
        except Exception as problem:
            reason = f"has a parametrization that cannot be read: {one_line(problem)}"
            raise UnknownLayer(path, type(part).__name__, reason) from problem
        moved = [name for name, value in values.items() if not torch.equal(value, again[name])]
        if moved:
            reason = (
                f"has another {moved[0]} each time it is read, in eval mode too (a power iteration that goes on?): "
                "copy the weights into a plain layer"
            )
            raise UnknownLayer(path, type(part).__name__, reason)
        part.__class__ = parametrize.type_before_parametrizations(part)
        del part.parametrizations
        for name, value in values.items():
            part.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return module


def one_line(problem: Exception) -> str:
    """Give the first line of an error.

    Args:
        problem: the error.

    Returns:
        Its message, or its type where it has none.
    """
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
