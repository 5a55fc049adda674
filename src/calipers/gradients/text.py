"""The text form of an estimator: read from the command line, written into the store.

Views stand from the outermost to the innermost, with spaces between: ``eot(30) bpda(encoder=identity)`` averages over
30 draws the gradient that has its backward substituted. ``autograd`` is what comes last where nothing else does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from calipers.errors import UsageError
from calipers.gradients.bpda import BPDA
from calipers.gradients.double import Double
from calipers.gradients.eot import EOT, Average
from calipers.gradients.estimator import Autograd, GradientEstimator
from calipers.gradients.finite_differences import NES, SPSA
from calipers.gradients.named import NamedFunction, trusting
from calipers.gradients.transformations import AdditiveNoise, Finite, NoiseKind, Transformations

__all__ = ["VIEWS", "parse_gradient"]

VIEWS = ("autograd", "bpda", "double", "eot", "nes", "spsa")
"""The names of the estimators."""

_TOKEN = re.compile(r"\s*([(),=]|[^\s(),=]+)")
_LONGEST = 2000


@dataclass(frozen=True)
class _Call:
    """A name with its arguments, each with or without a word before it."""

    name: str
    arguments: tuple[tuple[str, str | _Call], ...]
    bracketed: bool


def parse_gradient(text: str, *, trust_code: bool = False) -> GradientEstimator:
    """Read an estimator.

    Args:
        text: such as ``eot(30) bpda(encoder=identity)``, ``nes(100, sigma=0.001)`` or ``autograd``.
        trust_code: whether a name ``module:function`` outside calipers may be imported, which runs the user's code.

    Returns:
        The estimator.

    Raises:
        UsageError: if the text cannot be read; the message says which part.
        UntrustedCode: if it names code of the user's that may not be run.

    Example:
        >>> parse_gradient("eot(30) bpda(encoder=identity)").describe()
        'eot(30) bpda(encoder=identity)'
    """
    views = _Reader(text).views()
    found: GradientEstimator | None = None
    for view in reversed(views):
        if view.name not in _MAKERS:
            raise UsageError(f"gradient {view.name!r} is unknown: use {', '.join(VIEWS)}")
        if found is not None and view.name not in ("bpda", "double", "eot"):
            raise UsageError(
                f"{view.name} takes nothing after it, and {found.describe()} follows: put it last"
            )
        found = _MAKERS[view.name](_Arguments(view, trust_code), found or Autograd())
    assert found is not None, "a text without a view is refused by the reader"
    return found


class _Reader:
    """Reads names, brackets and commas."""

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise UsageError(f"a gradient of {len(text)} characters: write at most {_LONGEST}")
        self._text = " ".join(text.split())
        self._tokens = _TOKEN.findall(self._text)
        self._place = 0

    def views(self) -> list[_Call]:
        found = []
        while self._peek():
            found.append(self._call(self._next()))
        if not found:
            raise UsageError(f"gradient is empty: use {', '.join(VIEWS)}")
        return found

    def _call(self, name: str) -> _Call:
        if name in "(),=":
            raise self._problem(f"{name!r} stands where a name belongs")
        if self._peek() != "(":
            return _Call(name, (), bracketed=False)
        self._next()
        arguments = []
        while self._peek() != ")":
            arguments.append(self._argument())
            if self._peek() not in (",", ")"):
                raise self._problem(f"{self._peek() or 'the end'!r} stands where ',' or ')' belongs")
            if self._peek() == ",":
                self._next()
        self._next()
        return _Call(name, tuple(arguments), bracketed=True)

    def _argument(self) -> tuple[str, str | _Call]:
        word, value = "", self._call(self._next())
        if self._peek() == "=":
            if value.bracketed:
                raise self._problem(f"{value.name}(...) stands before '='")
            self._next()
            word, value = value.name, self._call(self._next())
        return word, value if value.bracketed else value.name

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise self._problem("it ends too early")
        self._place += 1
        return token

    def _problem(self, what: str) -> UsageError:
        shown = self._text if len(self._text) <= 80 else self._text[:77] + "..."
        return UsageError(
            f"gradient {shown!r} cannot be read: {what}; write it as eot(30) bpda(encoder=identity)"
        )


class _Arguments:
    """The arguments of one view, each taken once and read as what it must be."""

    def __init__(self, call: _Call, trust_code: bool) -> None:
        self.name = call.name
        self._all = call.arguments
        self._trust_code = trust_code

    def fields(self, first: str = "", **readers: Callable[[str | _Call], object]) -> dict[str, Any]:
        """Read arguments into the fields of a dataclass; one without a word is the first field."""
        found: dict[str, Any] = {}
        for word, value in self._all:
            name = word or first
            if not name or name not in readers or name in found:
                known = ", ".join(readers) or "none"
                raise UsageError(
                    f"{self.name} has no use for {word or _shown(value)!r}: its arguments are {known}"
                )
            try:
                found[name] = readers[name](value)
            except ValueError as problem:
                if isinstance(problem, UsageError):
                    raise
                raise UsageError(f"{self.name}: {name} cannot be {_shown(value)!r}: give a number") from None
        return found

    def pairs(self) -> tuple[tuple[str, str | _Call], ...]:
        """Give the arguments as they stand."""
        return self._all

    def function(self, value: str | _Call) -> str:
        """Read the name of a function."""
        if isinstance(value, _Call):
            raise UsageError(f"{self.name}: {value.name}(...) stands where the name of a function belongs")
        return trusting(value, trust_code=self._trust_code)

    def transformations(self, value: str | _Call) -> Transformations | str:
        """Read a distribution of transformations."""
        if isinstance(value, str):
            name = self.function(value)
            held = NamedFunction(name).function
            return held if isinstance(held, Transformations) else name
        inside = _Arguments(value, self._trust_code)
        if value.name == "finite":
            return inside.finite()
        if value.name in get_args(NoiseKind):
            scale = inside.fields("scale", scale=_number)
            return AdditiveNoise(value.name, **scale)  # type: ignore[arg-type]
        raise UsageError(
            f"over={value.name}(...) is unknown: use {', '.join(get_args(NoiseKind))}, finite, or a function's name"
        )

    def finite(self) -> Finite:
        """Read transformations with or without probabilities."""
        names = tuple(self.function(word or value) for word, value in self._all)
        if not any(word for word, _ in self._all):
            return Finite(names)
        if not all(word for word, _ in self._all):
            raise UsageError("finite gives some of its transformations a probability: give each one, or none")
        try:
            return Finite(names, tuple(_number(value) for _, value in self._all))
        except ValueError as problem:
            if isinstance(problem, UsageError):
                raise
            raise UsageError(
                "finite has a probability that is no number: write finite(NAME=0.5, ...)"
            ) from None


def _number(value: str | _Call) -> float:
    return float(_plain(value))


def _count(value: str | _Call) -> int:
    return int(_plain(value))


def _average(value: str | _Call) -> str:
    if _plain(value) not in get_args(Average):
        raise UsageError(f"average is {_plain(value)!r}: use {', '.join(get_args(Average))}")
    return _plain(value)


def _switch(value: str | _Call) -> bool:
    if _plain(value).lower() not in ("true", "false"):
        raise UsageError(f"{_plain(value)!r} is neither true nor false")
    return _plain(value).lower() == "true"


def _plain(value: str | _Call) -> str:
    if isinstance(value, _Call):
        raise UsageError(f"{value.name}(...) stands where a plain value belongs")
    return value


def _shown(value: str | _Call) -> str:
    return value if isinstance(value, str) else f"{value.name}(...)"


def _autograd(given: _Arguments, inner: GradientEstimator) -> GradientEstimator:
    given.fields()
    return Autograd()


def _bpda(given: _Arguments, inner: GradientEstimator) -> GradientEstimator:
    for word, value in given.pairs():
        if not word:
            raise UsageError(
                f"bpda has {_shown(value)!r} without a substitute: write bpda({_shown(value)}=identity)"
            )
    return BPDA(tuple((word, given.function(value)) for word, value in given.pairs()), inner)


def _double(given: _Arguments, inner: GradientEstimator) -> GradientEstimator:
    given.fields()
    return Double(inner)


def _eot(given: _Arguments, inner: GradientEstimator) -> GradientEstimator:
    fields = given.fields(
        "samples", samples=_count, over=given.transformations, average=_average, max_batch=_count
    )
    return EOT(**fields, inner=inner)


def _nes(given: _Arguments, inner: GradientEstimator) -> GradientEstimator:
    return NES(**given.fields("samples", samples=_count, sigma=_number, antithetic=_switch, max_batch=_count))


def _spsa(given: _Arguments, inner: GradientEstimator) -> GradientEstimator:
    return SPSA(**given.fields("samples", samples=_count, delta=_number, max_batch=_count))


_MAKERS: dict[str, Callable[[_Arguments, GradientEstimator], GradientEstimator]] = {
    "autograd": _autograd,
    "bpda": _bpda,
    "double": _double,
    "eot": _eot,
    "nes": _nes,
    "spsa": _spsa,
}
