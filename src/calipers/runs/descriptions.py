"""Descriptions: the repr of a method, which is its entry in a store, and back from it to the method."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING

from calipers.errors import UsageError
from calipers.runs.catalog import FUNCTIONS_NAMED, METHODS

if TYPE_CHECKING:
    from calipers.attacks.base import Attack
    from calipers.attacks.judge import Judge
    from calipers.certificates.base import Certifier
    from calipers.certificates.smoothing.certifier import VotePredictor
    from calipers.certificates.smoothing.noise import Noise
    from calipers.certificates.smoothing.stopping import StoppingRule

__all__ = [
    "build",
    "build_attack",
    "build_certifier",
    "build_judge",
    "build_noise",
    "build_predictor",
    "build_stopping",
    "changed",
    "field_of",
]

_LONGEST = 4000


def build(text: str, *, trust_code: bool = False) -> object:
    """Rebuild a method, a noise or a stopping rule from its repr.

    The text is parsed and never evaluated: it is a call of a name in the catalog whose arguments are
    numbers, texts, tuples, lists, None, True, False, or such calls again. A file from a stranger cannot run
    anything by it.

    Args:
        text: the repr, such as ``VoteCertifier(n0=100, n=1000)``; arguments may be left out.
        trust_code: whether a function of the user's that it names (``module:function``) may be imported.

    Returns:
        The object, whose own repr is the canonical text.

    Raises:
        UsageError: if the text is anything else, or the arguments are refused.

    Example:
        >>> build("DecideRadii((0.5, 0.25))")
        DecideRadii(radii=(0.25, 0.5))
    """
    return _value(_parsed(text), trust_code=trust_code)


def changed(text: str, fields: Mapping[str, object]) -> str:
    """Change fields in the repr of a method without making the method, so that no torch is loaded.

    Args:
        text: the repr, with its fields by name.
        fields: new values by name.

    Returns:
        The repr of the method with those fields.

    Raises:
        UsageError: if the text is no such repr, or lacks one of the fields.

    Example:
        >>> changed("VoteCertifier(n0=100, alpha=0.001, stopping=FixedBudget())", {"alpha": 1e-05})
        'VoteCertifier(n0=100, alpha=1e-05, stopping=FixedBudget())'
    """
    tree = _parsed(text)
    there = {keyword.arg for keyword in tree.keywords}
    if set(fields) - there:
        raise UsageError(f"{_short(text)} has no field {', '.join(sorted(set(fields) - there))}")
    for keyword in tree.keywords:
        if keyword.arg is not None and keyword.arg in fields:
            keyword.value = ast.parse(repr(fields[keyword.arg]), mode="eval").body
    return ast.unparse(tree)


def field_of(text: str, name: str) -> object:
    """Read a field of a method from its repr without making the method, so that no torch is loaded.

    Args:
        text: the repr, with its fields by name.
        name: the field.

    Returns:
        Its value.

    Raises:
        UsageError: if the text is no such repr, or lacks the field.

    Example:
        >>> field_of("SoftCertifier(n0=100, lemma='lemma-2')", "lemma")
        'lemma-2'
    """
    for keyword in _parsed(text).keywords:
        if keyword.arg == name:
            return _value(keyword.value)
    raise UsageError(f"{_short(text)} has no field {name}")


def build_certifier(text: str) -> Certifier:
    """Rebuild a certifier from its repr; loads torch.

    Args:
        text: the repr.

    Returns:
        The certifier.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.base import Certifier

    built = build(text)
    if not isinstance(built, Certifier):
        raise UsageError(_wrong_kind(text, "certifier"))
    return built


def build_predictor(text: str) -> VotePredictor:
    """Rebuild a predictor from its repr; loads torch.

    Args:
        text: the repr.

    Returns:
        The predictor.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.smoothing.certifier import VotePredictor

    built = build(text)
    if not isinstance(built, VotePredictor):
        raise UsageError(_wrong_kind(text, "predictor"))
    return built


def build_noise(text: str) -> Noise:
    """Rebuild a noise from its repr; loads no torch.

    Args:
        text: the repr.

    Returns:
        The noise.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.smoothing.noise import Noise

    built = build(text)
    if not isinstance(built, Noise):
        raise UsageError(_wrong_kind(text, "noise"))
    return built


def build_attack(text: str, *, trust_code: bool = False) -> Attack:
    """Rebuild an attack from its repr; loads torch.

    Args:
        text: the repr.
        trust_code: whether a function of the user's that it names may be imported.

    Returns:
        The attack.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.attacks.base import Attack

    built = build(text, trust_code=trust_code)
    if not isinstance(built, Attack):
        raise UsageError(_wrong_kind(text, "attack"))
    return built


def build_judge(text: str) -> Judge:
    """Rebuild a judge from its repr; loads torch.

    Args:
        text: the repr.

    Returns:
        The judge.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.attacks.judge import Judge

    built = build(text)
    if not isinstance(built, Judge):
        raise UsageError(_wrong_kind(text, "judge"))
    return built


def build_stopping(text: str) -> StoppingRule:
    """Rebuild a stopping rule from its repr; loads no torch.

    Args:
        text: the repr.

    Returns:
        The stopping rule.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.smoothing.stopping import DecideRadii, FixedBudget

    built = build(text)
    if not isinstance(built, FixedBudget | DecideRadii):
        raise UsageError(_wrong_kind(text, "stopping rule"))
    return built


def _parsed(text: str) -> ast.Call:
    if len(text) > _LONGEST:
        raise UsageError(f"a description of {len(text)} characters is no method: at most {_LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(
            f"{_short(text)} is not the description of a method, such as Gaussian(sigma=0.25)"
        ) from None
    if not isinstance(tree, ast.Call):
        raise UsageError(f"{_short(text)} is not the description of a method, such as Gaussian(sigma=0.25)")
    return tree


def _wrong_kind(text: str, word: str) -> str:
    return f"{_short(text)} is no {word}: known names are {', '.join(METHODS)}"


def _value(node: ast.expr, *, trust_code: bool = False) -> object:
    match node:
        case ast.Constant(value=int() | float() | str() | bool() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=elements):
            return tuple(_value(element, trust_code=trust_code) for element in elements)
        case ast.List(elts=elements):
            return [_value(element, trust_code=trust_code) for element in elements]
        case ast.Name(id="inf"):
            return math.inf
        case ast.Call(func=ast.Name(id=name)):
            return _call(name, node, trust_code=trust_code)
        case _:
            raise UsageError(f"{_short(ast.unparse(node))} may not stand in the description of a method")


def _call(name: str, node: ast.Call, *, trust_code: bool) -> object:
    if name not in METHODS:
        raise UsageError(f"{name!r} is not in the catalog: known names are {', '.join(METHODS)}")
    positional = [_value(argument, trust_code=trust_code) for argument in node.args]
    named = {
        keyword.arg: _value(keyword.value, trust_code=trust_code)
        for keyword in node.keywords
        if keyword.arg is not None
    }
    if len(named) != len(node.keywords):
        raise UsageError(f"the description of {name} has ** in it, which is not allowed")
    if name in FUNCTIONS_NAMED:
        _check_trust([*positional, *named.values()], trust_code=trust_code)
    make = getattr(import_module(METHODS[name]), name)
    try:
        return make(*positional, **named)
    except TypeError as problem:
        unknown = [word for word in named if word not in signature(make).parameters]
        why = f"it has no argument {unknown[0]!r}" if unknown else str(problem)
        raise UsageError(
            f"{name} cannot be made, {why}: it takes {', '.join(signature(make).parameters)}"
        ) from None


def _check_trust(values: Iterable[object], *, trust_code: bool) -> None:
    from calipers.gradients.named import trusting

    for value in values:
        if isinstance(value, str):
            trusting(value, trust_code=trust_code)
        elif isinstance(value, tuple | list):
            _check_trust(value, trust_code=trust_code)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
