"""Prescription: the attack that was chosen, why, what was tried for it, and what there was no time for."""

from dataclasses import dataclass
from typing import Any, final

from calipers.attacks.base import Attack

__all__ = ["Prescription", "Trial"]


@final
@dataclass(frozen=True)
class Trial:
    """A candidate that was tried on a few inputs.

    Args:
        what: the candidate in words.
        attack: its repr; empty where it was not run, or holds a function that cannot be stored.
        fell: how many inputs fell to it.
        tried: on how many it was tried.
        seconds: the time it took.
        refused: why it was not run to the end; empty if it was.
    """

    what: str
    attack: str
    fell: int
    tried: int
    seconds: float
    refused: str = ""


@final
@dataclass(frozen=True)
class Prescription:
    """An adaptive attack, and why it is this one.

    Args:
        attack: the attack, to be run and judged like any other.
        why: the reasons, a sentence each.
        trials: the candidates that were tried, in order.
        seconds: the time that the choice took.
        cut: what was left out for want of time, a sentence each: with it the attack might find more.
        expected: seconds that the attack is expected to take on all inputs, the judge's left out, if none falls early.
    """

    attack: Attack
    why: tuple[str, ...]
    trials: tuple[Trial, ...]
    seconds: float
    cut: tuple[str, ...] = ()
    expected: float = 0.0

    def text(self) -> str:
        """Write the prescription as a person reads it.

        Returns:
            Several lines.
        """
        lines = [f"prescribed: {self.attack!r}", *(f"  {reason}" for reason in self.why)]
        lines += [f"  cut for want of time: {each}" for each in self.cut]
        for each in self.trials:
            said = each.refused or f"{each.fell} of {each.tried} fall"
            lines.append(f"  tried: {each.what}: {said}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON.

        Returns:
            A mapping.
        """
        return {
            "attack": repr(self.attack),
            "why": list(self.why),
            "cut": list(self.cut),
            "trials": [dict(vars(each)) for each in self.trials],
            "seconds": self.seconds,
            "expected": self.expected,
        }
