"""Registry: every rule of the closed world. A new family of layers is one new file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from calipers.certificates.lipschitz.layers import (
    activations,
    arithmetic,
    linear,
    normalization,
    pooling,
    refusals,
    structure,
)
from calipers.certificates.lipschitz.layers.call import Call, Rule

__all__ = ["apply", "known_modules"]

_FAMILIES: Final = (linear, activations, pooling, normalization, structure, arithmetic, refusals)


def _merged(name: str) -> dict[Any, Rule]:
    found: dict[Any, Rule] = {}
    for family in _FAMILIES:
        table: Mapping[Any, Rule] = getattr(family, name)
        twice = [key for key in table if key in found]
        assert not twice, f"{family.__name__} repeats {twice}"
        found.update(table)
    return found


_MODULES: Final = _merged("MODULES")
_FUNCTIONS: Final = _merged("FUNCTIONS")
_METHODS: Final = _merged("METHODS")


def known_modules() -> tuple[type[nn.Module], ...]:
    """List the types of module that have a bound, without those that are refused with a reason of their own.

    Returns:
        The types, sorted by name.
    """
    named = {kind for kind in _MODULES if kind not in refusals.MODULES}
    return tuple(sorted(named, key=lambda kind: kind.__name__))


def apply(call: Call, target: Any) -> Any:
    """Find the rule of a call and apply it.

    Args:
        call: the call, at least one of whose arguments depends on the network's input.
        target: the function, or the name of the method; of no concern for a module.

    Returns:
        What the rule gives: a flow, or a structure of flows.

    Raises:
        UnknownLayer: if there is no rule, or the arguments are none that it knows.
    """
    module = call.module
    if module is not None:
        rule = _MODULES.get(type(module))
        written = getattr(type(module).forward, "__module__", "")
        if rule is not None and not written.startswith("torch."):
            raise call.unknown("has a forward that is not torch's own")
        args = (module, *call.args)
    else:
        try:
            rule = _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)
        except TypeError:
            rule = None
        args = call.args
    if rule is None:
        raise call.unknown(refusals.UNKNOWN)
    try:
        return rule(call, *args, **call.kwargs)
    except TypeError as problem:
        raise call.unknown(f"is called in a way that is not known: {problem}") from problem
