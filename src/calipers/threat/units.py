"""Sizes as people write them: ``8/255`` is read exactly, and printed back as it was written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from calipers.errors import UsageError
from calipers.threat.threat_model import Norm

__all__ = ["Size", "parse_size", "parse_sized_norm"]

_DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_QUOTIENT = re.compile(rf"([+-]?{_DECIMAL})(?:\s*/\s*({_DECIMAL}))?")


@final
@dataclass(frozen=True)
class Size:
    """An exact size with the text it was written as.

    Args:
        exact: the size, in input units.
        text: the text that the user wrote.
    """

    exact: Fraction
    text: str

    def __float__(self) -> float:
        return float(self.exact)

    def __str__(self) -> str:
        return self.text


def parse_size(text: str) -> Size:
    """Read a size such as ``0.5``, ``8/255`` or ``1e-3`` exactly.

    Args:
        text: a decimal number or a quotient of two.

    Returns:
        The exact size, which prints as it was written.

    Raises:
        UsageError: if the text is not a finite, non-negative number.

    Example:
        >>> size = parse_size("8/255")
        >>> print(size, size.exact * 255)
        8/255 8
    """
    written = text.strip()
    parts = _QUOTIENT.fullmatch(written)
    bottom = Fraction(parts[2] or 1) if parts else Fraction(0)
    if parts is None or bottom == 0:
        raise UsageError(f"size {text!r} is not a number: write 0.5, 8/255 or 1e-3")
    exact = Fraction(parts[1]) / bottom
    if exact < 0:
        raise UsageError(f"size {text!r} is negative: a size is at least 0, in input units")
    return Size(exact, written)


def parse_sized_norm(text: str) -> tuple[Norm, Size]:
    """Read a norm with a size, such as ``l2:0.5`` or ``linf:8/255``.

    Args:
        text: the norm and the size, with a colon between.

    Returns:
        The norm and the size.

    Raises:
        UsageError: if there is no colon, or a part means nothing.
    """
    norm, colon, size = text.partition(":")
    if not colon:
        raise UsageError(f"{text!r} has no size: write norm:size, such as l2:0.5 or linf:8/255")
    return Norm.parse(norm), parse_size(size)
