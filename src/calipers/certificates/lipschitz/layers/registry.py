"""Registry: every rule of the closed world. A new family of layers is one new file and one line here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
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
from calipers.certificates.lipschitz.tracing import Step
from calipers.errors import CalipersError, NotLipschitz

__all__ = ["apply", "known_modules", "refuse"]

_FAMILIES: Final = (linear, activations, pooling, normalization, structure, arithmetic)


def _merged(name: str) -> dict[Any, Rule]:
    found: dict[Any, Rule] = {}
    for family in _FAMILIES:
        table: Mapping[Any, Rule] = getattr(family, name)
        twice = [key for key in table if key in found or key in getattr(refusals, name)]
        assert not twice, f"{family.__name__} repeats {twice}"
        found.update(table)
    return found


_MODULES: Final = _merged("MODULES")
_FUNCTIONS: Final = _merged("FUNCTIONS")
_METHODS: Final = _merged("METHODS")


def known_modules() -> tuple[type[nn.Module], ...]:
    """List the types of module that have a rule.

    Returns:
        The types, sorted by name.
    """
    return tuple(sorted(_MODULES, key=lambda kind: kind.__name__))


def refuse(step: Step) -> None:
    """Refuse a call that has no useful constant, before it is run: it may not even run by itself.

    Args:
        step: the call.

    Raises:
        NotLipschitz: if it is one of those with a reason of their own.
    """
    tables: tuple[Mapping[Any, str], ...] = (refusals.FUNCTIONS, refusals.METHODS)
    key: Any = step.node.target
    reason = refusals.MODULES.get(type(step.module)) if step.module is not None else None
    if step.module is None and isinstance(key, Hashable):
        reason = tables[isinstance(key, str)].get(key)
    if reason is not None:
        raise NotLipschitz(step.place, step.kind, reason)


def apply(call: Call, target: Any) -> Any:
    """Find the rule of a call and apply it.

    Args:
        call: the call, at least one of whose arguments depends on the network's input.
        target: the function, or the name of the method; of no concern for a module.

    Returns:
        What the rule gives: a flow, or a structure of flows.

    Raises:
        UnknownLayer: if there is no rule, or the arguments are none that it knows.
        CalipersError: whatever the rule raises.
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
    except CalipersError:
        raise
    except (TypeError, ValueError, LookupError) as problem:
        raise call.unknown(f"is called in a way that is not known: {problem}") from problem
