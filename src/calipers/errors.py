"""One tree of errors: each says what was wrong, shows the value, and names its remedy."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadReference",
    "CalipersError",
    "CalipersWarning",
    "CheckFailed",
    "GradientsUnavailable",
    "InvalidInput",
    "MissingClasses",
    "MissingExtra",
    "MissingFile",
    "NotLipschitz",
    "ScoresUnavailable",
    "SoftmaxOutput",
    "StoreCorrupt",
    "StoreError",
    "StoreMismatch",
    "StoreNotWritable",
    "TargetError",
    "UnknownLayer",
    "UnsafeFile",
    "Unsound",
    "UntrustedCode",
    "UsageError",
    "WorkerDied",
]


class CalipersError(Exception):
    """Base of every error that calipers raises on purpose; the message is one line fit for a terminal."""

    exit_code: ClassVar[int] = 2


class UsageError(CalipersError, ValueError):
    """An argument has a value that means nothing; the message shows the value and the range allowed."""


class InvalidInput(CalipersError, ValueError):
    """Images or labels cannot be measured: NaN, outside the bounds, of another shape, a label out of range."""


class BadReference(CalipersError):
    """A model or data reference cannot be resolved; the message lists what would be understood."""


class MissingFile(BadReference):
    """The file or folder that a reference names is not there, or is empty."""


class UnsafeFile(BadReference):
    """A file holds a pickle that could run code; it was refused and nothing in it was run."""


class UntrustedCode(BadReference):
    """A reference would run the user's own code, which needs ``--trust-code``."""


class MissingExtra(BadReference):
    """A library that an optional feature needs is not installed.

    Args:
        library: the import name that was not found.
        extra: the extra of calipers that brings it.
    """

    def __init__(self, library: str, *, extra: str) -> None:
        super().__init__(
            f"this needs {library}, which is not installed: run  pip install 'calipers[{extra}]'"
        )
        self.library = library
        self.extra = extra


class TargetError(CalipersError):
    """A model cannot be measured as it is: training mode, NaN scores, dependence on batch-mates, one class."""


class ScoresUnavailable(TargetError):
    """Scores were asked of a target that gives decisions only."""


class GradientsUnavailable(TargetError):
    """Gradients were asked of a target that gives scores or decisions only."""


class Unsound(CalipersError):
    """The request would give a number that the theory does not support, so it is refused."""


class NotLipschitz(Unsound):
    """A layer of a network has no Lipschitz constant, or none that would be of use.

    Args:
        place: the layer's place in the network, such as ``layer1.0.norm``.
        kind: the type of module or the function.
        reason: why, and what to do.
    """

    def __init__(self, place: str, kind: str, reason: str) -> None:
        super().__init__(_layer(place, kind, reason))
        self.place, self.kind, self.reason = place, kind, reason


class UnknownLayer(Unsound):
    """A layer of a network, or the way it is set up, is not among those for which a bound is proved.

    Args:
        place: the layer's place in the network.
        kind: the type of module or the function.
        reason: what is not known, and what to do.
    """

    def __init__(self, place: str, kind: str, reason: str) -> None:
        super().__init__(_layer(place, kind, reason))
        self.place, self.kind, self.reason = place, kind, reason


def _layer(place: str, kind: str, reason: str) -> str:
    where = f"{place} ({kind})" if place and place != kind else kind
    return " ".join(f"{where}: {reason}".split())


class StoreError(CalipersError):
    """The file of a run cannot be used."""


class StoreCorrupt(StoreError):
    """The file is not a run of calipers, or is damaged; it was left as it is."""


class StoreMismatch(StoreError):
    """The file holds another specification; the message shows the difference, and nothing was written."""


class StoreNotWritable(StoreError):
    """The file or its folder cannot be written: read-only, or the disk is full; what was there is kept."""


class WorkerDied(CalipersError):
    """A worker process ended before its inputs were done; what was finished is in the store."""


class CheckFailed(CalipersError):
    """A check that the user asked for does not hold (a floor, a saved adversarial input, a contradiction)."""

    exit_code: ClassVar[int] = 1


class CalipersWarning(UserWarning):
    """Base of every warning that calipers issues."""


class SoftmaxOutput(CalipersWarning):
    """The model's outputs look like probabilities; votes do not mind, margins and gradients do."""


class MissingClasses(CalipersWarning):
    """A subset of the data lacks some of the classes."""


class BeyondTheBox(CalipersWarning):
    """The size allowed is beyond the box of inputs, so that every input can become any other."""
