"""ThreatModel: the norm, the size and the goal of an adversary."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, final

from calipers.errors import UsageError

__all__ = ["ABSTAIN", "Goal", "Norm", "Targeted", "ThreatModel", "Untargeted"]

ABSTAIN = -1
"""The third answer of a classifier: no class (a tie, a NaN, a rejection, or too few votes)."""

AbstentionCounts = Literal["right", "wrong", "neither"]


class Norm(Enum):
    """A norm in which perturbations are measured, over all coordinates of one input."""

    L0 = "l0"
    L1 = "l1"
    L2 = "l2"
    LINF = "linf"

    @staticmethod
    def parse(text: str) -> Norm:
        """Read a norm as people write it: ``l2``, ``L2``, ``2``, ``linf``, ``inf``.

        Args:
            text: the name of the norm.

        Returns:
            The norm.

        Raises:
            UsageError: if the name is none of the four norms.

        Example:
            >>> Norm.parse("Linf")
            <Norm.LINF: 'linf'>
        """
        name = text.strip().lower()
        name = name if name.startswith("l") else f"l{name}"
        for norm in Norm:
            if norm.value == name:
                return norm
        raise UsageError(f"norm {text!r} is unknown: write one of l0, l1, l2, linf")

    def __str__(self) -> str:
        return self.value


def _check_abstain(abstain: str) -> None:
    if abstain not in ("right", "wrong", "neither"):
        raise UsageError(f"abstain is {abstain!r}: it counts as 'right', 'wrong' or 'neither'")


@final
@dataclass(frozen=True)
class Untargeted:
    """The adversary wants any answer other than the label.

    Args:
        abstain: what an abstention at the adversarial point counts as for the defender. ``"wrong"`` gives the
            adversary a success, ``"right"`` does not, ``"neither"`` leaves the attempt undetermined.
    """

    abstain: AbstentionCounts = "neither"

    def __post_init__(self) -> None:
        _check_abstain(self.abstain)


@final
@dataclass(frozen=True)
class Targeted:
    """The adversary wants one chosen class for each input.

    Args:
        classes: the wanted class of each input, in the order of the inputs.
        abstain: as in :class:`Untargeted`; an abstention is never the wanted class.
    """

    classes: tuple[int, ...]
    abstain: AbstentionCounts = "neither"

    def __post_init__(self) -> None:
        _check_abstain(self.abstain)


Goal = Untargeted | Targeted


@final
@dataclass(frozen=True)
class ThreatModel:
    """What the adversary may do and wants; the box of valid inputs belongs to the target.

    Args:
        norm: the norm in which the perturbation is measured.
        eps: the size allowed, in input units of the target; None asks for the smallest size (minimum norm).
        goal: what the adversary wants.

    Raises:
        UsageError: if the norm is none, or eps is negative, NaN or infinite.
    """

    norm: Norm
    eps: float | None = None
    goal: Goal = field(default_factory=Untargeted)

    def __post_init__(self) -> None:
        if not isinstance(self.norm, Norm):
            raise UsageError(f"norm is {self.norm!r}: give a Norm, such as Norm.LINF or Norm.parse('linf')")
        if self.eps is not None and not 0 <= self.eps < float("inf"):
            raise UsageError(f"eps is {self.eps}: give a finite size of at least 0, in input units")
