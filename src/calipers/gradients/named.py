"""Functions that can be stored: under a registered name, or as module:qualname."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

from torch import nn

from calipers.errors import UntrustedCode, UsageError
from calipers.target.fingerprint import fingerprint_module

__all__ = ["Function", "NamedFunction", "as_function", "name_of", "register", "trusting"]

Function = Callable[..., Any] | str
"""What a method is given: a callable, a registered name, or ``package.module:qualname``."""

_REGISTERED: dict[str, Callable[..., Any]] = {}
_NAME = re.compile(r"[A-Za-z][\w-]*")
_LISTED = 8
_PLACE = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")
_DIGITS = 12


def register(name: str, function: Callable[..., Any]) -> None:
    """Give a function a name, by which it is written and found again.

    Args:
        name: letters, digits, ``_`` and ``-``, a letter first.
        function: the function; a module's weights become part of the text by their hash.

    Raises:
        UsageError: if the name cannot be written, or names another function.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a function: use letters, digits, _ and -, a letter first")
    if _REGISTERED.get(name, function) is not function:
        raise UsageError(f"{name!r} already names another function: choose another name")
    _REGISTERED[name] = function


@final
@dataclass(frozen=True, repr=False)
class NamedFunction:
    """A function that is known by its text, compared by it, and looked up when it is made.

    Args:
        name: a registered name or ``package.module:qualname``; a module of torch gets the hash of its structure and
            weights behind a ``#``.

    Raises:
        UsageError: if nothing of that name is there, or its weights are others than the hash says.
    """

    name: str
    function: Callable[..., Any] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        plain, _, wanted = self.name.partition("#")
        found = _look_up(plain)
        digest = _digest(found)
        if wanted and wanted != digest:
            raise UsageError(
                f"{plain!r} has the hash {digest or 'of no weights'} and #{wanted} was asked for: other weights"
            )
        object.__setattr__(self, "function", found)
        object.__setattr__(self, "name", f"{plain}#{digest}" if digest else plain)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **named)

    def __repr__(self) -> str:
        return repr(self.name)

    def __reduce__(self) -> tuple[type[NamedFunction], tuple[str]]:
        return NamedFunction, (self.name,)


def as_function(given: Function) -> Callable[..., Any]:
    """Find the function that is meant, under its name where it has one.

    Args:
        given: a callable or its name.

    Returns:
        A :class:`NamedFunction`, or the callable itself if nothing finds it again: a lambda, a closure.

    Raises:
        UsageError: if it is neither.
    """
    if isinstance(given, NamedFunction):
        return given
    if isinstance(given, str):
        return NamedFunction(given)
    if not callable(given):
        raise UsageError(f"{given!r} is no function: give a callable or the name of one")
    for name, function in _REGISTERED.items():
        if function is given:
            return NamedFunction(name)
    module, qualname = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if isinstance(module, str) and isinstance(qualname, str) and module != "__main__":
        place = f"{module}:{qualname}"
        if _PLACE.fullmatch(place) and _follow(sys.modules.get(module), qualname) is given:
            return NamedFunction(place)
    return given


def name_of(function: object) -> str:
    """Name a function as text from which it is found again.

    Args:
        function: what :func:`as_function` gave.

    Returns:
        Its name.

    Raises:
        UsageError: if it has none.
    """
    if isinstance(function, NamedFunction):
        return function.name
    called = getattr(function, "__qualname__", type(function).__qualname__)
    raise UsageError(
        f"{called} cannot be stored: register it under a name, or define it in a module and write module:name"
    )


def trusting(name: str, *, trust_code: bool) -> str:
    """Refuse to look up a name that would run the user's own code, unless it may run.

    Args:
        name: the name of a function as it was read.
        trust_code: whether the user's code may be run.

    Returns:
        The name.

    Raises:
        UntrustedCode: if it lies in a module outside calipers and may not be run.
    """
    module, colon, _ = name.partition(":")
    if colon and not trust_code and module.partition(".")[0] != "calipers":
        raise UntrustedCode(f"{name} runs code of yours, the module {module}: say --trust-code if it may")
    return name


def _look_up(name: str) -> Callable[..., Any]:
    if name in _REGISTERED:
        return _REGISTERED[name]
    if not _PLACE.fullmatch(name):
        names = sorted(_REGISTERED)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        known = (", ".join(names[:_LISTED]) or "none") + more
        raise UsageError(f"no function is named {name!r}: known are {known}; or write package.module:name")
    module, _, qualname = name.partition(":")
    try:
        found = _follow(importlib.import_module(module), qualname)
    except Exception as problem:
        line = " ".join(str(problem).split())
        raise UsageError(f"{name}: importing {module} raised {type(problem).__name__}: {line}") from problem
    if not callable(found):
        raise UsageError(f"{name}: the module {module} has no function {qualname}")
    return found  # type: ignore[no-any-return]


def _follow(thing: object, qualname: str) -> Any:
    for part in qualname.split("."):
        thing = getattr(thing, part, None)
    return thing


def _digest(function: object) -> str:
    return fingerprint_module(function)[:_DIGITS] if isinstance(function, nn.Module) else ""
