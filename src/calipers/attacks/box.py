"""The box of inputs as a ball: the size that holds all of it, and a warning of sizes beyond."""

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from calipers.errors import BeyondTheBox
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["span_of", "told_already", "warn_beyond"]

_TOLD: ContextVar[bool] = ContextVar("told", default=False)


def span_of(target: Target, norm: Norm) -> float:
    """Give the size at which a ball holds the whole box.

    Args:
        target: the classifier, whose bounds are the box.
        norm: the norm.

    Returns:
        The size, in input units.
    """
    width, count = target.bounds[1] - target.bounds[0], target.dimension
    return float(
        {Norm.LINF: width, Norm.L2: width * count**0.5, Norm.L1: width * count, Norm.L0: count}[norm]
    )


def warn_beyond(target: Target, threat: ThreatModel) -> None:
    """Warn of a size within which every input can become any other, so that all of them fall and none says anything.

    The whole box itself is no mistake: an attack that fails there is broken, and is tested by that.

    Args:
        target: the classifier, whose bounds are the box.
        threat: norm and size; the least size is never beyond.
    """
    if threat.eps is None or _TOLD.get():
        return
    span = span_of(target, threat.norm)
    if threat.eps <= span * (1 + 1e-6):
        return
    low, high = target.bounds
    most = math.floor(span * 1e4) / 1e4
    warnings.warn(
        BeyondTheBox(
            f"eps is {threat.eps:g} and {threat.norm} {most:g} holds the whole box of inputs, {low:g} to {high:g}: "
            "each can become any other, which says nothing of the classifier; give a smaller size, in input units"
        ),
        stacklevel=_callers_level(),
    )


@contextmanager
def told_already() -> Iterator[None]:
    """Keep searches that are part of something larger from warning again of what that has warned of.

    Yields:
        Nothing.
    """
    before = _TOLD.set(True)
    try:
        yield
    finally:
        _TOLD.reset(before)


def _callers_level() -> int:
    # The first frame outside calipers: the line of the user's.
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("calipers."):
        level, frame = level + 1, frame.f_back
    return level
