"""Pace: what a forward pass takes, measured once, so that a search can be made to fit a time."""

from dataclasses import dataclass
from time import perf_counter
from typing import final

from jaxtyping import Float
from torch import Tensor

from calipers.randomness import Draws
from calipers.target import Target

__all__ = ["Pace", "measure_pace"]

_FEW, _MORE = 2, 16
_QUICK, _REPEATS = 0.1, 3


@final
@dataclass(frozen=True)
class Pace:
    """The time of a forward pass, as a line in the number of its rows.

    Args:
        fixed: seconds that a pass costs by itself.
        each: seconds that each row adds.
    """

    fixed: float
    each: float

    def seconds(self, rows: float | int) -> float:
        """Predict the time of one pass.

        Args:
            rows: how many rows it has.

        Returns:
            Seconds.
        """
        return self.fixed + self.each * rows


def measure_pace(target: Target, x: Float[Tensor, "batch *dims"], draws: Draws) -> Pace:
    """Time forward passes of two batches.

    Args:
        target: the classifier.
        x: inputs, of which 16 are used at most.
        draws: their streams.

    Returns:
        The pace; what is slow is timed once, what is quick three times after a pass that does not count.
    """
    times = []
    warm = perf_counter()
    target.outcomes(x[:1], draws=draws.of([0]))
    repeats = 1 if perf_counter() - warm > _QUICK else _REPEATS
    for count in (_FEW, _MORE):
        rows = list(range(min(count, len(x))))
        taken = []
        for turn in range(repeats):
            began = perf_counter()
            target.outcomes(x[rows], draws=draws.of(rows).fold(turn))
            taken.append(perf_counter() - began)
        times.append((len(rows), min(taken)))
    (few, short), (many, long) = times
    each = max((long - short) / max(many - few, 1), 0.02 * short / few, 1e-9)
    return Pace(max(short - few * each, 0.0), each)
